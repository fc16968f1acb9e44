"""The loop that finds the weights, on Lightning Fabric."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from textseg.contracts import Batch
from textseg.data.augmentation import Augmentation
from textseg.data.slices import ShuffledBatches, Slices, Volumes, training_loader
from textseg.evaluation.evaluate import Validation, validate
from textseg.models.segmenter import Segmenter
from textseg.models.stages import Stage, divide_epochs
from textseg.recipe.loading import TrainingSettings
from textseg.runs.experiment import Experiment
from textseg.runs.folder import RunFolder
from textseg.system import distributed as processes
from textseg.system.messages import counted
from textseg.system.progress import progress_bar
from textseg.training.checkpoints import Part, Progression, initialize, restore
from textseg.training.launching import check_shares
from textseg.training.loggers import PICTURES, describe, drawn_in, peak_memory, watching
from textseg.training.number_checks import LOWEST_SCALE, NumberCheck, lost_numbers, seed_step
from textseg.training.objective import Objective
from textseg.training.optimization import learning_rate, make_optimizer, moving_average
from textseg.training.signals import on_termination


class Training:
    """A run in memory: weights, optimiser, and the loop over them.

    Where the run stands follows from its step alone: the place in the epoch, the stage of a network that is trained
    part by part, the learning rate and every random number. A run that goes on from a checkpoint is therefore equal to
    one that was never interrupted.

    Raises RunError for weights in `initialize_from` that don't fit, RecipeError for fewer epochs than stages.
    """

    def __init__(self, experiment: Experiment, folder: RunFolder, fabric: Fabric) -> None:
        self.experiment, self.folder, self.fabric = experiment, folder, fabric
        self.settings: TrainingSettings = experiment.recipe.training
        torch.manual_seed(experiment.recipe.seed)
        self.segmenter = experiment.segmenter()
        self.auxiliary = experiment.auxiliary_losses(self.segmenter)
        self.segmentation_loss = experiment.segmentation_loss()
        self.auxiliary_weights = {spec.use: spec.weight for spec in experiment.recipe.auxiliary_losses}
        if processes.count() > 1 and fabric.device.type == "cuda":  # torch has none for processors
            nn.SyncBatchNorm.convert_sync_batchnorm(self.segmenter)  # type: ignore[no-untyped-call]
        if self.settings.initialize_from and not folder.checkpoint("last").exists():
            initialize(self.segmenter, Path(self.settings.initialize_from))
        # Frozen ones too: `start_epoch` may thaw them. What has no gradient, the optimiser leaves as it is.
        self.parameters = [*self.segmenter.parameters(), *self.auxiliary.parameters()]
        self.model = nn.ModuleDict({"segmenter": self.segmenter, "auxiliary": self.auxiliary}).to(fabric.device)
        # Fabric wraps what is called; the loop calls `forward` of one module, so that precision covers all of it.
        self.scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
        self.optimizer = make_optimizer(self.parameters, self.settings, scaled=self.scaled)
        parts = self.segmenter, self.auxiliary, self.segmentation_loss, self.auxiliary_weights
        objective = Objective(*parts, compiled=self.settings.compile)
        self.wrapped, self.wrapped_optimizer = fabric.setup(objective, self.optimizer)
        self.objective, self.thawed = objective, [parameter.requires_grad for parameter in self.parameters]
        decay = self.settings.average_decay
        self.average = (
            AveragedModel(self.segmenter, multi_avg_fn=moving_average(decay), use_buffers=True) if decay else None
        )
        self.progression = Progression(planned_epochs=self.settings.epochs)
        self.stages = divide_epochs(self.segmenter.stages, self.settings.epochs)
        self.slices: Slices | Volumes = experiment.training_slices()
        self.batch_size = self.settings.batch_size
        if self.segmenter.batching == "volume":
            self.slices, self.batch_size = Volumes(self.slices), 1
        check_shares(min(self.batch_size, len(self.slices)), self.segmenter.batching)
        self.steps_per_epoch = ShuffledBatches.per_epoch(len(self.slices), self.batch_size)
        self.total_steps = self.settings.epochs * self.steps_per_epoch
        self.numbers = NumberCheck(fabric.device)
        self.stop_requested = False

    @property
    def evaluated(self) -> Segmenter:
        """The weights that validation and evaluation use."""
        return cast(Segmenter, self.average.module) if self.average is not None else self.segmenter

    @property
    def silent(self) -> bool:
        """Whether another process writes what this one would."""
        return processes.rank() > 0

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
        without = recipe.training.loggers if self.silent else ()
        with (
            watching(recipe, self.folder, progression.step, without=without) as watch,
            progress_bar() as bar,
            on_termination(self.request_stop),
        ):
            task = bar.add_task("training", total=self.total_steps, completed=progression.step)
            begun, first = time.monotonic(), len(progression.history)
            for epoch in range(first, self.settings.epochs):
                started, slices, stopping = time.monotonic(), 0, False
                self._start_epoch(epoch)
                sums = {name: torch.tensor(value).to(device) for name, value in progression.sums.items()}
                for batch in self._batches(epoch):
                    for name, value in self.training_step(batch).items():
                        sums[name] = sums[name] + value if name in sums else value
                    slices += len(batch.case) * processes.count()
                    bar.update(task, advance=1)
                    if stopping := processes.any_says(self.stop_requested):
                        break
                shares = processes.gathered({name: value.item() for name, value in sums.items()})
                progression.sums = {name: sum(share[name] for share in shares) / len(shares) for name in sums}
                progression.seconds += (seconds := time.monotonic() - started)
                self._check_numbers(weights=True)
                if not stopping:
                    validation = self._validate(epoch)
                    row = self._finish_epoch(epoch, validation, slices / seconds)
                    watch.log(row, progression.step)
                    if validation is not None and validation.pictures and not self.silent:
                        watch.show(validation.pictures, epoch + 1)
                    left = (time.monotonic() - begun) / (epoch + 1 - first) * (self.settings.epochs - epoch - 1)
                    line = describe(row, self.settings.epochs, stage=self.stage(epoch).name, seconds_left=left)
                    bar.console.print(line, highlight=False, soft_wrap=True)
                    stopping = processes.any_says(self.stop_requested)  # the signal may have come during validation
                if stopping:
                    self._save("last")
                    processes.gathered("saved")  # a process that ended sooner could be the end of the one that saves
                    said = f"stopped after step {progression.step} of {self.total_steps} and saved"
                    bar.console.print(f"{said}; the same command goes on from there", highlight=False)
                    raise KeyboardInterrupt
                if self.finished and epoch + 1 < self.settings.epochs:
                    bar.console.print(
                        f"finished early: nothing better in {counted(self.settings.patience or 0, 'validation')} "
                        f"after epoch {progression.best_epoch}",
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
        seed_step(self.experiment.recipe.seed, step, processes.rank())
        # Behind a function, because Fabric would take the batch apart to cast it, and cannot rebuild what is frozen.
        terms: dict[str, Tensor] = self.wrapped(lambda: batch)
        loss = torch.stack(list(terms.values())).sum()
        self.fabric.backward(loss)
        self.numbers.note(step, loss.detach(), self._clip())
        if self.numbers.due(step):
            self._check_numbers()
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
            share=(processes.rank(), processes.count()),
        )
        for packed in loader:
            moved = packed.to(device, non_blocking=True)
            yield self.slices.unpack(moved if augmentation is None else moved.distorted(augmentation, epoch=epoch))

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
        thawed = [parameter.requires_grad for parameter in self.parameters]
        if processes.count() > 1 and self.thawed != thawed:
            # What makes one gradient of those of all processes knows only what was trained when it was made.
            self.wrapped, self.thawed = None, thawed
            gc.collect()  # the old one listens to the parameters as long as it lives
            self.wrapped = self.fabric.setup_module(self.objective)

    def _clip(self) -> Tensor | None:
        """The norm of the gradient, which is clipped where the recipe says so; None where the loss is scaled."""
        norm: Tensor | None = None
        if self.settings.gradient_clip is not None:
            norm = self.fabric.clip_gradients(
                self.wrapped,
                self.wrapped_optimizer,
                max_norm=self.settings.gradient_clip,
                error_if_nonfinite=False,  # it would wait for the device in every step
            )
        elif not self.scaled:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return None if self.scaled else norm

    def _check_numbers(self, *, weights: bool = False) -> None:
        """Stop before a checkpoint is overwritten with what can't be mended."""
        found = self.numbers.first()
        if found is not None:
            raise lost_numbers(f"The {found[0]} is no finite number", self.folder, *self._batch(found[1]))
        if weights and not torch.stack([parameter.isfinite().all() for parameter in self.parameters]).all():
            raise lost_numbers("A weight is no finite number", self.folder, self.progression.step - 1)
        if weights and self.scaled and self.fabric.strategy.precision.state_dict()["scale"] < LOWEST_SCALE:
            raise lost_numbers("The gradient overflows at any scale", self.folder, self.progression.step - 1)

    def _batch(self, step: int) -> tuple[int, list[tuple[str, str | None]]]:
        """A step with the slices of its batch and their prompts, which follow from it."""
        epoch, start = divmod(step, self.steps_per_epoch)
        seed = self.experiment.recipe.seed
        order = ShuffledBatches(len(self.slices), self.batch_size, seed=seed, epoch=epoch, start=start)
        return step, [self.slices.named(draw) for draw in next(iter(order))]

    def _validate(self, epoch: int) -> Validation | None:
        """How the validation cases are segmented, where it is time to ask."""
        settings, last = self.settings, epoch + 1 == self.settings.epochs
        whole = self.stage(epoch) == self.stages[-1]  # before, a part of the network has learned nothing yet
        if not last and not (whole and (epoch + 1) % settings.validate_every == 0):
            return None
        processes.same_buffers(self.evaluated)
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
            if not self.silent:
                self.folder.write_history(progression.history)
        return row

    def _save(self, name: str) -> None:
        """`best` is what evaluation needs, `last` also what training needs to go on."""
        if self.silent:
            return
        state: dict[str, Any] = {"model": self.evaluated.state_dict(), "progression": asdict(self.progression)}
        if name == "last":
            state |= {key: None if part is None else part.state_dict() for key, part in self._parts.items()}
        self.folder.save_checkpoint(name, state)

    def resume(self) -> str:
        """Go on where `last` stands, and say whether its schedule was another one; empty if not.

        Raises RunError for a checkpoint that doesn't fit, or that has more epochs.
        """
        self.progression = restore(self.folder, self._parts, self.stages, self.settings.epochs)
        return self.progression.plan(self.settings, staged=len(self.stages) > 1)

    @property
    def _parts(self) -> dict[str, Part | None]:
        """What training needs to go on, by its key in a checkpoint."""
        precision = self.fabric.strategy.precision
        return {"training": self.model, "optimizer": self.optimizer, "average": self.average, "precision": precision}
