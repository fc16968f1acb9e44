"""What a person sees of a training: the line of an epoch, and its curves and pictures in every logger of the recipe."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from textseg.drawing.pictures import OverlayPicture, overlay_png
from textseg.errors import RecipeError
from textseg.recipe.loading import Recipe
from textseg.runs.folder import RunFolder
from textseg.system.files import replacing
from textseg.system.progress import progress_bar

if TYPE_CHECKING:
    import torch

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # logger -> what it imports
PICTURES = 4  # validation cases that are drawn


class Watch:
    """The loggers of a run, and the folder that its pictures go to.

    Where W&B and MLflow keep a run, and as whom they log in, is set as they have it: by `WANDB_MODE`, `WANDB_PROJECT`,
    `MLFLOW_TRACKING_URI` and the like. A run that goes on, goes on in both.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, step: int, names: Sequence[str]) -> None:
        self.folder, self.step = folder, step
        self.settings = recipe.model_dump(mode="json")
        self.loggers = {name: getattr(self, f"_open_{name}")(recipe) for name in names}

    def log(self, row: Mapping[str, float], step: int) -> None:
        """The numbers of an epoch."""
        self.step = step
        for logger in self.loggers.values():
            logger.log_metrics({key: value for key, value in row.items() if key != "epoch"}, step)

    def show(self, pictures: Sequence[OverlayPicture], epoch: int) -> None:
        """Validation slices as one picture: log/overlays/epoch_0010.png, and the same in every logger."""
        path = self.folder.overlay(epoch)
        png = overlay_png(*pictures)
        with replacing(path) as temporary:
            temporary.write_bytes(png)
        for name, logger in self.loggers.items():
            if name == "tensorboard":
                from matplotlib.image import imread

                pixels = imread(io.BytesIO(png), format="png")  # [H, W, 4] in 0..1
                logger.experiment.add_image("validation", pixels[..., :3], self.step, dataformats="HWC")
            elif name == "wandb":
                logger.log_image("validation", [str(path)], self.step)
            else:
                logger.experiment.log_artifact(logger.run_id, str(path), "validation")

    def close(self, status: str) -> None:
        """Write what is still in memory; `status` is "success" or "failed"."""
        for name, logger in self.loggers.items():
            logger.finalize(status)
            if name == "wandb":
                logger.experiment.finish(exit_code=int(status != "success"))

    def _open_tensorboard(self, recipe: Recipe) -> Any:
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(
            self.folder.path, name="log", version="", purge_step=self.step, default_hp_metric=False
        )

    def _open_wandb(self, recipe: Recipe) -> Any:
        from lightning.pytorch.loggers import WandbLogger

        logger = WandbLogger(
            name=_title(self.folder),
            project=os.environ.get("WANDB_PROJECT", "textseg"),
            group=recipe.name,
            save_dir=self.folder.log,
            id=self._remembered("wandb"),
            resume="allow",
            config=self.settings,
        )
        self._remember("wandb", logger.experiment.id)
        return logger

    def _open_mlflow(self, recipe: Recipe) -> Any:
        from lightning.pytorch.loggers import MLFlowLogger

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its base package has no other store for log/mlruns
        known = self._remembered("mlflow")
        logger = MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "textseg"),
            run_name=_title(self.folder),
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", (self.folder.log / "mlruns").resolve().as_uri()),
            run_id=known,
        )
        if known is None:
            logger.log_hyperparams(dict(flat(self.settings)))
            self._remember("mlflow", str(logger.run_id))
        return logger

    def _remembered(self, name: str) -> str | None:
        found: str | None = self.folder.read().get("logged_as", {}).get(name)
        return found

    def _remember(self, name: str, identity: str) -> None:
        self.folder.update(logged_as={**self.folder.read().get("logged_as", {}), name: identity})


@contextmanager
def watching(recipe: Recipe, folder: RunFolder, step: int, *, without: Sequence[str] = ()) -> Iterator[Watch]:
    """The loggers of a recipe while a run goes on, from `step` on; they are told whether it ended well."""
    watch = Watch(recipe, folder, step, [name for name in recipe.training.loggers if name not in without])
    try:
        yield watch
    except BaseException:
        watch.close("failed")
        raise
    watch.close("success")


