"""Checks of optimizers."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

from textseg.testing.conformance import Subject, check
from textseg.testing.promises import promise
from textseg.testing.surroundings import undisturbed

RATE = 0.01
Parameters = dict[str, nn.Parameter]


def _example() -> Parameters:
    """Return two matrices of weights; an optimizer may be of use for matrices only."""
    random = torch.Generator().manual_seed(0)
    sizes = {"segmenter.first": (4, 3), "segmenter.second": (3, 4)}
    return {name: nn.Parameter(torch.randn(*size, generator=random)) for name, size in sizes.items()}


def _built(subject: Subject, parameters: Parameters) -> Any:
    return subject.build(parameters, RATE)


def _step(optimizer: Any, parameters: Parameters, left_out: str = "") -> float:
    """Take a step down the sum of squares, without a gradient of one parameter; returns the sum before it."""
    optimizer.zero_grad()
    squares = [(parameter**2).sum() for name, parameter in parameters.items() if name != left_out]
    loss = torch.stack(squares).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def _values(parameters: Parameters) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters.values()]


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@check("surroundings", "optimizer", tolerant=True)
def _surroundings(subject: Subject) -> None:
    """Construction and a step touch no file and no network, and leave alone what all share."""
    for _ in range(2):  # what is imported on the way may do as it likes, the first time
        parameters = _example()
        with undisturbed("construction", allowed=subject.settings.values()):
            optimizer = _built(subject, parameters)
        with undisturbed("a step", allowed=subject.settings.values()):
            _step(optimizer, parameters)


@check("construction", "optimizer", fundamental=True)
def _construction(subject: Subject) -> None:
    """Check that the builder gives an optimizer of PyTorch that knows every parameter once."""
    parameters = _example()
    optimizer = _built(subject, parameters)
    promise(isinstance(optimizer, torch.optim.Optimizer), "a torch.optim.Optimizer", type(optimizer).__name__)
    groups = optimizer.param_groups
    promise(all("lr" in group for group in groups), "groups of parameters with an 'lr', which the core sets", groups)
    known = sorted(id(parameter) for group in groups for parameter in group["params"])
    promise(known == sorted(map(id, parameters.values())), "every parameter once", f"{len(known)} parameters")


@check("learning_rate", "optimizer")
def _learning_rate(subject: Subject) -> None:
    """Check that a step has the learning rate of its groups, which the core sets before it."""
    parameters = _example()
    optimizer = _built(subject, parameters)
    _step(optimizer, parameters)
    before = _values(parameters)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    _step(optimizer, parameters)
    promise(_equal(before, _values(parameters)), "the same weights after a step with a learning rate of 0", "others")


@check("falls", "optimizer")
def _falls(subject: Subject) -> None:
    """Check that a loss decreases, and that a parameter without a gradient stays as it is."""
    parameters = _example()
    optimizer, idle = _built(subject, parameters), "segmenter.second"
    before = parameters[idle].detach().clone()
    values = [_step(optimizer, parameters, left_out=idle) for _ in range(30)]
    course = f"{values[0]:.4g} at first and {values[-1]:.4g} after {len(values)} steps"
    promise(values[-1] < values[0], "a loss that falls", course)
    promise(torch.equal(before, parameters[idle]), "a parameter without a gradient that stays as it is", "another")


@check("state", "optimizer")
def _state(subject: Subject) -> None:
    """Check that a resumed training equals an uninterrupted one."""
    parameters = _example()
    optimizer = _built(subject, parameters)
    for _ in range(3):
        _step(optimizer, parameters)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    twin = _built(subject, resumed)
    twin.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        _step(optimizer, parameters)
        _step(twin, resumed)
    lost = "others: what it remembers must be in its state_dict, in tensors and plain values"
    promise(_equal(_values(parameters), _values(resumed)), "the same weights after a resume", lost)


CHECKS = (_surroundings, _construction, _learning_rate, _falls, _state)
