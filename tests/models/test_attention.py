from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from textseg.models.attention import Attention, WindowAttention, fuse_windows, plane_sinusoids, sinusoids

CPU = torch.device("cpu")


def naive_attention(layer: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax of the whole matrix, head by head."""
    size = query.shape[-1] // layer.heads
    q, k, v = layer.query(query), layer.key(key), layer.value(value)
    heads = []
    for head in range(layer.heads):
        of = slice(head * size, (head + 1) * size)
        weights = torch.softmax(torch.einsum("bnc,bmc->bnm", q[..., of], k[..., of]) / math.sqrt(size), dim=-1)
        heads.append(torch.einsum("bnm,bmc->bnc", weights, v[..., of]))
    projected: Tensor = layer.output(torch.cat(heads, dim=-1))
    return projected


def test_attention_equals_a_naive_softmax() -> None:
    torch.manual_seed(0)
    layer = Attention(12, 3)
    query, key, value = torch.randn(2, 7, 12), torch.randn(2, 4, 12), torch.randn(2, 4, 12)
    torch.testing.assert_close(layer(query, key, value), naive_attention(layer, query, key, value))


def test_positions_equal_the_published_formula() -> None:
    encoding = sinusoids(5, 7, CPU)
    for position in range(5):
        for channel in range(7):
            angle = position / 10_000 ** ((channel - channel % 2) / 7)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert encoding[position, channel].item() == pytest.approx(expected, abs=1e-6)


def test_every_place_of_the_plane_has_its_own_position() -> None:
    plane = plane_sinusoids(6, 9, 7, CPU)
    assert plane.shape == (7, 6, 9)
    assert torch.equal(plane[:4, 2, 3], plane[:4, 2, 8])  # the row
    assert torch.equal(plane[4:, 2, 3], plane[4:, 5, 3])  # the column
    assert len(torch.unique(plane.flatten(1).T, dim=0)) == 54


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_window_attention_equals_monais_with_its_gradients(shifted: bool, batch: int) -> None:
    from monai.networks.nets import swin_unetr as monai

    torch.manual_seed(0)
    theirs = monai.WindowAttention(24, 3, (7, 7), qkv_bias=True)
    torch.nn.init.normal_(theirs.relative_position_bias_table)
    ours = WindowAttention(copy.deepcopy(theirs))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    mask = monai.compute_mask([14, 21], (7, 7), (3, 3), CPU) if shifted else None
    image = torch.randn(batch * 6, 49, 24)
    results = []
    for layer in (ours, theirs):
        x = image.clone().requires_grad_()
        out = layer(x, mask)
        out.sin().sum().backward()
        results.append([out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # another kernel
        torch.testing.assert_close(ours(image, mask), theirs(image, mask), rtol=1e-5, atol=1e-5)
        whole = ours(image[..., :24], mask)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(image, mask).float(), whole, rtol=0.1, atol=0.05)


class Softmaxes(TorchDispatchMode):
    """Notes what type of numbers each softmax sums."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if "softmax" in str(function) and "backward" not in str(function):
            self.types.append(arguments[0].dtype)
        return function(*arguments, **(named or {}))


def test_weights_in_windows_are_in_full_precision_under_autocast() -> None:
    from monai.networks.nets import swin_unetr as monai

    layer = WindowAttention(monai.WindowAttention(24, 3, (7, 7), qkv_bias=True))
    image = torch.randn(2, 49, 24)
    with torch.autocast("cpu", torch.bfloat16), Softmaxes() as softmaxes:
        layer(image, None).float().sum().backward()
    assert softmaxes.types == [torch.float32]


def test_windows_are_fused_throughout_a_network_whose_state_stays() -> None:
    from monai.networks.nets import swin_unetr as monai

    network = monai.SwinUNETR(1, 3, feature_size=12, spatial_dims=2)
    theirs = copy.deepcopy(network)
    fuse_windows(network, monai.WindowAttention)
    assert sum(isinstance(module, WindowAttention) for module in network.modules()) == 8
    assert not any(isinstance(module, monai.WindowAttention) for module in network.modules())
    ours, before = network.state_dict(), theirs.state_dict()
    assert list(ours) == list(before)
    assert all(torch.equal(ours[name], before[name]) for name in ours)
    image = torch.randn(2, 1, 64, 96)
    for model in (network, theirs):
        model.zero_grad()
        model(image).square().mean().backward()
    for (name, a), (_, b) in zip(network.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
