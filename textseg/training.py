"""The loop that finds the weights, on Lightning Fabric."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from textseg.augmentation import Augmentation, slice_keys
from textseg.build import Experiment
from textseg.contracts import Batch
from textseg.data import ShuffledBatches, Slices, Volumes, training_loader
from textseg.errors import RunError
from textseg.evaluation import Validation, validate
from textseg.model import Segmenter
from textseg.objective import Objective
from textseg.optimization import learning_rate, make_optimizer, moving_average
from textseg.progress import progress_bar
from textseg.recipe import Training as Settings
from textseg.run_folder import RunFolder, first_line, load_checkpoint
from textseg.stages import Stage, divide_epochs
from textseg.termination import on_termination
from textseg.watching import PICTURES, describe, drawn_in, peak_memory, watching


@dataclass
class Progression:
    """How far a run has come; plain Python, saved in every checkpoint."""

    step: int = 0
    stage: int = 0  # of the network's stages, counted from 0
    best_dsc: float = -1.0
    best_epoch: int = 0  # counted from 1, as a person reads it in the log
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # a row per finished epoch
    sums: dict[str, float] = field(default_factory=dict)  # of the losses, where the run stopped inside an epoch


class Training:
    """A run in memory: weights, optimiser, and the loop over them.

    Where the run stands follows from its step alone: the place in the epoch, the stage of a network that is trained
    part by part, the learning rate and every random number. A run that goes on from a checkpoint is therefore equal to
    one that was never interrupted.

    Raises RunError for weights in `initialize_from` that don't fit, RecipeError for fewer epochs than stages.
    """

    def __init__(self, experiment: Experiment, folder: RunFolder, fabric: Fabric) -> None:
        self.experiment, self.folder, self.fabric = experiment, folder, fabric
        self.settings: Settings = experiment.recipe.training
        torch.manual_seed(experiment.recipe.seed)
        self.segmenter = experiment.segmenter()
        self.auxiliary = experiment.auxiliary_losses(self.segmenter)
        self.segmentation_loss = experiment.segmentation_loss()
        self.auxiliary_weights = {spec.use: spec.weight for spec in experiment.recipe.auxiliary_losses}
        if self.settings.initialize_from and not folder.checkpoint("last").exists():
            _initialize(self.segmenter, Path(self.settings.initialize_from))
        # Frozen ones too: `start_epoch` may thaw them. What has no gradient, the optimiser leaves as it is.
        self.parameters = [*self.segmenter.parameters(), *self.auxiliary.parameters()]
        self.model = nn.ModuleDict({"segmenter": self.segmenter, "auxiliary": self.auxiliary}).to(fabric.device)
        # Fabric wraps what is called; the loop calls `forward` of one module, so that precision covers all of it.
        self.optimizer = make_optimizer(self.parameters, self.settings)
        objective = Objective(self.segmenter, self.auxiliary, self.segmentation_loss, self.auxiliary_weights)
        self.wrapped, self.wrapped_optimizer = fabric.setup(objective, self.optimizer)
        decay = self.settings.average_decay
        self.average = (
            AveragedModel(self.segmenter, multi_avg_fn=moving_average(decay), use_buffers=True) if decay else None
        )
        self.progression = Progression()
        self.stages = divide_epochs(self.segmenter.stages, self.settings.epochs)
        self.slices: Slices | Volumes = experiment.training_slices()
        self.batch_size = self.settings.batch_size
        if self.segmenter.batching == "volume":
            self.slices, self.batch_size = Volumes(self.slices), 1
        self.steps_per_epoch = ShuffledBatches.per_epoch(len(self.slices), self.batch_size)
        self.total_steps = self.settings.epochs * self.steps_per_epoch
        self.stop_requested = False

    @property
    def evaluated(self) -> Segmenter:
        """The weights that validation and evaluation use."""
        return cast(Segmenter, self.average.module) if self.average is not None else self.segmenter

    @property
    def finished(self) -> bool:
        return len(self.progression.history) >= self.settings.epochs or self._patience_is_over

    @property
    def _patience_is_over(self) -> bool:
        """Whether the last `patience` validations brought nothing better."""
        progression, patience = self.progression, self.settings.patience
        later = [row for row in progression.history if row["epoch"] > progression.best_epoch]
        return patience is not None and sum("validation_dsc" in row for row in later) >= patience

    def stage(self, epoch: int) -> Stage:
        """The stage that an epoch, counted from 0, belongs to."""
        return next(stage for stage in self.stages if epoch < stage.end)

    def request_stop(self) -> None:
        """End after the step at hand, saved."""
        self.stop_requested = True

    def fit(self) -> None:
        """Train to the last epoch, from wherever the run stands; save on the way.

        Raises KeyboardInterrupt after a termination signal, and RunError where the loss or a weight is no number.
        """
        progression, device, recipe = self.progression, self.fabric.device, self.experiment.recipe
        with (
            watching(recipe, self.folder, progression.step) as watch,
            progress_bar() as bar,
            on_termination(self.request_stop),
        ):
            task = bar.add_task("training", total=self.total_steps, completed=progression.step)
            begun, first = time.monotonic(), len(progression.history)
            for epoch in range(first, self.settings.epochs):
                started, slices = time.monotonic(), 0
                self._start_epoch(epoch)
                sums = {name: torch.tensor(value).to(device) for name, value in progression.sums.items()}
                for batch in self._batches(epoch):
                    for name, value in self.training_step(batch).items():
                        sums[name] = sums[name] + value if name in sums else value
                    slices += len(batch.case)
                    bar.update(task, advance=1)
                    if self.stop_requested:
                        break
                progression.sums = {name: value.item() for name, value in sums.items()}
                seconds = time.monotonic() - started
                progression.seconds += seconds
                self._check_numbers(epoch)
                if not self.stop_requested:
                    validation = self._validate(epoch)
                    row = self._finish_epoch(epoch, validation, slices / seconds)
                    watch.log(row, progression.step)
                    if validation is not None and validation.pictures:
                        watch.show(validation.pictures, epoch + 1)
                    left = (time.monotonic() - begun) / (epoch + 1 - first) * (self.settings.epochs - epoch - 1)
                    line = describe(row, self.settings.epochs, stage=self.stage(epoch).name, seconds_left=left)
                    bar.console.print(line, highlight=False, soft_wrap=True)
                if self.stop_requested:  # also where the signal came during validation
                    self._save("last")
                    bar.console.print(
                        f"stopped after step {progression.step} of {self.total_steps} and saved; the same command "
                        "goes on from there",
                        highlight=False,
                    )
                    raise KeyboardInterrupt
                if self.finished and epoch + 1 < self.settings.epochs:
                    bar.console.print(
                        f"finished early: nothing better in {self.settings.patience} validations after epoch "
                        f"{progression.best_epoch}",
                        highlight=False,
                    )
                    break

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Forward, backward, one step of the optimiser; returns the terms of the loss, detached."""
        step = self.progression.step
        stage = self.stage(step // self.steps_per_epoch)
        rate = learning_rate(self.settings, *stage.place(step, self.steps_per_epoch))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_key(self.experiment.recipe.seed, step))  # dropout and the like: a function of the step
        # Behind a function, because Fabric would take the batch apart to cast it, and cannot rebuild what is frozen.
        terms: dict[str, Tensor] = self.wrapped(lambda: batch)
        loss = torch.stack(list(terms.values())).sum()
        self.fabric.backward(loss)
        if self.settings.gradient_clip is not None:
            self.fabric.clip_gradients(self.wrapped, self.wrapped_optimizer, max_norm=self.settings.gradient_clip)
        self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.segmenter)
        self.progression.step += 1
        return {**{name: term.detach() for name, term in terms.items()}, "loss": loss.detach()}

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """What is left of an epoch, on the device."""
        device, recipe = self.fabric.device, self.experiment.recipe
        augmentation = Augmentation(recipe.augmentation, recipe.seed) if recipe.augmentation.on == "device" else None
        loader = training_loader(
            self.slices,
            self.batch_size,
            seed=recipe.seed,
            epoch=epoch,
            start=self.progression.step - epoch * self.steps_per_epoch,
            workers=self.settings.workers,
            pin_memory=device.type == "cuda",
        )
        for batch in cast(Iterator[Batch], loader):
            moved = batch.to(device, non_blocking=True)
            if augmentation is not None and self.segmenter.batching == "volume":
                moved = augmentation.of_volume(moved, epoch=epoch)
            elif augmentation is not None:
                moved = augmentation.of_batch(moved, slice_keys(batch), epoch=epoch)
            yield replace(moved, mask=moved.mask.long())

    def _start_epoch(self, epoch: int) -> None:
        self.model.train()
        stage = self.stage(epoch)
        self.progression.stage = self.stages.index(stage)
        start_stage = self.segmenter.optional("start_stage")
        if start_stage is not None and stage.name:
            start_stage(stage.name)
        start_epoch = self.segmenter.optional("start_epoch")
        if start_epoch is not None:
            start_epoch(epoch, self.settings.epochs)

    def _check_numbers(self, epoch: int) -> None:
        """Stop before a checkpoint is overwritten with what can't be mended."""
        weights = torch.stack([parameter.isfinite().all() for parameter in self.parameters]).all()
        what = "" if weights else "A weight is no finite number"
        if not math.isfinite(self.progression.sums.get("loss", 0.0)):
            what = f"The loss is {self.progression.sums['loss']}"
        if what:
            kept = "The last good checkpoint is kept" if self.folder.checkpoint("last").exists() else "Nothing is saved"
            raise RunError(
                f"{what} in epoch {epoch + 1}, up to step {self.progression.step}. {kept}. Lower "
                "training.learning_rate, set training.gradient_clip, or use precision 32-true, and start anew with "
                "--fresh."
            )

    def _validate(self, epoch: int) -> Validation | None:
        """How the validation cases are segmented, where it is time to ask."""
        settings, last = self.settings, epoch + 1 == self.settings.epochs
        whole = self.stage(epoch) == self.stages[-1]  # before, a part of the network has learned nothing yet
        if not last and not (whole and (epoch + 1) % settings.validate_every == 0):
            return None
        self.evaluated.eval()
        drawn = drawn_in(epoch + 1, every=settings.overlay_every, validate_every=settings.validate_every, last=last)
        pictures = PICTURES if drawn else 0
        return validate(self.experiment, self.evaluated, "validation", self.fabric.device, pictures=pictures)

    def _finish_epoch(self, epoch: int, validation: Validation | None, slices_per_second: float) -> dict[str, float]:
        """Save where it is time to; returns the epoch's row of the log."""
        progression = self.progression
        row: dict[str, float] = {"epoch": epoch + 1, "step": progression.step}
        row |= {f"train_{name}": value / self.steps_per_epoch for name, value in progression.sums.items()}
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if len(self.stages) > 1:
            row["stage"] = progression.stage + 1
        if validation is not None:
            row["validation_dsc"] = validation.dsc
            row |= {f"validation_dsc_{name}": dsc for name, dsc in validation.groups.items()}
        row |= {"slices_per_second": slices_per_second, "memory_bytes": peak_memory(self.fabric.device)}
        better = validation is not None and validation.dsc > progression.best_dsc
        if better:
            progression.best_dsc, progression.best_epoch = row["validation_dsc"], epoch + 1
        progression.history.append(row)
        progression.sums = {}
        if better:
            self._save("best")
        if self.finished or (epoch + 1) % self.settings.checkpoint_every == 0:
            self._save("last")
            self.folder.write_history(progression.history)
        return row

    def _save(self, name: str) -> None:
        """`best` is what evaluation needs, `last` also what training needs to go on."""
        state: dict[str, Any] = {"model": self.evaluated.state_dict(), "progression": asdict(self.progression)}
        if name == "last":
            state |= {
                "training": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict() if self.average is not None else None,
                "precision": self.fabric.strategy.precision.state_dict(),
            }
        self.folder.save_checkpoint(name, state)

    def resume(self) -> None:
        """Go on where `last` stands; raises RunError for a checkpoint that doesn't fit, or that has more epochs."""
        state = self.folder.load_checkpoint("last")
        try:
            self.model.load_state_dict(state["training"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.fabric.strategy.precision.load_state_dict(state["precision"])
            self.progression = Progression(**state["progression"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"'{self.folder.checkpoint('last')}' does not fit this recipe and this version of textseg: "
                f"{first_line(error)} Add --fresh to move the old run aside and start anew."
            ) from error
        trained = len(self.progression.history)
        if trained > self.settings.epochs:
            raise RunError(
                f"'{self.folder.path}' has trained {trained} epochs, more than training.epochs "
                f"({self.settings.epochs}). Raise it, or add --fresh to move the old run aside."
            )
        now = self.stages[min(self.progression.stage, len(self.stages) - 1)]
        if now.first > trained:
            raise RunError(
                f"'{self.folder.path}' is in stage '{now.name}' after {trained} epochs, which with training.epochs "
                f"{self.settings.epochs} would begin after {now.first}. Let the run end before you raise it so far, or "
                "add --fresh to move the old run aside."
            )


def _initialize(segmenter: Segmenter, place: Path) -> None:
    path = place if place.suffix == ".ckpt" else RunFolder.existing(place).checkpoint("best")
    try:
        segmenter.load_state_dict(load_checkpoint(path)["model"])
    except (KeyError, RuntimeError) as error:
        raise RunError(
            f"training.initialize_from: '{path}' does not fit the model of this recipe: {first_line(error)}"
        ) from error


def _key(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63
