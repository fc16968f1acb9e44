from __future__ import annotations

import torch
from torch import nn

from textseg.training.optimization import LearningRates, moving_average, unfuse


def test_groups_keep_their_proportions() -> None:
    slow, quick = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [slow], "lr": 0.025}, {"params": [quick]}], lr=0.1)
    LearningRates(optimizer, 0.1).set(0.4)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.4]


def test_the_learning_rate_of_a_single_group_is_that_of_the_schedule_bit_by_bit() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    rates = LearningRates(optimizer, 0.1)
    for rate in (1 / 3, 0.1 + 0.2, 1e-7):
        rates.set(rate)
        assert optimizer.param_groups[0]["lr"] == rate


def test_an_optimizer_without_fused_kernels_is_the_plain_one() -> None:
    ours, theirs = nn.Parameter(torch.linspace(-1, 1, 7)), nn.Parameter(torch.linspace(-1, 1, 7))
    fused, plain = torch.optim.AdamW([ours], 0.01, fused=True), torch.optim.AdamW([theirs], 0.01, fused=False)
    unfuse(fused)
    assert not getattr(fused, "_step_supports_amp_scaling", False)  # Lightning unscales the gradients
    for parameter, optimizer in ((ours, fused), (theirs, plain)):
        for _ in range(3):
            optimizer.zero_grad()
            (parameter**3).sum().backward()
            optimizer.step()
    assert torch.equal(ours, theirs)


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
