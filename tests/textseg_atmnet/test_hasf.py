import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Atlas, Features, Task, TextFeatures
from textseg.errors import RecipeError
from textseg.models.attention import plane_sinusoids, sinusoids
from textseg.testing import check_fusion
from textseg_atmnet.hasf import HASF, FusionBlock

FEATURES = Features((8, 16, 24), (2, 4, 8))
T, D = 6, 10
CPU = torch.device("cpu")


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (24, 40), small_atlas.class_count, small_atlas, text_size=D, text_length=T)


def maps(features: Features = FEATURES, batch: int = 2, coarsest: tuple[int, int] = (3, 5)) -> tuple[Tensor, ...]:
    sides = [
        tuple(side * features.strides[-1] // stride for side in coarsest) for stride in features.strides
    ]  # odd at the coarsest
    return tuple(torch.randn(batch, c, *side) for c, side in zip(features.channels, sides, strict=True))


def some_text(batch: int = 2) -> TextFeatures:
    mask = torch.arange(T) < torch.tensor([[4], [5]])[:batch]
    present = torch.ones(batch, 4, dtype=torch.bool)
    return TextFeatures(torch.randn(batch, T, D) * mask[..., None], mask, None, present)


def built(task: Task, features: Features = FEATURES, **settings: Any) -> HASF:
    torch.manual_seed(0)
    return HASF(task, features, **{"heads": 4, "text_tokens": 5, **settings})


def test_a_block_is_the_restored_formula() -> None:
    torch.manual_seed(0)
    block = FusionBlock(8, heads=2, feed_forward=0)
    nn.init.constant_(block.alpha, 0.7)
    visual, text = torch.randn(2, 8, 3, 5), torch.randn(2, 4, 8)
    v = visual.flatten(2).mT
    pe = plane_sinusoids(3, 5, 8, CPU).flatten(1).mT
    q = block.self_norm(v) + pe
    v = v + block.self_output_norm(block.self_attention(q, q, block.self_norm(v)))
    q, k = block.cross_norm(v) + pe, text + sinusoids(4, 8, CPU)
    v = v + 0.7 * block.cross_output_norm(block.cross_attention(q, k, text))
    torch.testing.assert_close(block(visual, text, (3, 5)), v.mT.unflatten(2, (3, 5)))


def test_pooled_keys_are_the_means_of_their_cells() -> None:
    torch.manual_seed(0)
    block = FusionBlock(8, heads=2, feed_forward=0)
    nn.init.zeros_(block.alpha)  # image only
    visual = torch.randn(1, 8, 4, 6)
    v, pe = visual.flatten(2).mT, plane_sinusoids(4, 6, 8, CPU)
    normed = block.self_norm(v)
    cells = F.avg_pool2d(normed.mT.unflatten(2, (4, 6)), 2).flatten(2).mT
    places = F.avg_pool2d(pe, 2).flatten(1).mT
    attended = block.self_attention(normed + pe.flatten(1).mT, cells + places, cells)
    expected = (v + block.self_output_norm(attended)).mT.unflatten(2, (4, 6))
    torch.testing.assert_close(block(visual, torch.randn(1, 3, 8), (2, 3)), expected)


def test_finer_levels_have_fewer_keys_and_as_many_queries(task: Task) -> None:
    features = Features((8, 8, 8, 8), (4, 8, 16, 32))
    fusion = built(task, features, stages=4, key_stride=16)
    counted: dict[str, tuple[int, int]] = {}
    for level, stage in fusion.stages.items():

        def count(layer: nn.Module, args: tuple[Tensor, ...], level: str = level) -> None:
            counted[level] = (args[0].shape[1], args[1].shape[1])

        stage.blocks[0].self_attention.register_forward_pre_hook(count)  # type: ignore[union-attr, index]
    fusion(maps(features, coarsest=(3, 5)), some_text())
    assert counted == {"0": (24 * 40, 6 * 10), "1": (12 * 20, 6 * 10), "2": (6 * 10, 6 * 10), "3": (3 * 5, 3 * 5)}


def test_reduced_positions_are_guided_on_the_grid_and_changed_by_what_it_changes(task: Task) -> None:
    features = Features((8, 8), (2, 4))
    plain = built(task, features, key_stride=4)
    fusion = built(task, features, key_stride=4, reduction="positions")
    fusion.load_state_dict(plain.state_dict())
    image_features, text = maps(features), some_text()
    fused = fusion(image_features, text)
    assert torch.equal(fused[1], plain(image_features, text)[1])  # as coarse as the keys: exact
    entering = fusion.decoders[0](fused[1], image_features[0])
    pooled = F.avg_pool2d(entering, 2)
    stage = fusion.stages["0"]
    guide = F.relu(stage.text_projection(F.relu(stage.text_mixture(text.tokens))))  # type: ignore[operator]
    change = stage.blocks[0](pooled, guide, (3, 5)) - pooled  # type: ignore[index, operator]
    expected = entering + F.interpolate(change, (6, 10), mode="bilinear")
    torch.testing.assert_close(fused[0], expected)
    fused[0].sum().backward()
    assert all(parameter.grad is not None for parameter in stage.parameters())


def test_a_key_stride_of_one_is_exact_everywhere(task: Task) -> None:
    fusion = built(task, key_stride=1)
    assert [fusion.key_grid(level, feature) for level, feature in enumerate(maps())] == [(12, 20), (6, 10), (3, 5)]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "settings", [{}, {"stages": 1}, {"key_stride": 1}, {"blocks": 2, "feed_forward": 4, "convolutions": 3}]
)
def test_it_gives_the_same_levels_finest_first(task: Task, settings: dict[str, int], batch: int) -> None:
    image_features = maps(batch=batch)
    fused = built(task, **settings)(image_features, some_text(batch))
    assert [feature.shape for feature in fused] == [feature.shape for feature in image_features]


