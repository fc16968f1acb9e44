"""The three poolings of `ccae`: can their loss fall without the image, and which one segments better?

    OMP_NUM_THREADS=1 python benchmarks/contrast.py [--noise-only] [--epochs 8] [--smallest]

1. Noise: images of independent pixels through a random network that is not trained; only the projections of `ccae` are.
   The 14 structures lie at fixed positions, which the noise does not know. Chance is ln 14. Loss on new noise.
2. The quickstart, trained with each pooling and the seed of the recipe: loss of `ccae` over the test slices, with their
   images, with the images upside down, and with noise in their place; and the DSC of the test. The text is that of the
   annotation, and neither text nor annotation is turned.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

import textseg
from textseg.contracts import Atlas, Batch, Features, SegmenterOutput, Structure, Task, TextFeatures
from textseg.drawing.tables import markdown_table
from textseg.evaluation.evaluate import rebuild
from textseg.recipe.loading import load_recipe
from textseg.runs.folder import RunFolder
from textseg.training.loop import Training
from textseg_atmnet.ccae import CCAE

POOLINGS = ("mask", "prediction", "grid")
STRUCTURES, CHANNELS, SIDE, TEXT = 14, 16, 32, 32


def batch_of(image: Tensor, mask: Tensor) -> Batch:
    """Return a batch of slices with their masks, as an auxiliary loss reads it."""
    zeros = torch.zeros(len(mask), dtype=torch.int64)
    return Batch(image, mask, None, ("case",) * len(mask), zeros, zeros, torch.ones(len(mask), 3))


def on_noise(pooling: str, *, steps: int, seed: int = 0, sharpness: float = 1.0) -> tuple[float, float]:
    """Return the loss before and after the training of the projections; `sharpness` multiplies the logits."""
    torch.manual_seed(seed)
    circular = {"padding": 2, "padding_mode": "circular"}  # zeros at the border would tell positions apart
    network = nn.Sequential(
        nn.Conv2d(1, CHANNELS, 5, **circular), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 5, **circular), nn.ReLU()
    )
    head = nn.Conv2d(CHANNELS, STRUCTURES + 1, 1)
    atlas = Atlas("noise", tuple(Structure(f"part {index}", "part", index) for index in range(1, STRUCTURES + 1)))
    task = Task(1, (SIDE, SIDE), STRUCTURES + 1, atlas, text_size=TEXT, text_length=1)
    loss = CCAE(task, Features((CHANNELS,), (1,)), embedding_size=32, pooling=pooling, grid=8)  # type: ignore[arg-type]
    classwise = torch.randn(1, STRUCTURES, TEXT).expand(8, -1, -1)
    shown = torch.ones(8, STRUCTURES, dtype=torch.bool)
    text = TextFeatures(torch.zeros(8, 1, TEXT), torch.ones(8, 1, dtype=torch.bool), classwise, shown)
    mask = (torch.arange(SIDE * SIDE) * (STRUCTURES + 1) // SIDE**2).reshape(1, SIDE, SIDE).expand(8, -1, -1)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)

    def on_new_noise() -> Tensor:
        image = torch.randn(8, 1, SIDE, SIDE)
        with torch.no_grad():
            feature = network(image)
            output = SegmenterOutput(sharpness * head(feature), fused_features=(feature,), text=text)
        value: Tensor = loss(output, batch_of(image, mask))
        return value

    before = on_new_noise().item()
    for _ in range(steps):
        optimizer.zero_grad()
        on_new_noise().backward()
        optimizer.step()
    with torch.no_grad():
        return before, torch.stack([on_new_noise() for _ in range(8)]).mean().item()


def after_training(pooling: str, *, epochs: int, folder: Path) -> tuple[float, float, float, float]:
    """Return the loss over the test slices with their images, upside down and with noise, and the DSC of the test."""
    changes = [
        f"auxiliary_losses=[{{use: ccae, weight: 0.2, pooling: {pooling}}}]",
        f"dataset.folder={folder / 'data'}",
        f"training.epochs={epochs}",
        f"training.validate_every={epochs}",
        "evaluation={metrics: [dsc]}",
    ]
    run = RunFolder(textseg.run("quickstart", overrides=changes, output=folder / pooling))
    experiment = rebuild(load_recipe(run.recipe), run, also=["ground_truth"])
    training = Training(experiment, run, Fabric(accelerator="cpu", devices=1, precision="32-true"))
    training.resume()
    training.segmenter.eval()
    losses: dict[str, list[float]] = {"image": [], "upside down": [], "noise": []}
    torch.manual_seed(0)
    for prepared in experiment.cases["test"]:
        mask = torch.from_numpy(np.array(prepared.mask)).long()
        for image, text in experiment.slices(prepared, "ground_truth").batches(prepared.slice_count):
            noise = torch.randn_like(image) * image.std() + image.mean()
            for kind, shown in {"image": image, "upside down": image.flip(-2), "noise": noise}.items():
                with torch.no_grad():
                    output = training.segmenter(shown, text)
                    losses[kind].append(training.objective.auxiliary["ccae"](output, batch_of(shown, mask)).item())
    means = [sum(values) / len(values) for values in losses.values()]
    return means[0], means[1], means[2], run.read()["test"]["dsc"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise-only", action="store_true", help="no training of the quickstart")
    parser.add_argument("--epochs", type=int, default=8, help="of the quickstart")
    parser.add_argument("--smallest", action="store_true", help="to try it")
    options = parser.parse_args()
    steps, epochs = (5, 1) if options.smallest else (600, options.epochs)
    rows = []
    for pooling in POOLINGS:
        for sharpness in (1.0,) if pooling == "mask" else (1.0, 10.0):
            before, after = on_noise(pooling, steps=steps, sharpness=sharpness)
            rows.append((pooling, f"{sharpness:g}", f"{before:.2f}", f"{after:.2f}"))
    print(f"Noise, {steps} steps; chance is {math.log(STRUCTURES):.2f}\n")
    print(markdown_table(("pooling", "logits times", "loss before", "loss after"), rows), flush=True)
    if options.noise_only:
        return
    with tempfile.TemporaryDirectory() as folder:
        measured = [
            (pooling, *(f"{value:.3f}" for value in after_training(pooling, epochs=epochs, folder=Path(folder))))
            for pooling in POOLINGS
        ]
    print(f"\nThe quickstart, {epochs} epochs\n")
    print(markdown_table(("pooling", "image", "upside down", "noise", "DSC"), measured))


if __name__ == "__main__":
    main()
