"""Cost of `textseg predict` relative to its network alone, on one volume of 15 slices, after start-up.

    OMP_NUM_THREADS=1 python benchmarks/prediction.py [recipes/atmnet_spider.yaml] [--pairs 3] [--slices 15]

In turn, in pairs: the whole way of a file, which is read, hashed, prepared, segmented, brought back to its own pixels
and written with its sidecar; and the network of the recipe, over the same slices and texts, prepared before. Weights
are random, which changes no cost but that a mask of noise is slow to compress; texts are read by `minilm`. The volume
is the first of SPIDER where TEXTSEG_DATA names some, cut or repeated to so many slices, else noise of 640 x 512.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK
import torch

from textseg.contracts import Task
from textseg.data.slices import SliceStack
from textseg.inference.files import Job, predict_files
from textseg.inference.slices import slice_outputs
from textseg.inference.trained_model import EncodedTexts, TrainedModel, prompt_generator
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import build_segmenter
from textseg.runs.task_record import TaskRecord
from textseg.text.visibility import template_visibility
from textseg.volumes.files import read_volume

TEXT_LENGTH, TEXT_SIZE = 256, 384  # T and D of minilm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("recipes/atmnet_spider.yaml"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--slices", type=int, default=15)
    options = parser.parse_args()
    model = untrained(options.recipe)
    with tempfile.TemporaryDirectory() as folder:
        path = write_volume(Path(folder), options.slices)
        volume = read_volume(path, model.atlas.plane)
        visibility = template_visibility(model.atlas) if model.reads_text else None
        stack = model.slices(model.prepare(volume), visibility)

        def whole() -> None:
            outcomes = predict_files(model, [Job(path, Path(folder) / "mask" / "volume.nii.gz", "volume")])
            assert [outcome.state for outcome in outcomes] == ["written"]
            (Path(folder) / "mask" / "volume.json").unlink()  # else it would be there already

        print("| recipe | volume | | seconds, median | of the network alone |\n|---|---|---|---|---|")
        figures = paired(whole, lambda: network(model, stack), options.pairs)
    size = " x ".join(map(str, volume.array.shape))
    for what, (ours, alone) in figures.items():
        ratios = [first / second for first, second in zip(ours, alone, strict=True)]
        span = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"| {model.name} | {size} | {what} | {statistics.median(ours):.2f} | {span} |")


def untrained(path: Path) -> TrainedModel:
    """Return the model of a recipe with random weights; prompts, if any, are read by `minilm`."""
    registry, recipe = installed_registry(), load_recipe(path)
    text = {}
    if recipe.prompts is not None:
        recipe = load_recipe(path, ["prompts.text_encoder={use: minilm}"])
        text = {"text_length": TEXT_LENGTH, "text_size": TEXT_SIZE}
    atlas = registry.build("atlas", "lumbar_spider", settings={})
    task = Task(1, recipe.preparation.size, atlas.class_count, atlas, **text)
    torch.manual_seed(0)
    return TrainedModel(
        recipe.name,
        "untrained",
        recipe,
        TaskRecord(task, {}),
        build_segmenter(recipe, registry, task).eval(),
        prompt_generator(recipe, registry, atlas),
        EncodedTexts(recipe, registry, task) if recipe.prompts else None,
        torch.device("cpu"),
    )


def write_volume(folder: Path, slices: int) -> Path:
    """Write a volume file with this number of slices."""
    path = folder / "volume.mha"
    scans = sorted(Path(os.environ.get("TEXTSEG_DATA", "nowhere"), "spider", "images").glob("*.mha"))
    if scans:
        scan = read_volume(scans[0])
        array = np.resize(scan.array, (slices, *scan.array.shape[1:]))
        spacing = scan.spacing_mm
    else:
        array, spacing = np.random.default_rng(0).random((slices, 640, 512)), (4.0, 0.5, 0.5)
    image = SimpleITK.GetImageFromArray((array / array.max() * 1000).astype(np.int16))
    image.SetSpacing(spacing[::-1])
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))  # sagittal
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


def network(model: TrainedModel, stack: SliceStack) -> None:
    deque(slice_outputs(model.segmenter, stack, device=model.device, batch_size=1), maxlen=0)


def paired(
    whole: Callable[[], None], alone: Callable[[], None], pairs: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Return wall and processor seconds of both calls; the first pair is a warm-up."""
    figures: dict[str, tuple[list[float], list[float]]] = {"by the clock": ([], []), "processor": ([], [])}
    for number in range(pairs + 1):
        for side, step in ((0, whole), (1, alone)) if number % 2 else ((1, alone), (0, whole)):
            clock, processor = time.perf_counter(), time.process_time()
            step()
            if number:
                figures["by the clock"][side].append(time.perf_counter() - clock)
                figures["processor"][side].append(time.process_time() - processor)
    return figures


if __name__ == "__main__":
    main()
