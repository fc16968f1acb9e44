from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from textseg.errors import PluginError, RecipeError
from textseg.registry.discovery import installed_registry


def built(name: str, parameter: nn.Parameter, **settings: Any) -> torch.optim.Optimizer:
    registry = installed_registry()
    optimizer: torch.optim.Optimizer = registry.build("optimizer", name, {"a": parameter}, 0.1, settings=settings)
    return optimizer


def steps(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, count: int = 3) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        (parameter**3).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float) -> None:
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    steps(built("sgd", ours, momentum=momentum), ours)
    steps(torch.optim.SGD([theirs], 0.1, momentum, weight_decay=0.01, nesterov=momentum > 0), theirs)
    assert torch.equal(ours, theirs)


def test_fused_adamw_equals_the_plain_one() -> None:
    ours, theirs = nn.Parameter(torch.linspace(-1, 1, 7)), nn.Parameter(torch.linspace(-1, 1, 7))
    optimizer = built("adamw", ours, weight_decay=0.05)
    assert optimizer.param_groups[0]["fused"] is True
    steps(optimizer, ours, 20)
    steps(torch.optim.AdamW([theirs], 0.1, weight_decay=0.05, foreach=False), theirs, 20)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_an_optimizer_of_torch_has_its_settings_and_defaults() -> None:
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    registry = installed_registry()
    settings = {"name": "RAdam", "betas": [0.8, 0.99]}
    steps(registry.build("optimizer", "torch", {"a": ours}, 0.1, settings=settings), ours)
    steps(torch.optim.RAdam([theirs], 0.1, betas=(0.8, 0.99)), theirs)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("torch", {"name": "Adem"}, "unknown value 'Adem'. Did you mean 'Adam'"),
        ("torch", {"name": "LBFGS"}, "unknown value 'LBFGS'"),
        ("torch", {"name": "Adam", "beta": 0.9}, "beta: unknown setting. Did you mean 'betas'"),
        ("torch", {"name": "Adam", "lr": 0.9}, "lr: unknown setting"),
        ("torch", {"name": "Adam", "weight_decay": "much"}, "weight_decay: "),
        ("sgd", {"momentum": 1.0}, "sgd: momentum is 1.0"),
    ],
)
def test_a_mistake_is_named(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        installed_registry().build("optimizer", name, {}, 0.1, settings=settings)


def test_what_torch_refuses_is_named() -> None:
    settings, weight = {"name": "Adam", "betas": [2.0, 0.9]}, nn.Parameter(torch.ones(3))
    with pytest.raises(PluginError, match="optimizer 'torch' of plug-in 'standard'.* can't be built with name='Adam'"):
        installed_registry().build("optimizer", "torch", {"a": weight}, 0.1, settings=settings)
