import copy
import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from textseg.contracts import Atlas, Batch, Features, SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError
from textseg_atmnet.ccae import CCAE

D, CHANNELS = 7, 6
Pooling = Literal["mask", "prediction", "grid"]
POOLINGS: tuple[Pooling, ...] = ("mask", "prediction", "grid")


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (16, 24), small_atlas.class_count, small_atlas, text_size=D, text_length=5)


def built(task: Task, stride: int = 2, **settings: object) -> CCAE:
    torch.manual_seed(0)
    return CCAE(task, Features((CHANNELS, 8), (stride, 2 * stride)), **{"embedding_size": 9, "grid": 4, **settings})  # type: ignore[arg-type]


def masks() -> Tensor:
    """Four structures; two; one; none."""
    mask = torch.zeros(4, 16, 24, dtype=torch.int64)
    mask[0, 0:4], mask[0, 4:8, 3:], mask[0, 9:12], mask[0, 13, 5] = 1, 2, 3, 4
    mask[1, 2:9, 5:9], mask[1, 3:5, 20:] = 2, 4
    mask[2, 5:] = 3
    return mask


def example(mask: Tensor, stride: int = 2, multiple: int = 8, dtype: torch.dtype = torch.float32) -> SegmenterOutput:
    """Return the output of a model for random images that the core padded to a multiple of pixels."""
    batch, (height, width) = len(mask), mask.shape[-2:]
    sides = [math.ceil(side / multiple) * multiple // stride for side in (height, width)]
    text = TextFeatures(
        torch.randn(batch, 5, D),
        torch.ones(batch, 5, dtype=torch.bool),
        torch.randn(batch, 4, D),
        torch.ones(batch, 4, dtype=torch.bool),
    )
    return SegmenterOutput(
        torch.randn(batch, 5, height, width, dtype=dtype, requires_grad=True),
        fused_features=(torch.randn(batch, CHANNELS, *sides, dtype=dtype, requires_grad=True),),
        text=text,
    )


def batch_of(mask: Tensor) -> Batch:
    zeros = torch.zeros(len(mask), dtype=torch.int64)
    image = torch.zeros(len(mask), 1, *mask.shape[-2:])
    return Batch(image, mask, None, ("case",) * len(mask), zeros, zeros, torch.ones(len(mask), 3))


def expected(loss: CCAE, output: SegmenterOutput, mask: Tensor) -> float:
    """Compute the loss image by image over the visible structures, with torch's cross-entropy."""
    values = []
    for i in range(len(mask)):
        there = [k for k in range(1, 5) if (mask[i] == k).any()]
        if len(there) < 2:
            continue
        visual = []
        for k in there:
            if loss.pooling != "grid":
                fine = F.interpolate(output.fused_features[0][i : i + 1].float(), scale_factor=loss.stride)[0]
                height, width = mask.shape[-2:]
                confidence = output.logits[i].float().softmax(0)[k]
                weights = (mask[i] == k).float() if loss.pooling == "mask" else confidence
                visual.append((fine[:, :height, :width] * weights).sum((1, 2)) / weights.sum())
            else:
                visual.append(F.adaptive_avg_pool2d(output.logits[i, k][None].float(), loss.grid).flatten())
        v = F.normalize(loss.visual_projection(torch.stack(visual)), dim=-1)
        assert output.text is not None
        assert output.text.classwise is not None
        t = F.normalize(loss.text_projection(loss.text_norm(output.text.classwise[i, [k - 1 for k in there]])), dim=-1)
        scores, right = v @ t.T / loss.temperature, torch.arange(len(there))
        values.append((F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2)
    return torch.stack(values).mean().item()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 24), (15, 19)])
