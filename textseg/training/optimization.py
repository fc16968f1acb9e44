"""The learning rates of an optimizer, its use with a scaled loss, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

_Tensors = tuple[Tensor, ...] | list[Tensor]


class LearningRates:
    """The learning rates of an optimizer's groups of parameters, which keep their proportions.

    A group that the builder gave a tenth of the learning rate of the recipe keeps a tenth of each later one.
    """

    def __init__(self, optimizer: Optimizer, learning_rate: float) -> None:
        self.optimizer = optimizer
        self.shares = [float(group["lr"]) / learning_rate for group in optimizer.param_groups]

    def set(self, learning_rate: float) -> None:
        """Set the learning rate of the next step."""
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = share * learning_rate


def unfuse(optimizer: Optimizer) -> None:
    """Let an optimizer work without fused kernels: with them, Lightning unscales no gradient before it is clipped."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            group["fused"] = False
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def moving_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """Return the update of an AveragedModel: floating-point tensors move by 1 - `decay`, integer tensors are copied.

    Integer buffers are indices and counters. torch's own function averages them, too, and rounds down.
    """

    @torch.no_grad()
    def update(averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        for ours, theirs in zip(averaged, current, strict=True):
            if ours.is_floating_point():
                ours.lerp_(theirs, 1 - decay)
            else:
                ours.copy_(theirs)

    return update
