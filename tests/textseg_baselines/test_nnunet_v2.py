from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import Tensor

from textseg.contracts import Atlas, Batch, Task
from textseg.errors import RecipeError
from textseg.models.losses import segmentation_loss
from textseg.models.segmenter import Segmenter
from textseg_baselines.nnunet_v2 import (
    NNUNetV2,
    count_values,
    deep_supervision_weights,
    plan_stages,
)

BOTH = (2, 2)


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (64, 96), small_atlas.class_count, small_atlas)


def batch_of(image: Tensor, mask: Tensor) -> Batch:
    index = torch.arange(len(image))
    return Batch(image, mask, None, tuple("abcdefgh"[: len(image)]), index, index + 1, torch.ones(len(image), 3))


@pytest.mark.parametrize(
    ("size", "spacing_mm", "strides", "kernels"),
    [
        # Worked by hand; behind each, the sides of its maps
        ((320, 320), (0.6, 0.6), [BOTH] * 6, [(3, 3)] * 7),  # 320 160 80 40 20 10 5
        ((56, 40), (1.0, 1.0), [BOTH] * 3, [(3, 3)] * 4),  # 56 28 14 7; 40 20 10 5
        ((320, 256), (1.25, 1.25), [BOTH] * 6, [(3, 3)] * 7),  # ... 10 5; ... 8 4
        ((512, 512), (0.8, 0.8), [BOTH] * 7, [(3, 3)] * 8),  # ... 8 4
        # 256 .. 8 and 224 .. 7: one axis alone must have 12 left, and 8 is less
        ((256, 224), (1.5, 1.5), [BOTH] * 5, [(3, 3)] * 6),
        # 128 64 32 16 8 4 (2 halvings more for the rows at 16 -> 8, which is then less than 12)
        ((512, 128), (1.0, 1.0), [BOTH] * 5 + [(2, 1)], [(3, 3)] * 7),
        # Columns five times as fine: they are halved alone to 1.6 (ratio 2.5), to 3.2 (1.25, so both from there on);
        # rows get kernels of 3 once their spacing is within a factor of 2
        (
            (64, 256),
            (4.0, 0.8),
            [(1, 2), (1, 2), BOTH, BOTH, BOTH, BOTH],
            [(1, 3), (1, 3), (3, 3), (3, 3), (3, 3), (3, 3), (3, 3)],
        ),
        ((8, 8), (1.0, 1.0), [BOTH], [(3, 3)] * 2),
        ((7, 7), (1.0, 1.0), [], [(3, 3)]),
        ((9, 9), (1.0, 1.0), [BOTH], [(3, 3)] * 2),  # 9 5: halves are rounded up
    ],
)
def test_stages_follow_nnunets_rules(
    size: tuple[int, int], spacing_mm: tuple[float, float], strides: list[Any], kernels: list[Any]
) -> None:
    assert plan_stages(size, spacing_mm) == (((1, 1), *strides), tuple(kernels))


def test_memory_is_counted_as_nnunet_does() -> None:
    # Two stages of 2 and 4 channels, 8 x 8 pixels, three classes, by hand: down 2 x 2 x 64 and 2 x 4 x 16; up the
    # transposed one and two more, 3 x 2 x 64; the logits 3 x 64
    assert count_values((8, 8), (2, 4), ((1, 1), BOTH), 3) == 256 + 128 + 384 + 192


def test_the_count_is_that_of_the_maps_of_the_network(task: Task) -> None:
    network = NNUNetV2(task, features=4).eval()
    values = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(lambda module, inputs, output: values.append(output.numel()))
    with torch.no_grad():
        network(torch.zeros(1, 1, 64, 96), None)
    plan = network.plan
    assert sum(values) == count_values(plan.patch, plan.features, plan.strides, task.class_count)