def test_it_equals_cross_entropy_over_the_structures_that_are_there(
    task: Task, pooling: Pooling, stride: int, size: tuple[int, int]
) -> None:
    mask = masks()[:, : size[0], : size[1]]
    loss, output = built(task, stride, pooling=pooling), example(mask, stride)
    assert loss(output, batch_of(mask)).item() == pytest.approx(expected(loss, output, mask), rel=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_is_absent_changes_nothing(task: Task, pooling: Pooling) -> None:
    mask = masks()
    loss, output = built(task, pooling=pooling), example(mask)
    before = loss(output, batch_of(mask))
    assert output.text is not None
    assert output.text.classwise is not None
    absent = torch.stack([~(mask == k).flatten(1).any(1) for k in range(1, 5)], dim=1)  # [B, K-1]
    changed = output.text.classwise + 50 * torch.randn_like(output.text.classwise) * absent[..., None]
    logits = output.logits.detach().clone()
    if pooling != "prediction":  # a softmax joins all classes
        logits[:, 0] += 100  # the background
        logits[:, 1:][absent] -= 100
    changed = replace(output, logits=logits, text=replace(output.text, classwise=changed))
    torch.testing.assert_close(loss(changed, batch_of(mask)), before)
    fewer = [tensor[:2] for tensor in (output.logits, output.fused_features[0], output.text.classwise)]
    alone = SegmenterOutput(
        fewer[0],
        fused_features=(fewer[1],),
        text=TextFeatures(output.text.tokens[:2], output.text.mask[:2], fewer[2], output.text.present[:2]),
    )
    torch.testing.assert_close(loss(alone, batch_of(mask[:2])), before)  # images with fewer than two add nothing


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("images", [[0], [1], [2], [3], [2, 3], [0, 1, 2, 3]])
def test_gradients_are_finite_and_zero_where_it_has_nothing_to_say(
    task: Task, pooling: Pooling, images: list[int]
) -> None:
    mask = masks()[images]
    loss, output = built(task, pooling=pooling), example(mask)
    value = loss(output, batch_of(mask))
    value.backward()
    entries = {"mask": output.fused_features[:1], "grid": [output.logits]}
    reached = entries.get(pooling, [output.logits, output.fused_features[0]])
    learned = [*reached, *loss.parameters()]
    for tensor in learned:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    silent = not {0, 1} & set(images)
    assert (value.item() == 0) == silent
    assert (max(tensor.grad.abs().max().item() for tensor in learned if tensor.grad is not None) == 0) == silent
    for entry in reached:
        for index, image in enumerate(images):
            assert entry.grad is not None
            assert bool(entry.grad[index].any()) == (image in (0, 1))


def test_only_annotated_pixels_are_pooled(task: Task) -> None:
    mask = masks()[:2]
    loss, output = built(task, stride=1, pooling="mask"), example(mask, stride=1)
    loss(output, batch_of(mask)).backward()
    gradient = output.fused_features[0].grad
    assert gradient is not None
    assert torch.equal(gradient.abs().sum(1) > 0, mask > 0)


def test_a_structure_smaller_than_one_position_is_not_shrunk(task: Task) -> None:
    loss = built(task, stride=4)
    shown = torch.zeros(1, 4, 16, 24)
    shown[0, 0, 5, 5] = 1
    feature = torch.randn(1, CHANNELS, 4, 6)
    pooled = loss.pool(feature, shown)
    torch.testing.assert_close(pooled[0, 0], feature[0, :, 1, 1])
    assert not pooled[0, 1:].any()


def test_padding_of_the_core_moves_nothing(task: Task) -> None:
    loss = built(task, stride=2)
    feature = torch.randn(1, CHANNELS, 8, 12)
    shown = torch.zeros(1, 4, 13, 21)
    shown[0, 2, 12, 20] = 1  # the last pixel lies in the last position but one row and one column
    torch.testing.assert_close(loss.pool(feature, shown)[0, 2], feature[0, :, 6, 10])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_training_meets_the_target(task: Task, pooling: Pooling) -> None:
    mask = masks()
    loss, output = built(task, pooling=pooling), example(mask)
    before = loss(output, batch_of(mask)).item()
    assert before > 1
    learned = [output.logits, output.fused_features[0], *loss.parameters()]
    optimizer = torch.optim.Adam(learned, lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(output, batch_of(mask)).backward()
        optimizer.step()
    assert loss(output, batch_of(mask)).item() < 0.05


def test_texts_that_are_all_alike_cost_the_logarithm_of_their_number(task: Task) -> None:
    mask = masks()[:1]
    loss, output = built(task), example(mask)
    assert output.text is not None
    assert output.text.classwise is not None
    alike = replace(output.text, classwise=output.text.classwise[:, :1].expand(-1, 4, -1))
    visual = F.normalize(torch.randn(1, 4, 9), dim=-1)
    assert loss(replace(output, text=alike), batch_of(mask)).item() > math.log(4)
    same = visual[:, :1].expand(-1, 4, -1)
    present = torch.ones(1, 4, dtype=torch.bool)
    assert loss.contrast(same, same, present).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_is_computed_in_float32_under_autocast(task: Task, pooling: Pooling, dtype: torch.dtype) -> None:
    mask = masks()
    loss, output = built(task, pooling=pooling), example(mask, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(output, batch_of(mask))
    assert value.dtype == torch.float32
    wide = replace(output, logits=output.logits.float(), fused_features=(output.fused_features[0].float(),))
    assert torch.equal(value, loss(wide, batch_of(mask)))


def test_its_own_weights_can_be_stored(task: Task) -> None:
    mask = masks()
    loss, output = built(task), example(mask)
    reloaded = CCAE(task, Features((CHANNELS, 8), (2, 4)), embedding_size=9)
    reloaded.load_state_dict(loss.state_dict())
    for twin in (reloaded, copy.deepcopy(loss)):
        assert torch.equal(twin(output, batch_of(mask)), loss(output, batch_of(mask)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0, but must be above 0"),
        ({"embedding_size": 0}, "embedding_size is 0"),
        ({"grid": -1}, "grid is -1"),
    ],
)
def test_a_setting_out_of_range_is_named(task: Task, settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=f"ccae: {message}"):
        built(task, **settings)


def test_it_needs_text(task: Task) -> None:
    with pytest.raises(RecipeError, match="the recipe has no prompts"):
        built(replace(task, text_size=None, text_length=None))
    mask = masks()
    output = example(mask)
    assert output.text is not None
    with pytest.raises(RecipeError, match="needs class-wise text features"):
        built(task)(replace(output, text=replace(output.text, classwise=None)), batch_of(mask))


@pytest.mark.parametrize(
    ("pooling", "least", "most"),
    [("mask", math.log(4) - 0.02, 3), ("prediction", 0, 0.6), ("grid", 0, 0.6)],
)
def test_on_noise_only_the_mask_leaves_the_loss_at_chance(
    task: Task, pooling: Pooling, least: float, most: float
) -> None:
    """The projections learn which channel of the logits a vector comes from; nothing tells masked noise apart."""
    loss = built(task, stride=1, pooling=pooling)
    mask = (torch.arange(16 * 24) * 5 // (16 * 24)).reshape(1, 16, 24).expand(8, -1, -1)
    weight, projection, classwise = torch.randn(CHANNELS, 1, 3, 3), torch.randn(5, CHANNELS), torch.randn(1, 4, D)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)

    def on_new_noise() -> Tensor:
        image = F.pad(torch.randn(8, 1, 16, 24), (1, 1, 1, 1), mode="circular")  # zeros would tell borders apart
        feature = F.conv2d(image, weight).relu()
        logits = torch.einsum("kc,bchw->bkhw", projection, feature)
        shown = torch.ones(8, 4, dtype=torch.bool)
        text = TextFeatures(torch.zeros(8, 1, D), shown[:, :1], classwise.expand(8, -1, -1), shown)
        value: Tensor = loss(SegmenterOutput(logits, fused_features=(feature,), text=text), batch_of(mask))
        return value

    for _ in range(120):
        optimizer.zero_grad()
        on_new_noise().backward()
        optimizer.step()
    with torch.no_grad():
        held_out = torch.stack([on_new_noise() for _ in range(8)]).mean().item()
    assert least < held_out < most
