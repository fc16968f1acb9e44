"""Building and calling modules of every kind in the same way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from textseg.contracts import Atlas, SegmenterOutput, Task
from textseg.models.segmenter import Segmenter
from textseg.registry.kinds import KINDS
from textseg.testing.conformance import Subject
from textseg.testing.examples import REGION, Example, task
from textseg.testing.promises import promise


def task_of(subject: Subject, atlas: Atlas | None = None, image_size: tuple[int, int] | None = None) -> Task:
    return task(image_size or subject.image_size, atlas or subject.atlas or REGION)


def built(subject: Subject, where: Task | None = None, seed: int = 1) -> nn.Module:
    """Return the module with the weights of a seed, in training mode."""
    where = where or task_of(subject)
    torch.manual_seed(seed)
    wired = {"task": where, "features": subject.features}
    module = subject.build(*(wired[parameter] for parameter in KINDS[subject.component.kind].parameters))
    promise(isinstance(module, nn.Module), "an nn.Module", type(module).__name__)
    return cast(nn.Module, module)


def example_for(subject: Subject, module: nn.Module, where: Task | None = None, batch: int = 2, **more: Any) -> Example:
    """Return slices of the size that the core would give this module; for a network, a Segmenter pads them."""
    where = where or task_of(subject)
    where = replace(where, image_channels=where.image_channels * getattr(module, "context_slices", 1))
    own = cast(int, getattr(module, "size_multiple", subject.features.strides[-1]))
    multiple = 1 if subject.component.kind == "network" else own
    return Example.of(where, batch, features=subject.features, size_multiple=multiple, **more)


def results(subject: Subject, module: nn.Module, example: Example, seed: int = 2) -> list[Tensor]:
    """Return every tensor that the module gives for an example; dropout and the like draw from `seed`."""
    torch.manual_seed(seed)
    kind = subject.component.kind
    if kind == "vision_encoder":
        further = {"geometry": example.batch.geometry} if getattr(module, "reads_geometry", False) is True else {}
        return _levels(module(example.image, **further))
    if kind == "fusion":
        return _levels(module(example.pyramid, example.text))
    if kind == "auxiliary_loss":
        return [module(example.output, example.batch)]
    if kind == "segmentation_loss":
        return [module(example.logits, example.mask)]
    output = network_output(module, example)
    return [output.logits, *output.deep_logits]


def network_output(module: nn.Module, example: Example) -> SegmenterOutput:
    """Return the output of a network for an example, as the core calls it."""
    segmenter = Segmenter(cast(Any, module))
    text = example.text if segmenter.uses_text else None
    output: SegmenterOutput = segmenter(example.image, text, example.batch.geometry)
    return output


def _levels(maps: object) -> list[Tensor]:
    promise(
        isinstance(maps, tuple) and all(isinstance(level, Tensor) for level in maps),
        "a tuple of tensors, finest level first",
        type(maps).__name__,
    )
    return list(cast(tuple[Tensor, ...], maps))


def sum_of_squares(tensors: list[Tensor]) -> Tensor:
    """A loss in which every number counts."""
    return torch.stack([(tensor.float() ** 2).mean() for tensor in tensors]).sum()


def check_finite_gradients(module: nn.Module, about: str) -> None:
    """Check that no parameter has a gradient with NaN or infinity."""
    named = module.named_parameters()
    wrong = [name for name, parameter in named if parameter.grad is not None and not parameter.grad.isfinite().all()]
    promise(not wrong, f"finite gradients{about}", few("NaN or infinity in", wrong))


def check_finite_gradients_back(example: Example, about: str) -> None:
    """Check the gradients that went back to the outputs of the model."""
    finite = all(gradient.isfinite().all() for gradient in example.gradients())
    promise(finite, f"finite gradients back to the model{about}", "NaN or infinity")


def few(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{what} {', '.join(names[:5])}{more}"
