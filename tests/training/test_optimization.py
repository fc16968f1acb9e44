from __future__ import annotations

import pytest
import torch
from torch import nn

from textseg.recipe.schema import TrainingSettings
from textseg.training.optimization import WARM_UP, learning_rate, make_optimizer, moving_average

TOTAL = 40


def rates(**settings: object) -> list[float]:
    training = TrainingSettings(epochs=1, **settings)
    return [learning_rate(training, step, TOTAL) for step in range(TOTAL)]


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL, eta_min=1e-3)
    expected = []
    for _ in range(TOTAL):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(learning_rate=0.1, final_learning_rate=1e-3) == pytest.approx(expected, rel=1e-9)


def test_polynomial_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, TOTAL, power=0.9)
    expected = []
    for _ in range(TOTAL):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(learning_rate=0.1, schedule="polynomial") == pytest.approx(expected, rel=1e-9)


def test_one_cycle_climbs_then_falls() -> None:
    curve = rates(learning_rate=0.1, final_learning_rate=1e-5, schedule="one_cycle")
    top = round(WARM_UP * TOTAL)
    assert curve[0] == pytest.approx(0.004)
    assert curve[top] == pytest.approx(0.1)
    assert curve[:top] == sorted(curve[:top])
    assert curve[top:] == sorted(curve[top:], reverse=True)
    assert learning_rate(TrainingSettings(epochs=1, schedule="one_cycle"), TOTAL, TOTAL) == pytest.approx(1e-6)


def test_constant() -> None:
    assert set(rates(learning_rate=0.1, schedule="constant")) == {0.1}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float) -> None:
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    settings = TrainingSettings(epochs=1, optimizer="sgd", learning_rate=0.1, momentum=momentum, weight_decay=0.01)
    reference = torch.optim.SGD([theirs], 0.1, momentum, weight_decay=0.01, nesterov=momentum > 0)
    for parameter, optimizer in ((ours, make_optimizer([ours], settings)), (theirs, reference)):
        for _ in range(3):
            optimizer.zero_grad()
            (parameter**3).sum().backward()
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_adamw_decays_weights() -> None:
    optimizer = make_optimizer([nn.Parameter(torch.ones(1))], TrainingSettings(epochs=1, weight_decay=0.05))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 0.05


def test_fused_adamw_equals_the_plain_one() -> None:
    settings = TrainingSettings(epochs=1, learning_rate=1e-2)
    ours, theirs = [nn.Parameter(torch.linspace(-1, 1, 7))], [nn.Parameter(torch.linspace(-1, 1, 7))]
    optimizer = make_optimizer(ours, settings)
    assert optimizer.param_groups[0]["fused"] is True
    plain = torch.optim.AdamW(theirs, 1e-2, weight_decay=0.01, foreach=False)
    for parameters, own in ((ours, optimizer), (theirs, plain)):
        for _ in range(20):
            own.zero_grad()
            (parameters[0] ** 3).sum().backward()
            own.step()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    clipped = TrainingSettings(epochs=1, gradient_clip=1.0)
    assert make_optimizer(ours, clipped).param_groups[0]["fused"] is True
    assert not make_optimizer(ours, clipped, scaled=True).param_groups[0]["fused"]


def test_moving_average_is_torchs_and_keeps_whole_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.rand(4, generator=generator) for _ in range(2)]
    theirs, current = [tensor.clone() for tensor in ours], [torch.rand(4, generator=generator) for _ in range(2)]
    torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)(theirs, current, 1)
    moving_average(0.9)(ours, current, 1)
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second)
    index = torch.arange(1000)
    averaged = index.clone()
    for _ in range(50):  # torch's function rounds 280 of these down
        moving_average(0.9)([averaged], [index], 1)
    assert torch.equal(averaged, index)
