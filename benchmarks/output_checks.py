"""The time that the checks of a model's outputs take in the first step of a training.

    OMP_NUM_THREADS=1 python benchmarks/output_checks.py RECIPE... [--smallest]

Times training steps with and without the checks in turn, in one process.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from lightning.fabric import Fabric

from textseg.drawing.tables import markdown_table
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.training.loop import Training

PAIRS = 1 if "--smallest" in sys.argv else 15


def measured(path: Path) -> list[str]:
    """Return the row of a recipe: seconds of a step without checks, and what the checks add."""
    experiment = build(load_recipe(path))
    with tempfile.TemporaryDirectory() as folder:
        training = Training(experiment, RunFolder(Path(folder)), Fabric(accelerator="cpu", devices=1))
    training._start_epoch(0)
    batch = next(iter(training._batches(0)))
    training.training_step(batch)  # the first one warms up
    times: dict[bool, list[float]] = {False: [], True: []}
    for checked in (False, True) * PAIRS:
        training.objective.checks.due = checked
        start = time.perf_counter()
        training.training_step(batch)
        times[checked].append(time.perf_counter() - start)
    step = statistics.median(times[False])
    added = statistics.median(after - before for before, after in zip(times[False], times[True], strict=True))
    return [path.stem, f"{step:.3f}", f"{added:+.4f}"]


def main(paths: list[str]) -> int:
    """Print the table of some recipes."""
    heads = ["recipe", "step [s]", "added by the checks [s]"]
    print(markdown_table(heads, [measured(Path(path)) for path in paths]))
    return 0


if __name__ == "__main__":
    sys.exit(main([argument for argument in sys.argv[1:] if argument != "--smallest"]))
