"""The training loop: the loss of a batch, a training step, and the epochs."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import SumMetric

from textseg.contracts import IGNORED, Batch, HasEpochStart, HasLosses, HasStages, SegmenterOutput
from textseg.data.slices import ShuffledBatches, Slices, Volumes, check_shared_memory, training_loader
from textseg.errors import RecipeError, RunError
from textseg.evaluation.evaluate import Validation, validate
from textseg.hookspecs import Epoch, Fit
from textseg.models.segmenter import Segmenter
from textseg.models.stages import Stage, divide_epochs
from textseg.randomness import step_seed
from textseg.recipe.schema import SUMS, TrainingSettings
from textseg.registry.component import Component
from textseg.reports.run_report import example_picture
from textseg.runs.experiment import Experiment
from textseg.runs.folder import RunFolder, first_line
from textseg.system import distributed
from textseg.system.messages import counted
from textseg.training.checkpoints import Part, Progression, initialize, restore
from textseg.training.launching import check_shares
from textseg.training.loggers import PICTURES, TrainingDisplay, displayed, drawn_in, peak_memory
from textseg.training.number_checks import LOWEST_SCALE, NumberCheck, lost_numbers
from textseg.training.optimization import LearningRates, moving_average, unfuse
from textseg.training.output_checks import OutputChecks
from textseg.training.signals import on_termination


class Objective(nn.Module):
    """The function that training minimises: it returns the weighted terms of the loss of a batch.

    Fabric wraps this module, which contains the model and the losses. Therefore the gradients of losses with parameters
    are also averaged over processes, and losses are computed at the precision of the recipe.
    """

    def __init__(self, segmenter: Segmenter, experiment: Experiment) -> None:
        super().__init__()
        self.segmenter, self.auxiliary = segmenter, experiment.auxiliary_losses(segmenter)
        self.segmentation_loss = experiment.segmentation_loss()
        self.checks = OutputChecks(experiment, segmenter, self.segmentation_loss, self.auxiliary)
        self.weights = {spec.name: spec.weight for spec in experiment.recipe.auxiliary_losses}
        # The function is compiled, not the module: names in checkpoints stay, and validation runs uncompiled.
        self.compiled = torch.compile(segmenter.forward) if experiment.recipe.training.compile else None

    def _segment(self, batch: Batch) -> SegmenterOutput:
        inputs = batch.image, batch.text, batch.geometry if self.segmenter.reads_geometry else None
        if self.compiled is None:
            return cast(SegmenterOutput, self.segmenter(*inputs))
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self.compiled(*inputs)
        except TorchDynamoException as error:
            raise RunError(
                f"training.compile: the model could not be compiled here: {first_line(error)} Install the C++ compiler "
                "or Triton that torch.compile needs, or leave training.compile out."
            ) from error

    def forward(self, give_batch: Callable[[], Batch]) -> dict[str, Tensor]:
        """Return the weighted terms of the loss by name, each a scalar.

        The argument is a function that returns the batch, because Fabric would take a batch apart to cast it and cannot
        rebuild a frozen dataclass.
        """
        batch = give_batch()
        # 1. The model.
        output = self._segment(batch)
        self.checks.check_output(output, batch)
        # 2. The segmentation loss, or the losses of the network that replace it.
        part, usual = self.segmenter.part_with(HasLosses), self.segmentation_loss
        if part is None:
            terms: dict[str, Tensor] = usual(output.logits, batch.mask)
        else:
            terms = self.checks.own_terms(part.losses(output, batch, usual))
        # 3. The auxiliary losses. A loss with the name of an earlier term is added to that term.
        batch = without_ignored(batch) if self.segmentation_loss.ignores and self.auxiliary else batch
        for name, loss in self.auxiliary.items():
            term = self.weights[name] * loss(output, batch)
            terms[name] = terms[name] + term if name in terms else term
        return terms


def without_ignored(batch: Batch) -> Batch:
    """Return a batch in whose mask ignored pixels are background, so that they belong to no structure."""
    return replace(batch, mask=batch.mask.masked_fill(batch.mask == IGNORED, 0))


class Training:
    """A training in memory: weights, optimiser, and the training loop.

    The state of a run follows from its step alone: the position in the epoch, the stage of a network that is trained
    part by part, the learning rate and every random number. A resumed run is therefore equal to an uninterrupted run.

    Raises RunError if the weights in `initialize_from` do not fit, and RecipeError for fewer epochs than stages.
    """

    def __init__(self, experiment: Experiment, folder: RunFolder, fabric: Fabric) -> None:
        self.experiment, self.folder, self.fabric = experiment, folder, fabric
        self.settings: TrainingSettings = experiment.recipe.training
        # The model and the losses, with random weights from the seed, or with the weights that the recipe names.
        torch.manual_seed(experiment.recipe.seed)
        self.segmenter = experiment.segmenter()
        self.segmenter.mirrors = ()  # validation reads each slice once
        self.objective = Objective(self.segmenter, experiment)
        auxiliary = self.objective.auxiliary
        if distributed.count() > 1 and fabric.device.type == "cuda":  # torch has no such layer for CPUs
            nn.SyncBatchNorm.convert_sync_batchnorm(self.segmenter)  # type: ignore[no-untyped-call]
        if self.settings.initialize_from and not folder.checkpoint("last").exists():
            initialize(self.segmenter, Path(self.settings.initialize_from))
        loss = self.objective.segmentation_loss
        parts = {"segmenter": self.segmenter, "auxiliary": auxiliary, "segmentation_loss": loss}
        self.model = nn.ModuleDict(parts).to(fabric.device)
        # This includes frozen parameters: `start_epoch` may unfreeze them. The optimiser skips those without gradient.
        named = dict(self.model.named_parameters())
        self.parameters = list(named.values())
        # The optimiser, and the wrapping by Fabric for precision and for several processes.
        self.scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
        self.optimizer = experiment.optimizer(named)
        if self.scaled and self.settings.gradient_clip is not None:
            unfuse(self.optimizer)
        self.rates = LearningRates(self.optimizer, self.settings.learning_rate)
        self.wrapped, self.wrapped_optimizer = fabric.setup(self.objective, self.optimizer)
        self.unfrozen = [parameter.requires_grad for parameter in self.parameters]
        decay = self.settings.average_decay
        self.average = (
            AveragedModel(self.segmenter, multi_avg_fn=moving_average(decay), use_buffers=True) if decay else None
        )
        # The data, and the number of steps that follows from them.
        self.slices: Slices | Volumes = experiment.training_slices(context=self.segmenter.context_slices)
        self.batch_size = self.settings.batch_size
        if self.segmenter.batching == "volume":
            if self.settings.foreground_share:
                raise RecipeError("training.foreground_share: this network reads whole cases. Remove the key.")
            self.slices, self.batch_size = Volumes(self.slices), 1
        processes = self.settings.devices * self.settings.nodes
        check_shares(min(self.batch_size, len(self.slices)), self.segmenter.batching, processes)
        if self.settings.workers:
            check_shared_memory(self.slices, self.batch_size, self.settings.workers)
        self.steps_per_epoch = ShuffledBatches.per_epoch(len(self.slices), self.batch_size)
        self.epochs = self.settings.epochs_of(self.steps_per_epoch)
        self.total_steps = self.epochs * self.steps_per_epoch
        self.stages = divide_epochs(self.segmenter.stages, self.epochs)
        per_epoch = self.steps_per_epoch
        self.schedules = [experiment.schedule((stage.end - stage.first) * per_epoch) for stage in self.stages]
        self.progression = Progression(planned_epochs=self.epochs)
        self.numbers = NumberCheck(fabric.device)
        self.stop_requested = False

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the weights with one batch; returns the terms of the loss and their sum, detached."""
        step = self.progression.step
        self._set_learning_rate(step)
        torch.manual_seed(step_seed(self.experiment.recipe.seed, step, distributed.rank()))  # dropout and the like
        # 1. Forward: the model, then the losses; see `Objective.forward`.
        checks = self.objective.checks  # of what components return, in the first step
        with checks.watched(batch):
            terms: dict[str, Tensor] = self.wrapped(lambda: batch)
        checks.check_terms(terms)
        loss = torch.stack(list(terms.values())).sum()
        # 2. Backward. With several processes, this also averages the gradients over them.
        self.fabric.backward(loss)
        checks.check_gradients(terms)
        # 3. Clip the gradient. A loss or gradient that is not finite is noted before it reaches the weights.
        detached = {name: term.detach() for name, term in terms.items()}
        self.numbers.note(step, detached, self._clip())
        if self.numbers.due(step):
            self._check_numbers()
        # 4. Step: the optimiser updates the weights, then their moving average is updated.
        self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.segmenter)
        self.progression.step += 1
        return {**detached, "loss": loss.detach()}

    def fit(self) -> None:
        """Train from the current step to the last epoch, and save checkpoints.

        Raises KeyboardInterrupt after a termination signal, and RunError if the loss or a weight is not finite.
        """
        with (
            self._displayed() as display,
            on_termination(self.request_stop),
        ):
            self._notify("textseg_fit_started", fit=self._fit)
            for epoch in range(len(self.progression.history), self.epochs):
                self._start_epoch(epoch)
                stopping, speed = self._train_epoch(epoch, display)
                self._check_numbers(weights=True)  # before a checkpoint is written
                if not stopping:
                    validation = self._validate(epoch)
                    row = self._finish_epoch(epoch, validation, speed)
                    self._show_epoch(display, row, validation)
                    self._notify("textseg_epoch_finished", epoch=self._epoch(row, validation))
                    stopping = distributed.any_says(self.stop_requested)  # a signal may come during validation
                if stopping:
                    self._save_and_stop(display)
                if self.finished and epoch + 1 < self.epochs:
                    waited, best = counted(self.settings.patience or 0, "validation"), self.progression.best_epoch
                    display.print(f"finished early: no better score in {waited} after epoch {best}")
                    break
        self._notify("textseg_fit_finished", fit=self._fit)

    def _train_epoch(self, epoch: int, display: TrainingDisplay) -> tuple[bool, float]:
        """Train the remaining steps of an epoch; returns True if the run must stop, and slices per second."""
        progression, device = self.progression, self.fabric.device
        started, slices, stopping = time.monotonic(), 0, False
        # A run that was stopped inside an epoch continues with the sums of the earlier steps.
        sums = defaultdict[str, SumMetric](lambda: SumMetric(nan_strategy="disable").to(device))  # NumberCheck looks
        for name, total in progression.sums.items():
            sums[name].update(total)
        for batch in self._batches(epoch):
            for name, value in self.training_step(batch).items():
                sums[name].update(value)
            slices += len(batch.case) * distributed.count()
            display.advance()
            if stopping := distributed.any_says(self.stop_requested):
                break
        progression.sums = {name: float(metric.compute()) / distributed.count() for name, metric in sums.items()}
        seconds = time.monotonic() - started
        progression.seconds += seconds
        return stopping, slices / seconds

    def _show_epoch(self, display: TrainingDisplay, row: dict[str, float], validation: Validation | None) -> None:
        """Print and log a finished epoch, with pictures of validation slices in the epochs that the recipe sets."""
        epoch, step = int(row["epoch"]), int(row["step"])
        display.show_epoch(row, self.stage(epoch - 1).name)
        if validation is not None and validation.examples and not self.silent:
            pictures = [example_picture(example, self.experiment.atlas) for example in validation.examples]
            display.show_pictures(pictures, epoch, step)

    def _displayed(self) -> AbstractContextManager[TrainingDisplay]:
        steps, silent = self.total_steps, self.silent
        return displayed(self.experiment, self.folder, self.progression, steps, self.epochs, silent=silent)

    def _notify(self, hook: str, **about: Fit | Epoch) -> None:
        """Call a hook about this training in the first process; the others wait for it at their next exchange."""
        if not self.silent:
            run = self.experiment.run(self.folder.path, self.folder.read())
            self.experiment.registry.notify(hook, run, **about)

    @property
    def _fit(self) -> Fit:
        progression = self.progression
        history = tuple(MappingProxyType(row) for row in progression.history)
        return Fit(self.epochs, self.total_steps, progression.step, history, progression.best_epoch)

    def _epoch(self, row: dict[str, float], validation: Validation | None) -> Epoch:
        number, prefix = int(row["epoch"]), "validation_"
        scores = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
        return Epoch(
            number=number,
            epochs=self.epochs,
            step=self.progression.step,
            numbers=MappingProxyType(row),
            validation=None if validation is None else MappingProxyType(scores),
            best=self.progression.best_epoch == number,
        )

    def _save_and_stop(self, display: TrainingDisplay) -> NoReturn:
        self._save("last")
        distributed.gathered("saved")  # wait: if another process ended now, the process that saves could be ended too
        steps = f"step {self.progression.step} of {self.total_steps}"
        display.print(f"stopped after {steps} and saved; the same command continues from there")
        raise KeyboardInterrupt

    @property
    def evaluated(self) -> Segmenter:
        """The model for validation and evaluation: with the moving average of the weights if the recipe asks for it."""
        return cast(Segmenter, self.average.module) if self.average is not None else self.segmenter

    @property
    def silent(self) -> bool:
        """True in all processes except the first; only the first process writes and prints."""
        return distributed.rank() > 0

    @property
    def finished(self) -> bool:
        """True after the last epoch, and after early stopping."""
        return self.progression.is_over(self.settings, self.epochs)

    def stage(self, epoch: int) -> Stage:
        """Return the stage of an epoch, which is counted from 0."""
        return next(stage for stage in self.stages if epoch < stage.end)

    def request_stop(self) -> None:
        """Request that the training saves and ends after the current step."""
        self.stop_requested = True

    def resume(self) -> str:
        """Continue from the checkpoint `last`; returns a note if its schedule differs from the recipe's, else "".

        Raises RunError if the checkpoint does not fit, or has more epochs.
        """
        self.progression = restore(self.folder, self._parts, self.stages, self.epochs)
        return self.progression.plan(self.epochs, self._differs_from_plan_of)

    def _differs_from_plan_of(self, epochs: int) -> bool:
        """Return True if stages or learning rates with another number of epochs differ from those of this training."""
        steps = min(epochs * self.steps_per_epoch, self.total_steps)
        before, now = self.experiment.schedule(epochs * self.steps_per_epoch), self.schedules[0]
        return len(self.stages) > 1 or any(before(step) != now(step) for step in range(0, steps, max(1, steps // 16)))

    def _set_learning_rate(self, step: int) -> None:
        stage = self.stage(step // self.steps_per_epoch)
        schedule = self.schedules[self.stages.index(stage)]
        self.rates.set(schedule(step - stage.first * self.steps_per_epoch))

    def _clip(self) -> Tensor | None:
        """Clip the gradient if the recipe asks for it; returns its norm, or None if the loss is scaled."""
        norm: Tensor | None = None
        if (limit := self.settings.gradient_clip) is not None:
            # `error_if_nonfinite=True` would wait for the device in every step.
            model, optimizer = self.wrapped, self.wrapped_optimizer
            norm = self.fabric.clip_gradients(model, optimizer, max_norm=limit, error_if_nonfinite=False)
        elif not self.scaled:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return None if self.scaled else norm

    def _check_numbers(self, *, weights: bool = False) -> None:
        """Raise RunError for a loss, a gradient or a weight that is not finite, before it is saved in a checkpoint."""
        if (first := self.numbers.first()) is not None:
            raise self._lost(*first)
        if weights and not self._finite_weights():
            raise self._lost_weights(self.progression.step - 1)
        if weights and self.scaled and self.fabric.strategy.precision.state_dict()["scale"] < LOWEST_SCALE:
            raise lost_numbers("The gradient overflows at any scale", self.folder, self.progression.step - 1)

    def _finite_weights(self) -> bool:
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.parameters]).all())

    def _lost_weights(self, step: int) -> RunError:
        """Return the error for weights that are not finite after a step."""
        what = "A weight is no finite number"
        if self.numbers.every > 1:  # a GPU may have lost the loss or the gradient before
            return lost_numbers(what, self.folder, step)
        # A CPU looks at the loss and the gradient in every step, before the optimiser moves the weights.
        component = self.experiment.registry.component("optimizer", self.experiment.recipe.training.optimizer.use)
        advice = (
            f"The loss and the gradient of this step were finite, and optimizer '{component.name}' of "
            f"{component.origin} moved a weight to infinity or NaN. Lower training.learning_rate, or look for a "
            f"division by zero there, and start anew with --fresh. {component.check}"
        )
        return lost_numbers(what, self.folder, step, advice=advice)

    def _lost(self, step: int, names: Sequence[str]) -> RunError:
        """Return the error for numbers of a step that are not finite; see `NumberCheck.first`."""
        slices, terms = self._slices_of(step), self.numbers.terms
        if self.numbers.every == 1 and not self._finite_weights():
            return self._lost_weights(step - 1)
        if len(names) > 1 or names[0] in SUMS or len(terms) == 1:  # the model may be the reason
            which = f" ({', '.join(names)})" if names[0] not in SUMS else ""
            name = "gradient" if names == ["gradient"] else "loss"
            return lost_numbers(f"The {name}{which} is no finite number", self.folder, step, slices)
        component, (term,) = self._component_of(names[0]), names
        advice = (
            f"The rest of the loss ({', '.join(name for name in terms if name != term)}) is finite, so look for a "
            f"division by zero or the logarithm of zero in {component.kind} '{component.name}' of {component.origin}, "
            f"or leave the term out, and start anew with --fresh. {component.check}"
        )
        return lost_numbers(f"The term '{term}' of the loss is no finite number", self.folder, step, slices, advice)

    def _component_of(self, term: str) -> Component:
        """Return the component that gives a term of the loss: a loss of the recipe, or else the model."""
        recipe, registry = self.experiment.recipe, self.experiment.registry
        if term in recipe.segmentation_loss:
            return registry.component("segmentation_loss", recipe.segmentation_loss[term].use)
        for loss in recipe.auxiliary_losses:
            if loss.name == term:
                return registry.component("auxiliary_loss", loss.use)
        kind = "network" if recipe.model.network else "fusion"
        spec = recipe.model.network or recipe.model.fusion
        assert spec is not None  # the schema requires one of them
        return registry.component(kind, spec.use)

    def _slices_of(self, step: int) -> list[tuple[str, str | None]]:
        """Return the slices of a step and their prompts, which follow from the step alone."""
        epoch, start = divmod(step, self.steps_per_epoch)
        order = self.experiment.order(len(self.slices), self.batch_size, epoch, start=start)
        return [self.slices.named(draw) for draw in next(iter(order))]

    def _start_epoch(self, epoch: int) -> None:
        """Prepare the model for an epoch: training mode, stage, trainable parameters."""
        self.model.train()
        stage = self.stage(epoch)
        self.objective.checks.due |= epoch == stage.first
        self.progression.stage = self.stages.index(stage)
        if (staged := self.segmenter.part_with(HasStages)) is not None and stage.name:
            staged.start_stage(stage.name)
        if (scheduled := self.segmenter.part_with(HasEpochStart)) is not None:
            scheduled.start_epoch(epoch, self.epochs)
        unfrozen = [parameter.requires_grad for parameter in self.parameters]
        if distributed.count() > 1 and self.unfrozen != unfrozen:
            # DistributedDataParallel knows only the parameters that had a gradient when it was created. A new one is
            # created here. The old one must be deleted first, because it reacts to gradients as long as it exists.
            self.wrapped, self.unfrozen = None, unfrozen
            gc.collect()
            self.wrapped = self.fabric.setup_module(self.objective)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the remaining batches of an epoch, on the device."""
        device = self.fabric.device
        start, share = self.progression.step - epoch * self.steps_per_epoch, (distributed.rank(), distributed.count())
        order = self.experiment.order(len(self.slices), self.batch_size, epoch, start=start, share=share)
        workers, pin_memory = self.settings.workers, device.type == "cuda"
        for packed in training_loader(self.slices, order, workers=workers, pin_memory=pin_memory):
            yield self.slices.unpack(packed.to(device, non_blocking=True))

    def _validate(self, epoch: int) -> Validation | None:
        """Return the scores of the validation cases, or None after an epoch without validation."""
        settings, last = self.settings, epoch + 1 == self.epochs
        # In an earlier stage a part of the network is still untrained, and its score would mean nothing.
        in_last_stage = self.stage(epoch) == self.stages[-1]
        if not last and not (in_last_stage and (epoch + 1) % settings.validate_every == 0):
            return None
        distributed.same_buffers(self.evaluated)
        self.evaluated.eval()
        drawn = drawn_in(epoch + 1, every=settings.overlay_every, validate_every=settings.validate_every, last=last)
        examples = PICTURES if drawn else 0
        return validate(self.experiment, self.evaluated, "validation", self.fabric.device, examples=examples)

    def _finish_epoch(self, epoch: int, validation: Validation | None, slices_per_second: float) -> dict[str, float]:
        """Add the epoch to the history, save checkpoints, and return the row of the epoch in the log."""
        progression = self.progression
        row: dict[str, float] = {"epoch": epoch + 1, "step": progression.step}
        row |= {f"train_{name}": value / self.steps_per_epoch for name, value in progression.sums.items()}
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if len(self.stages) > 1:
            row["stage"] = progression.stage + 1
        if validation is not None:
            row["validation_dsc"] = validation.dsc
            row |= {f"validation_dsc_{name}": dsc for name, dsc in validation.groups.items()}
            if validation.windows_dsc is not None:
                row["validation_windows_dsc"] = validation.windows_dsc
        row |= {"slices_per_second": slices_per_second, "memory_bytes": peak_memory(self.fabric.device)}
        better = validation is not None and validation.score > progression.best_score
        if validation is not None and better:
            progression.best_score, progression.best_epoch = validation.score, epoch + 1
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
        """Write a checkpoint: `best` contains the state for evaluation, `last` also the state to resume training."""
        if self.silent:
            return
        state: dict[str, Any] = {"model": self.evaluated.state_dict(), "progression": asdict(self.progression)}
        if name == "last":
            state |= {key: None if part is None else part.state_dict() for key, part in self._parts.items()}
        self.folder.save_checkpoint(name, state)

    @property
    def _parts(self) -> dict[str, Part | None]:
        """The objects whose state is saved to resume training, by their key in a checkpoint."""
        precision = self.fabric.strategy.precision
        return {"training": self.model, "optimizer": self.optimizer, "average": self.average, "precision": precision}
