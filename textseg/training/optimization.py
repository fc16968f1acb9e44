"""The optimiser, the learning-rate schedule, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from textseg.recipe.schema import TrainingSettings

_Tensors = tuple[Tensor, ...] | list[Tensor]
WARM_UP = 0.1  # share of the steps in which `one_cycle` climbs to the learning rate


def learning_rate(settings: TrainingSettings, step: int, total: int) -> float:
    """Return the learning rate of a step, a function of the step alone."""
    high, low = settings.learning_rate, settings.final_learning_rate
    done = step / total
    if settings.schedule == "constant":
        return high
    if settings.schedule == "polynomial":
        return float(high * (1 - done) ** 0.9)
    if settings.schedule == "one_cycle":
        if done < WARM_UP:
            return high * (0.04 + 0.96 * (1 - math.cos(math.pi * done / WARM_UP)) / 2)
        done = (done - WARM_UP) / (1 - WARM_UP)
    return low + (high - low) * (1 + math.cos(math.pi * done)) / 2


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


def make_optimizer(
    parameters: list[nn.Parameter], settings: TrainingSettings, *, scaled: bool = False
) -> torch.optim.Optimizer:
    """Return the optimiser of a recipe; on CPUs and CUDA devices AdamW uses one fused kernel for all weights.

    The kernel is not fused where the loss is `scaled` and gradients are clipped: Lightning then unscales no gradient.
    """
    rate, decay, momentum = settings.learning_rate, settings.weight_decay, settings.momentum
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, nesterov=momentum > 0)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    fused = fused and not (scaled and settings.gradient_clip is not None)
    return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=fused)