def test_text_changes_every_level_and_padding_none(task: Task) -> None:
    fusion, image_features, text = built(task), maps(), some_text()
    fused = fusion(image_features, text)
    for rubbish in (1e3, math.nan, math.inf):
        padded = replace(text, tokens=text.tokens.masked_fill(~text.mask[..., None], rubbish))
        assert all(torch.equal(a, b) for a, b in zip(fused, fusion(image_features, padded), strict=True))
    changed = fusion(image_features, replace(text, tokens=-text.tokens))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(fused, changed, strict=True))


def test_slices_of_a_batch_do_not_see_each_other(task: Task) -> None:
    fusion, image_features, text = built(task), maps(), some_text()
    both = fusion(image_features, text)
    first = replace(text, tokens=text.tokens[:1], mask=text.mask[:1], present=text.present[:1])
    alone = fusion(tuple(feature[:1] for feature in image_features), first)
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a[:1], b)


@pytest.mark.parametrize(
    ("stages", "guided"), [(0, set()), (1, {"2"}), (2, {"1", "2"}), (3, {"0", "1", "2"}), (9, {"0", "1", "2"})]
)
def test_stages_count_from_the_coarsest(task: Task, stages: int, guided: set[str]) -> None:
    fusion = built(task, stages=stages)
    assert set(fusion.stages) == guided
    assert len(fusion.decoders) == 2


@pytest.mark.parametrize(("text_stages", "reading"), [(0, set()), (1, {"2"}), (2, {"1", "2"}), (3, {"0", "1", "2"})])
def test_text_stages_keep_the_self_attention_of_all_stages(task: Task, text_stages: int, reading: set[str]) -> None:
    fusion, whole = built(task, text_stages=text_stages), built(task)
    assert {level for level, stage in fusion.stages.items() if stage.reads_text} == reading
    assert fusion.uses_text == bool(reading)
    missing = whole.state_dict().keys() - fusion.state_dict().keys()
    assert missing == {
        name
        for name in whole.state_dict()
        if ("cross_" in name or "text_" in name or "alpha" in name) and name.split(".")[1] not in reading
    }
    image_features, text = maps(), some_text()
    changed = replace(text, tokens=text.tokens + 1)
    before, after = fusion(image_features, text), fusion(image_features, changed)
    coarsest_read = {level: torch.equal(a, b) for level, (a, b) in enumerate(zip(before, after, strict=True))}
    assert list(coarsest_read.values()) == [not reading] * 3  # text at the bottleneck reaches every finer level
    if text_stages == 3:
        assert all(torch.equal(a, b) for a, b in zip(before, whole(image_features, text), strict=True))


def test_text_at_no_stage_needs_no_prompts(task: Task) -> None:
    fusion = built(replace(task, text_size=None, text_length=None), text_stages=0)
    fused = fusion(maps(), None)
    fused[0].sum().backward()
    assert all(parameter.grad is not None for parameter in fusion.parameters())


@pytest.mark.parametrize(
    "settings", [{}, {"stages": 1}, {"text_stages": 1}, {"blocks": 2, "feed_forward": 2, "convolutions": 2}]
)
def test_every_parameter_learns(task: Task, settings: dict[str, int]) -> None:
    fusion = built(task, **settings)
    (fusion(maps(), some_text())[0] ** 2).mean().backward()  # a model reads the finest level only
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # One number added to all keys' scores of a query changes no softmax, so a key's bias has nothing to learn;
        # a constant before an instance normalisation is seen at the borders alone.
        if not name.endswith("key.bias"):
            assert parameter.grad.abs().max() > 1e-9, name


