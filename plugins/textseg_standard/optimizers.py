"""The optimizers of PyTorch: AdamW, SGD, and the others by their names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from textseg.errors import RecipeError
from textseg_standard.by_name import builds_by_name

Parameters = Mapping[str, nn.Parameter]
OURS = {"params", "lr", "maximize", "differentiable"}  # the core sets the first two; the others fit no training here
UNFIT = {"Optimizer", "LBFGS", "SparseAdam"}  # LBFGS evaluates the loss itself; SparseAdam needs sparse gradients


def adamw(
    parameters: Parameters,
    learning_rate: float,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov 2019); on CPUs and CUDA devices it uses one fused kernel for all weights.

    Args:
        parameters: by name.
        learning_rate: the highest of the run.
        weight_decay: the share of a weight that a step removes, times the learning rate.
        betas: decay of the mean of the gradient, and of its square.
    """
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters.values())
    return torch.optim.AdamW(parameters.values(), learning_rate, betas, weight_decay=weight_decay, fused=fused)


def sgd(
    parameters: Parameters, learning_rate: float, *, weight_decay: float = 0.01, momentum: float = 0.99
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum.

    Args:
        parameters: by name.
        learning_rate: the highest of the run.
        weight_decay: the multiple of a weight that is added to its gradient.
        momentum: the share of a step that the next one keeps; without momentum at 0.

    Raises RecipeError for a momentum below 0, and from 1 on.
    """
    if not 0 <= momentum < 1:
        raise RecipeError(f"sgd: momentum is {momentum}, but must be at least 0 and below 1.")
    values, nesterov = parameters.values(), momentum > 0
    return torch.optim.SGD(values, learning_rate, momentum, weight_decay=weight_decay, nesterov=nesterov)


def known_optimizers() -> dict[str, Any]:
    """Return the optimizers of `torch.optim` that a step of the training loop can use."""
    return {name: item for name, item in vars(torch.optim).items() if inspect.isclass(item) and name not in UNFIT}


@builds_by_name(known_optimizers, without=OURS)
def torch_optimizer(
    parameters: Parameters, learning_rate: float, *, name: str, **settings: Any
) -> torch.optim.Optimizer:
    """An optimizer of PyTorch by its name, such as RAdam, with PyTorch's settings and defaults.

    Args:
        parameters: by name.
        learning_rate: the highest of the run.
        name: the class in `torch.optim`.
        settings: further settings of the class, such as `betas`.
    """
    optimizer: torch.optim.Optimizer = known_optimizers()[name](parameters.values(), lr=learning_rate, **settings)
    return optimizer