class TrainingDisplay:
    """The progress bar of a training, the printed line of each epoch, and the loggers that get its numbers."""

    def __init__(self, bar: Progress, watch: Watch, epochs: int, finished_epochs: int, *, silent: bool) -> None:
        self.bar, self.watch, self.silent = bar, watch, silent
        self.epochs, self.first_epoch, self.started = epochs, finished_epochs, time.monotonic()

    def advance(self) -> None:
        """Count one more step on the bar."""
        self.bar.advance(self.bar.task_ids[0])

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(line, highlight=False, soft_wrap=True)

    def show_epoch(self, row: Mapping[str, float], stage: str, pictures: Sequence[OverlayPicture]) -> None:
        """Print the line of an epoch, and give its numbers and pictures to the loggers."""
        epoch = int(row["epoch"])
        self.watch.log(row, int(row["step"]))
        if pictures and not self.silent:
            self.watch.show(pictures, epoch)
        seconds_per_epoch = (time.monotonic() - self.started) / (epoch - self.first_epoch)
        left = seconds_per_epoch * (self.epochs - epoch)
        self.print(describe(row, self.epochs, stage=stage, seconds_left=left))


@contextmanager
def displayed(
    recipe: Recipe, folder: RunFolder, *, step: int, total_steps: int, finished_epochs: int, silent: bool
) -> Iterator[TrainingDisplay]:
    """Show a training while it goes on, from `step` on; a `silent` process of several has no loggers."""
    loggers = recipe.training.loggers
    with watching(recipe, folder, step, without=loggers if silent else ()) as watch, progress_bar() as bar:
        bar.add_task("training", total=total_steps, completed=step)
        yield TrainingDisplay(bar, watch, recipe.training.epochs, finished_epochs, silent=silent)


def check_loggers(recipe: Recipe) -> None:
    """Raise RecipeError for a logger whose package is not installed."""
    for name in recipe.training.loggers:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise RecipeError(
                f"training.loggers: '{name}' needs the package {PACKAGES[name]}, which is not installed. Install it "
                f'with: pip install "textseg[{name}]"'
            )


def describe(row: Mapping[str, float], epochs: int, *, stage: str = "", seconds_left: float = 0.0) -> str:
    """The line of an epoch: its losses by part, learning rate, validation by group, speed, memory, time left."""
    terms = {key.removeprefix("train_"): value for key, value in row.items() if key.startswith("train_")}
    loss = f"loss {terms.pop('loss', math.nan):.3f}{_parts(terms)}"
    said = [loss, f"learning rate {row['learning_rate']:.1e}"]
    if "validation_dsc" in row:
        groups = {key: value for key, value in row.items() if key.startswith("validation_dsc_")}
        by_name = {key.removeprefix("validation_dsc_").replace("_", " "): value for key, value in groups.items()}
        said.append(f"validation DSC {row['validation_dsc']:.3f}{_parts(by_name)}")
    said.append(f"{row['slices_per_second']:.3g} slices/s, {row['memory_bytes'] / 2**30:.1f} GiB")
    if row["epoch"] < epochs:
        said.append(f"{duration(seconds_left)} left")
    return f"epoch {int(row['epoch'])} of {epochs}{f' ({stage})' if stage else ''}: {', '.join(said)}"


def _parts(values: Mapping[str, float]) -> str:
    return f" ({', '.join(f'{name} {value:.3f}' for name, value in values.items())})" if values else ""


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def peak_memory(device: torch.device) -> int:
    """The most bytes that the process had at once: of a CUDA device what torch took, else of the machine's memory."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def drawn_in(epoch: int, *, every: int | None, validate_every: int, last: bool) -> bool:
    """Whether a validation after `epoch` (counted from 1) is drawn: the first at or after each `every` epochs."""
    if every is None:
        return False
    return last or epoch // every > max(0, epoch - validate_every) // every


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Settings by dotted key; what is no number, flag or text stands as JSON."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        elif isinstance(value, bool | int | float | str):
            yield f"{above}{key}", value
        elif value is not None:
            yield f"{above}{key}", json.dumps(value)


def _title(folder: RunFolder) -> str:
    return f"{folder.path.parent.name}/{folder.path.name}"