def test_the_plan_of_a_known_fingerprint(task: Task) -> None:
    fingerprint = {
        "native_sizes": [(15, 448, 448), (17, 640, 512), (16, 512, 512)],
        "native_spacings_mm": [(4.0, 0.7, 0.7), (4.4, 0.5, 0.6), (4.2, 0.6, 0.5)],
        "spacings_mm": [(4.0, 0.8, 0.8), (4.4, 0.9, 0.9), (4.2, 1.0, 1.0)],
        "intensities": [(0.0, 1.0)] * 3,
    }
    plan = NNUNetV2(replace(task, image_size=(384, 384), class_count=20, fingerprint=fingerprint)).plan
    assert plan.median_native_size == (512, 512)
    assert plan.median_native_spacing_mm == (0.6, 0.6)
    assert plan.spacing_mm == (0.9, 0.9)
    assert plan.features == (32, 64, 128, 256, 512, 512, 512)
    assert (plan.patch, plan.size_multiple) == ((384, 384), 64)
    assert plan.batch_size == 2  # 5 % of 3 x 16 slices
    many = {**fingerprint, "native_sizes": [(16, 512, 512)] * 300}
    plan = NNUNetV2(replace(task, image_size=(384, 384), class_count=20, fingerprint=many)).plan
    # Maps of a 384 x 384 image: (32 + 16 + 8 + 4 + 2 + 0.5) x 384^2 x 5 over the stages but the last, 2 x 512 x 6 x 6
    # there, 20 x 384^2 logits: 49.06 M, of which 85 M x 12 hold 20.8
    assert plan.batch_size == 21


def test_without_a_fingerprint_pixels_are_square_and_the_data_set_endless(task: Task) -> None:
    with_one = replace(task, fingerprint={"spacings_mm": [(4.0, 2.0, 2.0)], "native_sizes": [(900, 64, 96)] * 99})
    plan, same = NNUNetV2(task).plan, NNUNetV2(with_one).plan
    assert (plan.strides, plan.kernels, plan.batch_size) == (same.strides, same.kernels, same.batch_size)
    assert plan.median_native_size is None


@pytest.mark.parametrize(("size", "patch"), [((50, 70), (56, 72)), ((160, 128), (160, 128)), ((512, 128), (512, 128))])
def test_the_patch_is_what_the_network_sees(task: Task, size: tuple[int, int], patch: tuple[int, int]) -> None:
    network = NNUNetV2(replace(task, image_size=size), features=2)
    seen: list[Any] = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    Segmenter(network)(torch.zeros(1, 1, *size))
    assert seen == [network.plan.patch] == [patch]


def test_unlike_pixels_give_unlike_strides(task: Task) -> None:
    fingerprint = {"spacings_mm": [(4.0, 4.0, 0.8)]}
    network = NNUNetV2(replace(task, image_size=(64, 256), fingerprint=fingerprint), features=2).train()
    output = network(torch.randn(1, 1, 64, 256), None)
    assert output.logits.shape[-2:] == (64, 256)
    assert [tuple(logits.shape[-2:]) for logits in output.deep_logits] == [(64, 128), (64, 64), (32, 32), (16, 16)]


def test_blocks_are_those_of_monais_dynamic_unet(task: Task) -> None:
    """Compare with MONAI's network for equal kernels, where both decoders are the same."""
    network = NNUNetV2(task, features=4, max_features=16).eval()
    plan = network.plan
    theirs = DynUNet(
        2, 1, task.class_count, plan.kernels, plan.strides, plan.strides[1:], plan.features, trans_bias=True
    ).eval()
    theirs.input_block.load_state_dict(network.encoder[0].state_dict())
    for own_block, block in zip(network.encoder[1:-1], theirs.downsamples, strict=True):
        block.load_state_dict(own_block.state_dict())
    theirs.bottleneck.load_state_dict(network.encoder[-1].state_dict())
    for own_block, block in zip(reversed(network.decoder), theirs.upsamples, strict=True):
        block.load_state_dict(own_block.state_dict())
    theirs.output_block.load_state_dict(network.heads[0].state_dict())
    image = torch.randn(1, 1, 64, 96)
    with torch.inference_mode():
        assert torch.equal(network(image, None).logits, theirs(image))