def test_it_runs_under_autocast(task: Task) -> None:
    fusion, image_features, text = built(task, feed_forward=2), maps(), some_text()
    expected = fusion(image_features, text)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = fusion(image_features, text)
        autocast[0].float().mean().backward()
    for a, b in zip(autocast, expected, strict=True):
        assert a.isfinite().all()
        assert (a.float() - b).abs().mean() < 0.05 * b.abs().mean()


def test_it_can_be_stored_copied_and_pickled(task: Task) -> None:
    fusion, image_features, text = built(task).eval(), maps(), some_text()
    expected = fusion(image_features, text)[0]
    reloaded = HASF(task, FEATURES, heads=4, text_tokens=5).eval()
    assert not torch.equal(reloaded(image_features, text)[0], expected)
    reloaded.load_state_dict(fusion.state_dict())
    for twin in (reloaded, copy.deepcopy(fusion), pickle.loads(pickle.dumps(fusion))):
        assert torch.equal(twin(image_features, text)[0], expected)


def test_the_length_of_the_text_is_part_of_the_weights(task: Task) -> None:
    text = some_text()
    with pytest.raises(RuntimeError, match=r"to have 6 channels, but got 5"):
        built(task)(maps(), replace(text, tokens=text.tokens[:, :5], mask=text.mask[:, :5]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"heads": 3},
            r"heads is 3, but must divide the channels of every level with attention: 8, 16, 24. Possible: 1, 2, 4, 8",
        ),
        ({"heads": 16, "stages": 1}, r"every level with attention: 24. Possible: 1, 2, 3, 4, 6, 8, 12, 24\."),
        ({"heads": 0}, "heads is 0, but must be at least 1"),
        ({"stages": -1}, "stages is -1"),
        ({"text_stages": -1}, "text_stages is -1"),
        ({"stages": 1, "text_stages": 2}, "text_stages is 2, above stages, which is 1"),
        ({"key_stride": 0}, "key_stride is 0"),
        ({"text_tokens": 0}, "text_tokens is 0"),
        ({"blocks": 0}, "blocks is 0"),
        ({"convolutions": 0}, "convolutions is 0"),
        ({"feed_forward": -1}, "feed_forward is -1, but must not be below 0"),
    ],
)
def test_a_setting_out_of_range_is_named(task: Task, settings: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        built(task, **settings)


def test_heads_need_to_divide_guided_levels_only(task: Task) -> None:
    assert set(built(task, heads=12, stages=1).stages) == {"2"}


def test_it_needs_text(task: Task) -> None:
    with pytest.raises(RecipeError, match="the recipe has no prompts"):
        built(replace(task, text_size=None, text_length=None))


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        ({}, 12.617),
        ({"blocks": 2, "feed_forward": 4, "convolutions": 3}, 35.088),
        ({"blocks": 3, "feed_forward": 4, "convolutions": 3}, 47.69),
    ],
)
def test_sizes_are_those_of_the_docstring(task: Task, settings: dict[str, int], millions: float) -> None:
    swin = Features((48, 48, 96, 192, 384, 768), (1, 2, 4, 8, 16, 32))
    paper = replace(task, text_size=768, text_length=128)
    with torch.device("meta"):
        fusion = HASF(paper, swin, **settings)
    assert sum(parameter.numel() for parameter in fusion.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_what_is_absent_is_learned_from_nothing_where_asked_for(task: Task) -> None:
    plain, learning = built(task).eval(), built(task, learn_absence=True).eval()
    images, text = maps(), some_text()
    absent = replace(text, present=torch.tensor([[True, False, True, True], [True, True, True, True]]))
    for before, after in zip(plain(images, text), learning(images, absent), strict=True):  # it begins with zeros
        torch.testing.assert_close(before, after)
    for stage in learning.stages.values():
        nn.init.normal_(stage.absence)
    informed, uninformed = learning(images, absent), learning(images, text)
    assert not torch.allclose(informed[0][0], uninformed[0][0])  # the slice of which a structure is absent
    torch.testing.assert_close(informed[0][1], uninformed[0][1])
    learning(images, absent)[0].sum().backward()
    for stage in learning.stages.values():
        missing = stage.absence.grad.abs().sum(dim=1) > 0
        assert missing.tolist() == [False, True, False, False]
    check_fusion("hasf", settings={"heads": 2, "learn_absence": True})
