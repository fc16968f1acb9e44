"""Checks of what the components of a model return, made on the outputs of a training step itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from textseg.contracts import Batch, Features, HasLosses, HasStages, SegmenterOutput
from textseg.errors import PluginError, RunError
from textseg.models.losses import SegmentationTerms
from textseg.models.segmenter import Segmenter, TextGuidedNetwork
from textseg.registry.component import Component
from textseg.runs.experiment import Experiment
from textseg.system import distributed
from textseg.system.messages import counted
from textseg.training.resources import what_ran_out

FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Parts of messages about the machine: they help more than the name of the component in which they arose.
OF_MACHINE = ("cuda", "cudnn", "cublas", "nccl", "gloo", "does not have a deterministic implementation")


@dataclass(frozen=True)
class Part:
    """A component of the model or of the loss, with the module that it built."""

    component: Component
    module: nn.Module

    def refused(self, expected: str, seen: object) -> PluginError:
        """Return the error for an output that the contract of the kind does not allow."""
        return self.component.refused(expected, f"{seen} in the first batch; the step was not taken")

    def failed(self, error: Exception) -> PluginError:
        """Return the error for an exception inside the component, with the line of its package that raised it."""
        return self.component.failed(error, "in the first batch")


class OutputChecks:
    """Checks of each component in a training step that is `due`: the first one of a process, and of each stage.

    They look at what the step computes in any case, and draw and compute nothing else: the weights stay the same.
    """

    due = True

    def __init__(
        self, experiment: Experiment, segmenter: Segmenter, terms: SegmentationTerms, auxiliary: nn.ModuleDict
    ) -> None:
        self.segmenter, self.class_count = segmenter, experiment.task.class_count
        self.compiled = experiment.recipe.training.compile
        component, model, network = experiment.registry.component, experiment.recipe.model, segmenter.network
        modules: dict[str, Any] = {"network": network}
        if isinstance(network, TextGuidedNetwork):
            modules = {"vision_encoder": network.vision_encoder, "fusion": network.fusion}
        self.model = {kind: Part(component(kind, getattr(model, kind).use), module) for kind, module in modules.items()}
        specs = {spec.name: spec for spec in experiment.recipe.auxiliary_losses}
        self.auxiliary = {
            name: Part(component("auxiliary_loss", specs[name].use), loss) for name, loss in auxiliary.items()
        }
        named = experiment.recipe.segmentation_loss
        self.terms = {
            name: Part(component("segmentation_loss", named[name].use), term) for name, term in terms.terms.items()
        }
        self._running: list[Part] = []
        self._output: SegmenterOutput | None = None

    @contextmanager
    def watched(self, batch: Batch) -> Iterator[None]:
        """Check the outputs of each component during a forward pass. Raises PluginError."""
        if not self.due:
            yield
            return
        # Hooks on the model would be compiled with it; `check_output` looks at a compiled one.
        parts = [*self.terms.values(), *self.auxiliary.values(), *([] if self.compiled else self.model.values())]
        self._running, self._output = [], None
        try:
            with self._hooks(parts, batch):
                yield
        except (*FAULTS, RunError) as error:
            if self.compiled:  # what the compiler says names no component
                self.compiled = False
                with torch.no_grad(), self.watched(batch):
                    geometry = batch.geometry if self.segmenter.reads_geometry else None
                    self.segmenter.eval()(batch.image, batch.text, geometry)
                raise
            if isinstance(error, RunError) or not self._running:
                raise
            if not any(word in str(error).lower() for word in OF_MACHINE) and not what_ran_out(error):
                raise self._running[-1].failed(error) from error
            raise

    @contextmanager
    def _hooks(self, parts: Sequence[Part], batch: Batch) -> Iterator[None]:
        with ExitStack() as hooks:
            for part in parts:
                hooks.enter_context(part.module.register_forward_pre_hook(partial(self._begin, part)))
                hooks.enter_context(part.module.register_forward_hook(partial(self._end, part, batch)))
            yield

    def _begin(self, part: Part, module: nn.Module, inputs: object) -> None:
        self._running.append(part)

    def _end(self, part: Part, batch: Batch, module: nn.Module, inputs: object, output: Any) -> None:
        self._running.pop()
        if part.component.kind == "network":
            self._check_logits(part, output, len(batch.image))
        elif part.component.kind in ("segmentation_loss", "auxiliary_loss"):
            logits = cast(tuple[Any, ...], inputs)[0] if part.component.kind == "segmentation_loss" else None
            _check_loss(part, output, attached=logits is None or logits.requires_grad)
        else:
            self._check_maps(part, output, batch)

    def check_output(self, output: SegmenterOutput, batch: Batch) -> None:
        """Check the output of a compiled model, and keep that of any model until the terms are checked."""
        if not self.due:
            return
        self._output = output
        if self.compiled and "network" in self.model:
            self._check_logits(self.model["network"], output, len(batch.image))
        elif self.compiled:
            self._check_maps(self.model["vision_encoder"], output.image_features, batch)
            self._check_maps(self.model["fusion"], output.fused_features, batch)

    def _check_maps(self, part: Part, maps: Any, batch: Batch) -> None:
        """Check a feature pyramid [B, C_l, H_l, W_l] of the padded image."""
        features, multiple = cast(Features, cast(Any, part.module).features), self.segmenter.network.size_multiple
        height, width = (side + -side % multiple for side in batch.image.shape[-2:])
        expected = [
            (len(batch.image), channels, height // stride, width // stride)
            for channels, stride in zip(features.channels, features.strides, strict=True)
        ]
        wanted = f"a tuple of {counted(len(expected), 'map')} {_listed(expected)}, as its `features` say, finest first"
        if not isinstance(maps, tuple) or not all(isinstance(level, Tensor) for level in maps):
            raise part.refused(wanted, _kind_of(maps))
        if [tuple(level.shape) for level in maps] != expected:
            raise part.refused(wanted, _kind_of(maps))
        if wrong := [level.dtype for level in maps if not level.is_floating_point()]:
            raise part.refused("maps of floating point", wrong[0])

    def _check_logits(self, part: Part, output: Any, batch_size: int) -> None:
        if not isinstance(output, SegmenterOutput):
            raise part.refused("a textseg.contracts.SegmenterOutput", _kind_of(output))
        for what, logits in [("logits", output.logits), *(("deep logits", deep) for deep in output.deep_logits)]:
            wanted = f"{what} [{batch_size}, {self.class_count}, H, W]: a channel for the background and each structure"
            if not isinstance(logits, Tensor):
                raise part.refused(wanted, _kind_of(logits))
            if logits.ndim != 4 or tuple(logits.shape[:2]) != (batch_size, self.class_count):
                raise part.refused(wanted, list(logits.shape))
            if not logits.is_floating_point():
                raise part.refused(f"{what} of floating point", logits.dtype)

    def own_terms(self, terms: Any) -> dict[str, Tensor]:
        """Return the terms of the loss that the model computes itself. Raises PluginError for anything else."""
        part = next(part for part in self.model.values() if isinstance(part.module, HasLosses))
        wanted = "from `losses` a mapping from names to scalars"
        if not isinstance(terms, Mapping) or not terms:
            raise part.refused(wanted, _kind_of(terms))
        for name, term in terms.items():
            if not _is_scalar(term):
                raise part.refused(wanted, f"'{name}', {_kind_of(term)}")
        return dict(terms)

    def check_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Check that every term of the loss is finite; else name the first component whose numbers are not.

        With several processes, all of them raise the error of the first one that has one.
        """
        if not self.due:
            return
        lost = [name for name, term in terms.items() if not term.isfinite()]
        error = self._not_finite(lost) if lost else None
        if not any(term.requires_grad for term in terms.values()):
            error = error or self._without_gradient(list(self.model.values()))
        self._raise_together(error)

    def _not_finite(self, lost: Sequence[str]) -> PluginError:
        output = self._output
        assert output is not None
        for kind, maps in (
            ("vision_encoder", output.image_features),
            ("fusion", output.fused_features),
            ("network", (output.logits, *output.deep_logits)),
        ):
            if kind in self.model and not all(bool(level.isfinite().all()) for level in maps):
                return self.model[kind].refused("finite numbers", "NaN or infinity")
        own = [part for part in self.model.values() if isinstance(part.module, HasLosses)]
        part = self.terms.get(lost[0]) or self.auxiliary.get(lost[0]) or own[0]
        of = f"the term '{lost[0]}' of the loss"
        return part.refused(f"a finite number in {of}", "NaN or infinity")

    def check_gradients(self, terms: Mapping[str, Tensor]) -> None:
        """Check, after the backward pass, that it reached each component that is trained; the step is then due no more.

        A model with stages says itself what each trains, so only the part that has them is checked. An auxiliary loss
        that is zero does not apply to the batch. Raises PluginError, in all processes.
        """
        if not self.due:
            return
        applied = [part for name, part in self.auxiliary.items() if terms[name].detach() != 0]
        error = self._without_gradient([*self.model.values(), *applied])
        self._raise_together(error)
        self.due, self._output = False, None

    def _without_gradient(self, parts: Sequence[Part]) -> PluginError | None:
        """Return the error for the first component that is trained in this stage, and has no gradient."""
        staged = [part for part in parts if isinstance(part.module, HasStages)]
        for part in staged or parts:
            trained = [parameter for parameter in part.module.parameters() if parameter.requires_grad]
            if trained and all(parameter.grad is None for parameter in trained):
                wanted = f"a gradient in at least one of its {counted(len(trained), 'trainable parameter')}"
                return part.refused(wanted, "none: the loss does not depend on them")
        return None

    def _raise_together(self, error: PluginError | None) -> None:
        """Raise the first error of all processes in each of them, so that none waits for another one."""
        for message in distributed.gathered(None if error is None else str(error)):
            if message is not None:
                raise PluginError(message)


def _check_loss(part: Part, loss: Any, *, attached: bool) -> None:
    """Check a term of the loss; `attached` is False for logits that no trained part of the model has computed."""
    if not _is_scalar(loss) or loss.dtype != torch.float32:
        raise part.refused("a scalar in float32", _kind_of(loss))
    if not loss.isfinite():
        return  # `check_terms` finds out if the model is the reason
    if attached and torch.is_grad_enabled() and not loss.requires_grad and loss != 0:
        raise part.refused("a scalar with gradients", "one that is detached from the model")


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


def _kind_of(value: object) -> str:
    """Return a value as a few words: its type, and the shapes of tensors in it."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    shapes = (
        [tuple(item.shape) for item in value if isinstance(item, Tensor)] if isinstance(value, list | tuple) else []
    )
    return f"a {type(value).__name__}{' of ' if shapes else ''}{_listed(shapes)}"
