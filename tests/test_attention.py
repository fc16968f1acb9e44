from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from textseg.attention import Attention, plane_sinusoids, sinusoids

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
    for place in range(5):
        for channel in range(7):
            angle = place / 10_000 ** ((channel - channel % 2) / 7)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert encoding[place, channel].item() == pytest.approx(expected, abs=1e-6)


def test_every_place_of_the_plane_has_its_own_position() -> None:
    plane = plane_sinusoids(6, 9, 7, CPU)
    assert plane.shape == (7, 6, 9)
    assert torch.equal(plane[:4, 2, 3], plane[:4, 2, 8])  # the row
    assert torch.equal(plane[4:, 2, 3], plane[4:, 5, 3])  # the column
    assert len(torch.unique(plane.flatten(1).T, dim=0)) == 54
