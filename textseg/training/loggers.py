"""The loggers of a training, its printed lines, and the pictures of its validation."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from rich.progress import Progress

from textseg.contracts import Logger
from textseg.drawing.pictures import OverlayPicture, overlay_png
from textseg.hookspecs import Run
from textseg.recipe.schema import NamedComponent
from textseg.registry.discovery import Registry
from textseg.runs.experiment import Experiment
from textseg.runs.folder import RunFolder
from textseg.system.files import write_atomically
from textseg.system.progress import progress_bar
from textseg.training.checkpoints import Progression

PICTURES = 4  # validation cases that are drawn


@contextmanager
def logging_to(registry: Registry, run: Run, step: int) -> Iterator[Sequence[Logger]]:
    """Open the loggers of a run's recipe from a step on, and close them; an exception closes them as failed."""
    specs = [NamedComponent.model_validate(logger) for logger in run.recipe["training"]["loggers"]]
    loggers: list[Logger] = []
    failed = True
    try:
        for spec in specs:
            loggers.append(registry.build("logger", spec.use, run, step, settings=spec.settings))
        yield loggers
        failed = False
    finally:
        for logger in loggers:
            logger.close(failed=failed)


class TrainingDisplay:
    """The progress bar of a training, the printed line of each epoch, and the loggers that get its numbers."""

    def __init__(
        self, bar: Progress, loggers: Sequence[Logger], folder: RunFolder, epochs: int, finished_epochs: int
    ) -> None:
        self.bar, self.loggers, self.folder = bar, loggers, folder
        self.epochs, self.first_epoch, self.started = epochs, finished_epochs, time.monotonic()

    def advance(self) -> None:
        """Count one more step on the bar."""
        self.bar.advance(self.bar.task_ids[0])

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(line, highlight=False, soft_wrap=True)

    def show_epoch(self, row: Mapping[str, float], stage: str) -> None:
        """Print the line of an epoch, and give its numbers to the loggers."""
        epoch = int(row["epoch"])
        for logger in self.loggers:
            logger.log({key: value for key, value in row.items() if key != "epoch"}, int(row["step"]))
        seconds_per_epoch = (time.monotonic() - self.started) / (epoch - self.first_epoch)
        left = seconds_per_epoch * (self.epochs - epoch)
        self.print(describe(row, self.epochs, stage=stage, seconds_left=left))

    def show_pictures(self, pictures: Sequence[OverlayPicture], epoch: int, step: int) -> None:
        """Draw validation slices into log/overlays/epoch_0010.png, and give them to the loggers."""
        path = self.folder.overlay(epoch)
        write_atomically(path, overlay_png(*pictures))
        for logger in self.loggers:
            logger.show(path, step)


@contextmanager
def displayed(
    experiment: Experiment, folder: RunFolder, progression: Progression, steps: int, epochs: int, *, silent: bool
) -> Iterator[TrainingDisplay]:
    """Show a training of so many steps and epochs from where it stands.

    The other processes of a run are `silent` and have no loggers.
    """
    step = progression.step
    run = experiment.run(folder.path, {} if silent else folder.read())
    opened = nullcontext(()) if silent else logging_to(experiment.registry, run, step)
    with opened as loggers, progress_bar() as bar:
        bar.add_task("training", total=steps, completed=step)
        yield TrainingDisplay(bar, loggers, folder, epochs, len(progression.history))


def describe(row: Mapping[str, float], epochs: int, *, stage: str = "", seconds_left: float = 0.0) -> str:
    """Return the line of an epoch: losses by part, learning rate, validation by group, speed, memory, time left."""
    terms = {key.removeprefix("train_"): value for key, value in row.items() if key.startswith("train_")}
    loss = f"loss {terms.pop('loss', math.nan):.3f}{_parts(terms)}"
    parts = [loss, f"learning rate {row['learning_rate']:.1e}"]
    if "validation_dsc" in row:
        groups = {key: value for key, value in row.items() if key.startswith("validation_dsc_")}
        by_name = {key.removeprefix("validation_dsc_").replace("_", " "): value for key, value in groups.items()}
        parts.append(f"validation DSC {row['validation_dsc']:.3f}{_parts(by_name)}")
        if "validation_windows_dsc" in row:
            parts.append(f"in windows {row['validation_windows_dsc']:.3f}")
    parts.append(f"{row['slices_per_second']:.3g} slices/s, {row['memory_bytes'] / 2**30:.1f} GiB")
    if row["epoch"] < epochs:
        parts.append(f"{duration(seconds_left)} left")
    return f"epoch {int(row['epoch'])} of {epochs}{f' ({stage})' if stage else ''}: {', '.join(parts)}"


def _parts(values: Mapping[str, float]) -> str:
    return f" ({', '.join(f'{name} {value:.3f}' for name, value in values.items())})" if values else ""


def duration(seconds: float) -> str:
    """Return a rounded duration: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def peak_memory(device: torch.device) -> int:
    """Return the largest memory of the process in bytes: what torch took of a CUDA device, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def drawn_in(epoch: int, *, every: int | None, validate_every: int, last: bool) -> bool:
    """Return True if the validation after `epoch`, counted from 1, is drawn: the first of each `every` epochs."""
    return every is not None and (last or epoch // every > max(0, epoch - validate_every) // every)
