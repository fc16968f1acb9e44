from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from textseg.contracts import Schedule
from textseg.errors import RecipeError
from textseg.registry.discovery import installed_registry

STEPS = 40


def schedule(name: str, settings: dict[str, Any]) -> Schedule:
    built: Schedule = installed_registry().build("schedule", name, 0.1, STEPS, settings=settings)
    return built


def rates(name: str, **settings: Any) -> list[float]:
    built = schedule(name, settings)
    return [built(step) for step in range(STEPS)]


def torchs(name: str, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **settings)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return expected


def test_cosine_is_torchs() -> None:
    expected = torchs("CosineAnnealingLR", T_max=STEPS, eta_min=1e-3)
    assert rates("cosine", final_learning_rate=1e-3) == pytest.approx(expected, rel=1e-9)


def test_polynomial_is_torchs() -> None:
    assert rates("polynomial") == pytest.approx(torchs("PolynomialLR", total_iters=STEPS, power=0.9), rel=1e-9)


def test_polynomial_may_rise_first() -> None:
    curve = rates("polynomial", warm_up_steps=4)
    assert curve[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert curve[4:] == pytest.approx([0.1 * (1 - step / (STEPS - 4)) ** 0.9 for step in range(STEPS - 4)])


def test_one_cycle_climbs_then_falls() -> None:
    curve = rates("one_cycle", final_learning_rate=1e-5)
    top = STEPS // 10
    assert curve[0] == pytest.approx(0.004)
    assert curve[top] == pytest.approx(0.1)
    assert curve[:top] == sorted(curve[:top])
    assert curve[top:] == sorted(curve[top:], reverse=True)
    assert schedule("one_cycle", {})(STEPS) == pytest.approx(1e-6)


def test_constant() -> None:
    assert set(rates("constant")) == {0.1}


@pytest.mark.parametrize(
    ("name", "settings", "filled"),
    [
        ("StepLR", {"step_size": 7, "gamma": 0.5}, {}),
        ("CosineAnnealingLR", {}, {"T_max": STEPS}),
        ("LinearLR", {"start_factor": 0.2}, {"total_iters": STEPS}),
        ("LinearLR", {"total_iters": 8}, {}),
        ("OneCycleLR", {}, {"total_steps": STEPS, "max_lr": 0.1, "cycle_momentum": False}),
        ("CyclicLR", {"base_lr": 0.01, "step_size_up": 5}, {"max_lr": 0.1, "cycle_momentum": False}),
        ("CosineAnnealingWarmRestarts", {"T_0": 9}, {}),
    ],
)
def test_a_schedule_of_torch_counts_steps(name: str, settings: dict[str, Any], filled: dict[str, Any]) -> None:
    built = schedule("torch", {"name": name, **settings})
    expected = torchs(name, **settings, **filled)
    assert [built(step) for step in (0, 39, 25)] == [expected[0], expected[39], expected[25]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "StepLr"}, "unknown value 'StepLr'. Did you mean 'StepLR'"),
        ({"name": "ReduceLROnPlateau"}, "unknown value 'ReduceLROnPlateau'"),
        ({"name": "StepLR"}, "step_size: required by schedule 'torch' but missing"),
        ({"name": "StepLR", "step_size": 2.5}, "step_size: "),
        ({"name": "OneCycleLR", "max_lr": 1.0}, "max_lr: unknown setting"),
    ],
)
def test_a_mistake_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        schedule("torch", settings)