def test_every_resolution_but_the_two_coarsest_is_supervised_in_training_alone(task: Task) -> None:
    network = NNUNetV2(task, features=4)  # stages at 64 x 96, 32 x 48, 16 x 24, 8 x 12, 4 x 6
    image = torch.randn(2, 1, 64, 96)
    output = network.train()(image, None)
    assert [tuple(logits.shape) for logits in output.deep_logits] == [(2, 5, 32, 48), (2, 5, 16, 24)]
    assert network.eval()(image, None).deep_logits == ()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_weights_halve_and_sum_to_one(count: int) -> None:
    weights = deep_supervision_weights(count)
    assert sum(weights) == pytest.approx(1)
    assert all(b / a == pytest.approx(0.5) for a, b in pairwise(weights))
    assert deep_supervision_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_the_loss_is_the_weighted_sum_over_the_resolutions(task: Task) -> None:
    network = NNUNetV2(task, features=4).train()
    loss = segmentation_loss({"dice": 1, "focal": 0, "cross_entropy": 1}, task)
    mask = torch.randint(0, 5, (2, 16, 24)).repeat_interleave(4, 1).repeat_interleave(4, 2)  # the same at every scale
    image = torch.randn(2, 1, 64, 96)
    output = network(image, None)
    terms = network.losses(output, batch_of(image, mask), loss)
    assert terms.keys() == {"dice", "cross_entropy"}
    expected = {name: torch.zeros(()) for name in terms}
    for weight, stride, logits in zip(
        (4 / 7, 2 / 7, 1 / 7), (1, 2, 4), (output.logits, *output.deep_logits), strict=True
    ):
        for name, term in loss(logits, mask[:, ::stride, ::stride]).items():
            expected[name] = expected[name] + weight * term
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])


def test_coarse_logits_get_gradients(task: Task) -> None:
    network = NNUNetV2(task, features=4).train()
    image = torch.randn(1, 1, 64, 96)
    output = network(image, None)
    maps = (output.logits, *output.deep_logits)
    for logits in maps:
        logits.retain_grad()
    terms = network.losses(output, batch_of(image, torch.randint(0, 5, (1, 64, 96))), segmentation_loss({}, task))
    torch.stack(list(terms.values())).sum().backward()
    assert all(logits.grad is not None and logits.grad.any() for logits in maps)
    assert all(head.conv.conv.weight.grad.any() for head in network.heads)  # type: ignore[union-attr]


def test_the_mask_of_a_padded_slice_lies_on_its_coarse_logits(task: Task) -> None:
    """A slice of 100 x 140 is padded to 112 x 144; perfect coarse logits of it cost nearly nothing."""
    network = NNUNetV2(replace(task, image_size=(100, 140)), features=4).train()
    mask = torch.zeros(1, 100, 140, dtype=torch.long)
    mask[:, 8:40, 24:100] = 3
    segmenter, image = Segmenter(network), torch.randn(1, 1, 100, 140)
    output = segmenter(image)
    assert [tuple(logits.shape[-2:]) for logits in output.deep_logits] == [(56, 72), (28, 36)]
    padded = torch.zeros(1, 112, 144, dtype=torch.long)
    padded[:, :100, :140] = mask
    perfect = tuple(
        20.0 * torch.nn.functional.one_hot(padded[:, ::stride, ::stride], 5).movedim(-1, 1) for stride in (2, 4)
    )
    right = replace(output, logits=20.0 * torch.nn.functional.one_hot(mask, 5).movedim(-1, 1), deep_logits=perfect)
    terms = network.losses(right, batch_of(image, mask), segmentation_loss({"dice": 1, "cross_entropy": 1}, task))
    assert all(term < 1e-3 for term in terms.values())


def test_channels_out_of_range_are_refused(task: Task) -> None:
    for features in (0, 1024):
        with pytest.raises(
            RecipeError, match=rf"features is {features}, but must lie between 1 and max_features \(512\)"
        ):
            NNUNetV2(task, features=features)
