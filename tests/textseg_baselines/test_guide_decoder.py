from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Atlas, Task, TextFeatures
from textseg.errors import RecipeError
from textseg.models.attention import sinusoids
from textseg_baselines.guide_decoder import GuideDecoder, SubPixelHead, guide_decoders, spoken

T, D = 6, 10
CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "widths": (4, 8, 16), "depths": (1, 1, 1), "text_tokens": (5, 3), "self_heads": 1, "heads": 4
}  # fmt: skip


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (24, 40), small_atlas.class_count, small_atlas, text_size=D, text_length=T)


@pytest.fixture
def decoder(task: Task) -> GuideDecoder:
    torch.manual_seed(0)
    return GuideDecoder(task, 8, 4, text_tokens=5, self_heads=1, heads=2)


def test_a_guide_mixes_tokens_then_projects_them(decoder: GuideDecoder) -> None:
    tokens = torch.randn(2, T, D)
    weight, bias = decoder.text_mixture.weight[..., 0], decoder.text_mixture.bias  # [M, T], [M]
    assert bias is not None
    expected = torch.zeros(2, 5, 8)
    for b in range(2):
        for m in range(5):
            mixed = torch.stack([weight[m, t] * tokens[b, t] for t in range(T)]).sum(0) + bias[m]
            half = mixed / 2
            gelu = half * (1 + torch.erf(mixed / 2**0.5))
            projected = decoder.text_projection.weight @ gelu + decoder.text_projection.bias
            expected[b, m] = torch.where(projected > 0, projected, 0.01 * projected)
    torch.testing.assert_close(decoder.guide(tokens), expected)


def test_structures_follow_unmixed(decoder: GuideDecoder) -> None:
    tokens, structures = torch.randn(2, T, D), torch.randn(2, 3, D)
    guide = decoder.guide(tokens, structures)
    torch.testing.assert_close(guide[:, :5], decoder.guide(tokens))
    torch.testing.assert_close(guide[:, 5:], F.leaky_relu(decoder.text_projection(F.gelu(structures))))


def test_a_decoder_is_the_formula(decoder: GuideDecoder) -> None:
    nn.init.constant_(decoder.alpha, 0.7)
    visual, skip, guide = torch.randn(2, 8, 3, 5), torch.randn(2, 4, 6, 10), torch.randn(2, 5, 8)
    v = visual.flatten(2).mT
    pe = sinusoids(15, 8, CPU)
    n = decoder.self_norm(v)
    v = v + decoder.self_output_norm(decoder.self_attention(n + pe, n + pe, n))
    q, k = decoder.cross_norm(v) + pe, guide + sinusoids(5, 8, CPU)
    z = v + 0.7 * decoder.cross_output_norm(decoder.cross_attention(q, k, guide))
    expected = decoder.up(z.mT.unflatten(2, (3, 5)), skip)
    torch.testing.assert_close(decoder(visual, skip, guide), expected)
    assert expected.shape == skip.shape

    seen: list[tuple[int, ...]] = []

    def half(tokens: Tensor) -> Tensor:
        seen.append(tuple(tokens.shape))
        return tokens / 2

    z = v + 0.7 * decoder.cross_output_norm(decoder.cross_attention(q / 2, k / 2, guide))
    torch.testing.assert_close(decoder(visual, skip, guide, half), decoder.up(z.mT.unflatten(2, (3, 5)), skip))
    assert seen == [(2, 15, 8), (2, 5, 8)]


def test_decoders_go_from_the_coarsest_level_to_the_finest(task: Task) -> None:
    decoders = guide_decoders("net", task, **SETTINGS)
    assert [tuple(decoder.text_projection.weight.shape) for decoder in decoders] == [(16, D), (8, D)]
    assert [decoder.text_mixture.out_channels for decoder in decoders] == [5, 3]
    assert [decoder.self_attention.heads for decoder in decoders] == [1, 1]
    assert [decoder.cross_attention.heads for decoder in decoders] == [4, 4]


def test_the_head_makes_sixteen_pixels_of_a_position() -> None:
    head = SubPixelHead(8, 3)
    feature = torch.zeros(1, 8, 5, 7)
    changed = feature.clone()
    changed[..., 2, 3] = 1
    moved = (head(changed) - head(feature)).abs().amax(1)[0]  # [20, 28]
    inside = moved[8:12, 12:16]
    assert moved.shape == (20, 28)
    assert len(inside.unique()) == 16  # each pixel its own weights
    moved[4:19, 8:23] = 0  # the kernel of 3 reaches one position further, the mean over 4 x 4 pixels 3 more
    assert not moved.any()


def test_padding_says_nothing_whatever_it_holds() -> None:
    mask = torch.tensor([[True, True, False]])
    text = TextFeatures(torch.tensor([[[1.0], [2.0], [float("nan")]]]), mask, None, torch.ones(1, 1, dtype=torch.bool))
    assert spoken(text).flatten().tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="needs text features"):
        spoken(None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (4,)}, "net: widths has 1 levels, but needs 2 at least"),
        ({"widths": (4, 0, 8)}, "widths holds 0, but must be at least 1"),
        ({"depths": (1, 1, -1)}, "depths holds -1"),
        ({"depths": (1, 1)}, "depths has 2 values, but 3 widths need 3"),
        ({"text_tokens": (24, 12, 9)}, "text_tokens has 3 values, but 3 widths need 2"),
        ({"text_tokens": (24, 0)}, "text_tokens holds 0"),
        ({"heads": 3}, "heads is 3, but must divide the guided widths: 8, 16"),
        ({"self_heads": 0}, "self_heads is 0, but must divide"),
    ],
)
def test_a_setting_out_of_range_is_named(task: Task, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        guide_decoders("net", task, **{**SETTINGS, **settings})


def test_it_needs_text(task: Task) -> None:
    with pytest.raises(RecipeError, match="net reads text, and the recipe has no prompts"):
        guide_decoders("net", replace(task, text_size=None, text_length=None), **SETTINGS)
