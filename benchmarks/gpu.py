"""Training speed and milliseconds per slice of whole networks on a CUDA device.

    python benchmarks/gpu.py [--side 384] [--batch-size 8] [--steps 50] [--precision 16-mixed]
    python benchmarks/gpu.py --side 64 --batch-size 2 --steps 2 --precision 32-true --small     # any machine

Three models are trained by `Training` on the lumbar phantom, beside a bare loop over batches that already lie on the
device: same model, losses, optimiser and precision. Of the other networks stands the time of a slice, forward. A GPU
is warmed up and waited for; the medians of three parts are shown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from lightning.fabric import Fabric

from textseg.contracts import Batch
from textseg.models.cost import measure_cost
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.training.loggers import peak_memory
from textseg.training.loop import Training

ROOT = Path(__file__).parent.parent
TRAINED = ("atmnet_spider", "swin_unetr_spider", "nnunet_v2_spider")
SMALL = {
    "atmnet_spider": ["model.vision_encoder.feature_size=12", "model.fusion.heads=2"],
    "swin_unetr_spider": ["model.network.feature_size=12"],
    "nnunet_v2_spider": ["model.network.features=4", "model.network.max_features=8"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", default="16-mixed")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a fraction of the channels, to try the script")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "CPU"
    print(
        f"{device}, torch {torch.__version__}, {options.precision}, side {options.side}, batch {options.batch_size}\n"
    )
    print(
        "| model | slices/s | bare loop | share of it | peak MiB | forward, ms per slice |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in TRAINED:
            print(row(name, Path(folder), options), flush=True)
    if not options.small:
        for path in sorted(ROOT.glob("recipes/*_spider.yaml")):
            if path.stem not in TRAINED:
                print(f"| {path.stem} | | | | | {forward_only(path, options)} |", flush=True)


def row(name: str, folder: Path, options: argparse.Namespace) -> str:
    training = start(ROOT / "recipes" / f"{name}.yaml", folder, options, SMALL[name] if options.small else [])
    device = training.fabric.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    training._start_epoch(0)

    def loaded() -> Iterator[Batch]:
        for epoch in range(training.settings.epochs):  # the steps of a run, loading and distortions included
            training.progression.step = epoch * training.steps_per_epoch
            yield from training._batches(epoch)

    with_data = rate(training, loaded(), options)
    training.progression.step = 0
    resident = list(islice(training._batches(0), 2))
    bare = rate(training, cycle(resident), options, step=bare_step(training))
    cost = measure_cost(training.segmenter, training.experiment.task, device)
    memory = peak_memory(device) / 2**20
    return (
        f"| {name} | {with_data:.2f} | {bare:.2f} | {with_data / bare:.3f} | {memory:.0f} "
        f"| {cost['milliseconds_per_slice']:.1f} |"
    )


def start(path: Path, folder: Path, options: argparse.Namespace, more: list[str]) -> Training:
    side, size = options.side, options.batch_size
    overrides = [
        f"dataset={{use: lumbar_phantom, folder: {folder / 'data'}, cases: 12, size: [{2 * side}, {2 * side}]}}",
        "split={fractions: [0.6, 0.2, 0.2]}",
        f"preparation.size=[{side}, {side}]",
        f"training.batch_size={size}",
        f"training.precision={options.precision}",
        f"training.workers={options.workers}",
        *more,
    ]
    if "prompts:" in path.read_text(encoding="utf-8"):
        overrides.append("prompts.text_encoder={use: hashed}")  # speed does not depend on what the features say
    experiment = build(load_recipe(path, overrides))
    fabric = Fabric(accelerator="auto", devices=1, precision=options.precision)
    return Training(experiment, RunFolder(folder / path.stem), fabric)


def bare_step(training: Training) -> Callable[[Batch], object]:
    """Train with forward, backward and step only, without the other parts of textseg."""

    def step(batch: Batch) -> None:
        terms = training.wrapped(lambda: batch)
        training.fabric.backward(torch.stack(list(terms.values())).sum())
        training.wrapped_optimizer.step()
        training.wrapped_optimizer.zero_grad()

    return step


def rate(
    training: Training,
    batches: Iterator[Batch],
    options: argparse.Namespace,
    step: Callable[[Batch], object] | None = None,
) -> float:
    """Return slices per second: the median of three parts, after a first part as warm-up."""
    rates = []
    for part in range(4):
        slices, begun = 0, now(training)
        for batch in islice(batches, options.steps):
            (step or training.training_step)(batch)
            slices += len(batch.case)
        if part:
            rates.append(slices / (now(training) - begun))
    return statistics.median(rates)


def now(training: Training) -> float:
    if training.fabric.device.type == "cuda":
        torch.cuda.synchronize(training.fabric.device)
    return time.perf_counter()


def forward_only(path: Path, options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            training = start(path, Path(folder), options, [])
        except Exception as error:  # weights that are not at hand
            return f"not measured: {str(error).splitlines()[0]}"
        cost = measure_cost(training.segmenter, training.experiment.task, training.fabric.device)
        return f"{cost['milliseconds_per_slice']:.1f}"


if __name__ == "__main__":
    main()
