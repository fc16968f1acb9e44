"""Checks of loggers: opened by what they get, silent about the files of the run, and ready to go on after a break."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from textseg.contracts import Logger
from textseg.hookspecs import Run
from textseg.testing.conformance import Subject, check
from textseg.testing.promises import promise
from textseg.testing.surroundings import undisturbed

RECIPE = {"format": 1, "name": "example", "seed": 1, "training": {"epochs": 2, "loggers": []}}
ROW = {"train_loss": 0.5, "learning_rate": 1e-3, "validation_dsc": 0.25}
METHODS = ("log", "show", "log_results", "close")


@contextmanager
def _example_run() -> Iterator[Run]:
    """Make a run folder for the block, with a picture of a validation."""
    import numpy as np
    from matplotlib.image import imsave

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "example" / "seed1"
        (run / "log" / "overlays").mkdir(parents=True)
        (run / "recipe.yaml").write_text("format: 1\nname: example\n", encoding="utf-8")
        (run / "run.json").write_text("{}\n", encoding="utf-8")
        (run / "log" / "metrics.csv").write_text("epoch,step,train_loss\n", encoding="utf-8")
        imsave(run / "log" / "overlays" / "epoch_0001.png", np.zeros((12, 16, 3)))
        yield Run(run, RECIPE, {})


@check("construction", "logger", fundamental=True)
def _construction(subject: Subject) -> None:
    """Check that the logger can be built and has the methods that the core calls."""
    with _example_run() as run:
        logger = subject.build(run, 0)
    for name in METHODS:
        promise(callable(getattr(logger, name, None)), f"a method `{name}`", "none")


@check("surroundings", "logger", tolerant=True)
def _surroundings(subject: Subject) -> None:
    """Construction opens no service and no file, and a logger that gets nothing leaves none behind."""
    with _example_run() as run:
        with undisturbed("construction", allowed=[*subject.settings.values(), str(run.folder)]):
            logger: Logger = subject.build(run, 0)
        before = _files(run.folder)
        logger.close(failed=True)
        promise(_files(run.folder) == before, "no file of a logger that got nothing", sorted(_files(run.folder)))


@check("continued", "logger")
def _continued(subject: Subject) -> None:
    """Check that a run and its continuation are logged, and that the files of the run stay as they are."""
    with _example_run() as run:
        before = _files(run.folder)
        picture = run.folder / "log" / "overlays" / "epoch_0001.png"
        for step in (0, 4):
            logger: Logger = subject.build(run, step)
            logger.log(ROW, step + 4)
            logger.show(picture, step + 4)
            logger.close(failed=step == 0)
        logger = subject.build(run, 8)
        logger.log_results({"dsc": 0.5}, 8)
        logger.close(failed=False)
        after = _files(run.folder)
        changed = sorted(name for name in before if after.get(name) != before[name])
        promise(not changed, "the files of the run as they were", f"changes in {', '.join(changed)}")
        outside = sorted(name for name in after.keys() - before.keys() if not name.startswith("log/"))
        promise(not outside, "new files below log/ only", ", ".join(outside))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CHECKS = (_surroundings, _construction, _continued)
