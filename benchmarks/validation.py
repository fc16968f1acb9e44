"""The share of a training that its validation in windows takes.

    OMP_NUM_THREADS=1 python benchmarks/validation.py RECIPE... [--smallest]

Times an epoch of training, a validation on whole volumes, and a validation on whole volumes and in windows, with new
weights, in one process. The share is the additional processor time of all validations of a training, over that of the
same training without windows in its validations.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from lightning.fabric import Fabric

from textseg.data.slices import ShuffledBatches, training_loader
from textseg.drawing.tables import markdown_table
from textseg.evaluation.evaluate import validate
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.training.loop import Training

SMALLEST = "--smallest" in sys.argv
REPEATS = 1 if SMALLEST else 3


def seconds(call: Callable[[], object]) -> float:
    """Return the median processor time of some calls; the first one warms up."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def measured(path: Path) -> list[str]:
    """Return the row of a recipe: seconds of an epoch and of both validations, and the share of a training."""
    experiment = build(load_recipe(path))
    settings = experiment.recipe.training
    whole = experiment.recipe.augmentation.model_copy(update={"field_of_view": None})
    without = replace(experiment, recipe=experiment.recipe.model_copy(update={"augmentation": whole}))
    with tempfile.TemporaryDirectory() as folder:
        training = Training(experiment, RunFolder(Path(folder)), Fabric(accelerator="cpu", devices=1))
    slices, segmenter = experiment.training_slices(), training.segmenter

    def epoch() -> None:
        segmenter.train()
        order = ShuffledBatches(len(slices), settings.batch_size, seed=1, epoch=0)
        for packed in training_loader(slices, order, workers=0, pin_memory=False):
            training.training_step(slices.unpack(packed))

    trained = seconds(epoch)
    segmenter.eval()
    cpu = torch.device("cpu")
    plain, windowed = (seconds(lambda e=e: validate(e, segmenter, "validation", cpu)) for e in (without, experiment))  # type: ignore[misc]
    validations = -(-settings.epochs // settings.validate_every)
    share = validations * (windowed - plain) / (settings.epochs * trained + validations * plain)
    return [path.stem, *(f"{value:.2f}" for value in (trained, plain, windowed)), f"{100 * share:.1f} %"]


def main(paths: list[str]) -> int:
    """Print the table of some recipes."""
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    heads = ["recipe", "epoch, s", "validation, s", "with windows, s", "more time for a training"]
    print(markdown_table(heads, [measured(Path(path)) for path in paths]))
    return 0


if __name__ == "__main__":
    sys.exit(main([argument for argument in sys.argv[1:] if argument != "--smallest"]))
