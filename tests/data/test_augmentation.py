from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter
from torch import Tensor

from textseg.data.augmentation import FixedOrder, Transform, TransformList
from textseg.data.field_of_view import View
from textseg.distortions import blur, coarsen
from textseg.errors import PluginError, RecipeError
from textseg.randomness import case_key, slice_key
from textseg.recipe.schema import AugmentationSettings
from textseg.registry.component import Component

HEIGHT, WIDTH = 60, 44
EVERYTHING: dict[str, Any] = {
    "distortion": 1.0,
    "rotation_degrees": 15,
    "scale": 0.2,
    "translation": 0.1,
    "elastic_pixels": 2,
    "gamma": 0.3,
    "noise": 0.05,
    "contrast": 0.2,
    "flip": "horizontal",
}
GEOMETRY = {
    key: EVERYTHING[key] for key in ("distortion", "rotation_degrees", "scale", "translation", "elastic_pixels")
}


class Chosen(np.random.Generator):
    """A generator whose uniform draws are given: angle, scale, row of shifts (columns first)."""

    def __init__(self, *values: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.values = list(values)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        if size is None:
            return self.values.pop(0)
        taken, self.values = self.values[:size], self.values[size:]
        return np.array(taken)


def disc(height: int = HEIGHT, width: int = WIDTH, radius: float = 12.0) -> Tensor:
    """A disc off the centre, with a soft border of two pixels; 0.5 is its edge."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - 0.45 * height, columns - 0.55 * width)
    return torch.from_numpy(np.clip((radius + 1 - distance) / 2, 0, 1).astype(np.float32))


def pair() -> tuple[Tensor, Tensor]:
    return disc()[None], (disc() > 0.5).long()


def test_nothing_changes_where_every_setting_is_zero() -> None:
    image, mask = torch.randn(1, HEIGHT, WIDTH), torch.randint(0, 5, (HEIGHT, WIDTH))
    for slice_id in range(5):
        moved, classes = FixedOrder(AugmentationSettings(), seed=3)(image, mask, epoch=1, slice_id=slice_id)
        assert torch.equal(moved, image)
        assert torch.equal(classes, mask)


def test_a_distortion_of_size_zero_moves_nothing() -> None:
    image, mask = torch.randn(1, HEIGHT, WIDTH), torch.randint(0, 5, (HEIGHT, WIDTH))
    moved, classes = FixedOrder(AugmentationSettings(distortion=1.0), seed=3)(image, mask, epoch=1, slice_id=2)
    torch.testing.assert_close(moved, image, atol=1e-4, rtol=0)
    assert torch.equal(classes, mask)


def test_every_draw_is_a_function_of_seed_epoch_and_slice() -> None:
    image, mask = pair()
    settings = AugmentationSettings(**EVERYTHING)

    def draw(seed: int, epoch: int, slice_id: int) -> Tensor:
        return FixedOrder(settings, seed)(image, mask, epoch=epoch, slice_id=slice_id)[0]

    augmentation = FixedOrder(settings, 7)
    earlier = [augmentation(image, mask, epoch=4, slice_id=slice_id)[0] for slice_id in (9, 2**32 - 1, 0)]
    torch.manual_seed(1)
    np.random.seed(1)
    for slice_id, before in zip((0, 2**32 - 1, 9), reversed(earlier), strict=True):
        assert torch.equal(draw(7, 4, slice_id), before)
    for different in (draw(8, 4, 9), draw(7, 5, 9), draw(7, 4, 8)):
        assert not torch.equal(different, earlier[0])


def test_the_inputs_are_left_alone() -> None:
    image, mask = pair()
    FixedOrder(AugmentationSettings(**EVERYTHING), 0)(image, mask, epoch=0, slice_id=0)
    assert torch.equal(image, pair()[0])
    assert torch.equal(mask, pair()[1])


@pytest.mark.parametrize("slice_id", range(8))
def test_image_and_mask_move_alike(slice_id: int) -> None:
    image, mask = pair()
    settings = AugmentationSettings(**GEOMETRY, flip="horizontal")
    moved, classes = FixedOrder(settings, 1)(image, mask, epoch=0, slice_id=slice_id)
    assert moved.shape == image.shape
    assert classes.shape == mask.shape
    assert classes.dtype == torch.int64
    assert set(classes.unique().tolist()) <= {0, 1}
    shown = moved[0] > 0.5
    assert 2 * (shown & (classes == 1)).sum() / (shown.sum() + classes.sum()) > 0.95
    # Wherever they differ, the picture is at the soft border: nearest and linear sampling agree but for one pixel.
    assert (moved[0][shown != (classes == 1)] - 0.5).abs().max() < 0.5
    assert (classes != mask).any()


@pytest.mark.parametrize(("height", "width"), [(60, 44), (33, 71), (48, 48)])
@pytest.mark.parametrize(
    ("angle", "scale", "shift"), [(1, 0, (0, 0)), (0, 1, (0, 0)), (0, 0, (0.5, -1)), (-0.7, 0.5, (1, 0.3))]
)
def test_the_affine_part_is_that_of_scipy(
    height: int, width: int, angle: float, scale: float, shift: tuple[float, float]
) -> None:
    settings = AugmentationSettings(rotation_degrees=20, scale=0.2, translation=0.1)
    grid = FixedOrder(settings, 0).sampling_grid(Chosen(angle, scale, *shift), height, width)
    image = disc(height, width, 9.0) * torch.linspace(0.5, 1, width)
    result = torch.nn.functional.grid_sample(image[None, None], grid, align_corners=False)[0, 0]

    radians, zoom = math.radians(20 * angle), 1 + 0.2 * scale
    cos, sin = math.cos(radians) / zoom, math.sin(radians) / zoom
    matrix = np.array([[cos, sin], [-sin, cos]])  # from (row, column) to (row, column)
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = centre - matrix @ centre + 0.1 * np.array([shift[1] * height, shift[0] * width])
    expected = affine_transform(image.numpy(), matrix, offset, order=1, mode="grid-constant")
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-4)


def test_a_larger_scale_makes_structures_larger() -> None:
    grid = FixedOrder(AugmentationSettings(scale=0.2), 0).sampling_grid(Chosen(0, 1, 0, 0), HEIGHT, WIDTH)
    moved = torch.nn.functional.grid_sample(disc(radius=8)[None, None], grid, align_corners=False)
    assert float(moved.sum() / disc(radius=8).sum()) == pytest.approx(1.2**2, rel=0.02)


def test_draws_fill_their_ranges_and_stay_inside_them() -> None:
    settings = AugmentationSettings(rotation_degrees=15, scale=0.2, translation=0.1)
    augmentation = FixedOrder(settings, 0)
    angles, zooms, shifts = [], [], []
    for slice_id in range(300):
        grid = augmentation.sampling_grid(np.random.default_rng((0, 0, slice_id)), HEIGHT, WIDTH)[0]
        pixels = (grid + 1) / 2 * torch.tensor([WIDTH, HEIGHT])  # columns, rows
        step = (pixels[0, -1] - pixels[0, 0]) / (WIDTH - 1)
        zooms.append(1 / float(step.norm()))
        angles.append(math.degrees(math.atan2(step[1], step[0])))
        shifts.append((grid.mean((0, 1)) / 2).tolist())  # of the side
    for values, limits in ((angles, (-15, 15)), (zooms, (0.8, 1.2)), (np.ravel(shifts), (-0.1, 0.1))):
        middle, reach = np.mean(limits), np.ptp(limits) / 2
        assert np.abs(np.array(values) - middle).max() <= reach * 1.001
        assert np.abs(np.array(values) - middle).max() > reach * 0.95
        assert np.mean(values) == pytest.approx(middle, abs=reach * 0.15)


def test_the_elastic_field_is_smooth_and_as_large_as_asked_for() -> None:
    settings = AugmentationSettings(elastic_pixels=3)
    fields = []
    for slice_id in range(40):
        grid = FixedOrder(settings, 0).sampling_grid(np.random.default_rng((slice_id,)), HEIGHT, WIDTH)[0]
        rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
        fields.append(grid * torch.tensor([WIDTH, HEIGHT]) / 2 + torch.tensor([WIDTH, HEIGHT]) / 2)
        fields[-1] = fields[-1] - torch.stack([columns, rows], -1)
    field = torch.stack(fields)
    assert 2 < float(field.std()) < 3.5
    assert float(field.diff(dim=1).abs().mean()) < 0.5
    assert float(field.diff(dim=2).abs().mean()) < 0.6


@pytest.mark.parametrize("lowest", [0.0, -1.5, 0.25])
def test_what_comes_from_outside_is_as_dark_as_the_darkest_part(lowest: float) -> None:
    image = torch.full((1, HEIGHT, WIDTH), lowest)
    image[:, 20:40, 15:30] = 2.0
    mask = torch.ones(HEIGHT, WIDTH, dtype=torch.int64)
    settings = AugmentationSettings(distortion=1.0, translation=1.0, rotation_degrees=45)
    outside = 0
    for slice_id in range(20):
        moved, classes = FixedOrder(settings, 0)(image, mask, epoch=0, slice_id=slice_id)
        torch.testing.assert_close(moved[0][classes == 0], torch.full_like(moved[0][classes == 0], lowest))
        outside += int((classes == 0).sum())
    assert outside > 0


def test_intensities_change_within_their_settings_and_never_the_mask() -> None:
    image, mask = disc()[None] * 0.8 + 0.1, pair()[1]

    def drawn(settings: AugmentationSettings) -> list[Tensor]:
        results = [FixedOrder(settings, 5)(image, mask, epoch=0, slice_id=slice_id) for slice_id in range(200)]
        assert all(torch.equal(classes, mask) for _, classes in results)
        return [moved for moved, _ in results]

    factors = [float(moved.sum() / image.sum()) for moved in drawn(AugmentationSettings(contrast=0.3))]
    assert 0.7 <= min(factors) < 0.72
    assert 1.28 < max(factors) <= 1.3
    for moved in drawn(AugmentationSettings(gamma=0.5)):
        assert float(moved.min()) == pytest.approx(float(image.min()), abs=1e-6)
        assert float(moved.max()) == pytest.approx(float(image.max()), abs=1e-6)
        assert torch.isfinite(moved).all()
    amounts = [float((moved - image).std()) for moved in drawn(AugmentationSettings(noise=0.1))]
    assert max(amounts) == pytest.approx(0.1, rel=0.1)
    assert np.mean(amounts) == pytest.approx(0.05, rel=0.15)


def test_gamma_leaves_an_even_slice_as_it_is() -> None:
    image = torch.full((1, 8, 8), -0.4)
    moved, _ = FixedOrder(AugmentationSettings(gamma=0.5), 0)(image, torch.zeros(8, 8).long(), epoch=0, slice_id=0)
    torch.testing.assert_close(moved, image)


def test_half_of_the_slices_are_flipped_and_a_share_is_distorted() -> None:
    image, mask = pair()
    flipped = 0
    for slice_id in range(400):
        moved, classes = FixedOrder(AugmentationSettings(flip="horizontal"), 0)(image, mask, epoch=0, slice_id=slice_id)
        if torch.equal(moved, image.flip(-1)):
            assert torch.equal(classes, mask.flip(-1))
            flipped += 1
        else:
            assert torch.equal(moved, image)
            assert torch.equal(classes, mask)
    assert 160 < flipped < 240

    settings = AugmentationSettings(distortion=0.25, rotation_degrees=20)
    changed = sum(
        not torch.equal(FixedOrder(settings, 0)(image, mask, epoch=0, slice_id=slice_id)[0], image)
        for slice_id in range(400)
    )
    assert 70 < changed < 130


QUALITY = {"bias": 0.4, "blur_pixels": 2.0, "low_resolution": 3.0}


def test_the_settings_of_quality_move_no_other_draw() -> None:
    settings: dict[str, Any] = {**GEOMETRY, "gamma": 0.3, "contrast": 0.2, "noise": 0.05, "flip": "horizontal"}
    image, mask = pair()
    before = FixedOrder(AugmentationSettings(**settings), 7)(image, mask, epoch=3, slice_id=5)
    generator = np.random.default_rng((7, 3, 5, 2))
    augmentation = FixedOrder(AugmentationSettings(**settings, **QUALITY), 7)
    after = augmentation(image, mask, epoch=3, slice_id=5)
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[0], augmentation.change_quality(generator, before[0]))
    assert not torch.equal(after[0], before[0])


def test_blur_is_that_of_scipy_and_keeps_an_even_slice() -> None:
    image = torch.rand(1, 40, 33)
    expected = gaussian_filter(image[0].double().numpy(), 1.7, radius=math.ceil(3 * 1.7), mode="nearest")
    np.testing.assert_allclose(blur(image, 1.7)[0].numpy(), expected, atol=1e-5)
    assert torch.equal(blur(image, 0.0), image)
    even = torch.full((1, 20, 20), 3.0)
    for result in (blur(even, 2.0), coarsen(even, 0.4)):
        torch.testing.assert_close(result, even)


def test_low_resolution_loses_detail_and_keeps_the_rest() -> None:
    rows = torch.arange(64.0)
    fine, coarse = torch.sin(rows * 2.5).expand(64, 64)[None], torch.sin(rows * 0.1).expand(64, 64)[None]
    assert coarsen(fine, 0.25).std() < 0.2 * fine.std()
    assert (coarsen(coarse, 0.25) - coarse).abs().mean() < 0.05


def test_bias_is_a_smooth_shade_within_its_setting() -> None:
    image = torch.ones(1, 64, 48)
    image[0, 0, 0] = 0.0  # the floor
    shades = [
        FixedOrder(AugmentationSettings(bias=0.3), 1)(image, disc(64, 48).long(), epoch=0, slice_id=i)[0]
        for i in range(50)
    ]
    values = torch.stack(shades)[:, :, 1:, 1:]
    assert values.max() < math.exp(0.3 * 1.5)  # a bicubic curve may leave the range of its points a little
    assert values.min() > math.exp(-0.3 * 1.5)
    assert values.std() > 0.05
    assert max(float(shade[0, 1:, 1:].diff(dim=0).abs().max()) for shade in shades) < 0.1


@pytest.mark.parametrize(("flip", "axes"), [("vertical", {(-2,), ()}), ("both", {(), (-1,), (-2,), (-1, -2)})])
def test_flips_by_each_axis(flip: Any, axes: set[tuple[int, ...]]) -> None:
    image = torch.rand(1, 8, 6)
    mask = (image[0] * 20).long()
    seen = set()
    for slice_id in range(60):
        result, moved = FixedOrder(AugmentationSettings(flip=flip), 3)(image, mask, epoch=0, slice_id=slice_id)
        which = next(axis for axis in ((), (-1,), (-2,), (-1, -2)) if torch.equal(result, image.flip(axis)))
        assert torch.equal(moved, mask.flip(which))
        seen.add(which)
    assert seen == axes


def test_a_batch_on_a_device_is_distorted_as_its_slices_are() -> None:
    settings = AugmentationSettings(**GEOMETRY, **QUALITY, gamma=0.3, contrast=0.2, noise=0.1, flip="both")
    augmentation = FixedOrder(settings, 11)
    images, masks = torch.rand(4, 1, HEIGHT, WIDTH), torch.randint(0, 20, (4, HEIGHT, WIDTH))
    keys = [slice_key(f"case{number}", number) for number in range(4)]
    distorted, labels = augmentation.of_batch(images, masks, keys, epoch=2)
    for number, key in enumerate(keys):
        image, mask = augmentation(images[number], masks[number], epoch=2, slice_id=key)
        assert torch.equal(distorted[number], image)
        assert torch.equal(labels[number], mask)


def test_slices_of_a_volume_stay_aligned() -> None:
    settings = AugmentationSettings(**GEOMETRY, **QUALITY, gamma=0.3, contrast=0.2, flip="both")
    plane, labels = torch.rand(1, HEIGHT, WIDTH), torch.randint(0, 20, (HEIGHT, WIDTH))
    images, masks, key = plane.expand(5, 1, -1, -1), labels.expand(5, -1, -1), case_key("one")
    distorted, moved = FixedOrder(settings, 11).of_batch(images, masks, [key], epoch=2)
    image, mask = FixedOrder(settings, 11)(plane, labels, epoch=2, slice_id=key)
    torch.testing.assert_close(distorted, image.expand(5, 1, -1, -1))
    assert torch.equal(moved, mask.expand(5, -1, -1))
    assert not torch.equal(moved, masks)
    noise = FixedOrder(AugmentationSettings(noise=0.5), 11).of_batch(images, masks, [key], epoch=2)[0] - images
    assert not torch.equal(noise[0], noise[1])
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), noise.std().expand(5), rtol=0.1, atol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_but_for_the_noise() -> None:
    augmentation = FixedOrder(AugmentationSettings(**GEOMETRY, **QUALITY, gamma=0.3, contrast=0.2, flip="both"), 11)
    images, masks = torch.rand(4, 1, HEIGHT, WIDTH), torch.randint(0, 20, (4, HEIGHT, WIDTH))
    keys = [slice_key("one", number) for number in range(4)]
    image, mask = augmentation.of_batch(images, masks, keys, epoch=2)
    there = augmentation.of_batch(images.cuda(), masks.cuda(), keys, epoch=2)
    torch.testing.assert_close(there[0].cpu(), image, atol=1e-4, rtol=0)
    assert (there[1].cpu() == mask).float().mean() > 0.999
    noisy = FixedOrder(AugmentationSettings(noise=0.1), 11)
    first, second = (noisy.of_batch(images.cuda(), masks.cuda(), keys, epoch=2)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("slices", [1, 3])
def test_channels_keep_one_grid_and_have_intensities_of_their_own(slices: int) -> None:
    settings = AugmentationSettings(
        distortion=1.0,
        rotation_degrees=20,
        elastic_pixels=1,
        noise=0.1,
        gamma=0.3,
        contrast=0.3,
        bias=0.3,
        blur_pixels=1,
    )
    image = torch.rand(slices, 1, 24, 20, generator=torch.Generator().manual_seed(0))
    mask = (image[:, 0] > 0.5).to(torch.uint8)
    alone, expected = FixedOrder(settings, 1).of_batch(image, mask, [7], epoch=2)
    pair, moved = FixedOrder(settings, 1).of_batch(image.repeat(1, 2, 1, 1), mask, [7], epoch=2)
    assert torch.equal(moved, expected)
    assert torch.equal(pair[:, :1], alone)  # a second channel changes no draw of the first
    assert not torch.allclose(pair[:, 1:], alone, atol=0.01)
    geometry = AugmentationSettings(distortion=1.0, rotation_degrees=20, elastic_pixels=1)
    pair, _ = FixedOrder(geometry, 1).of_batch(image.repeat(1, 2, 1, 1), mask, [7], epoch=2)
    assert torch.equal(pair[:, 0], pair[:, 1])


class Shift:
    """Move image and mask by a drawn number of columns; they come in again on the other side."""

    geometric = True

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        columns = int(generator.integers(1, WIDTH))
        return image.roll(columns, -1), mask.roll(columns, -1)


class Scale:
    """Multiply the image by a drawn number, which stands for an enlargement, too."""

    geometric = False

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        return image * self.enlargement((HEIGHT, WIDTH), generator), mask

    def enlargement(self, size: tuple[int, int], generator: np.random.Generator) -> float:
        return float(generator.uniform(1, 2))


class Cut(Shift):
    """Cut a window of the file."""

    def window(self, size: tuple[int, int], generator: np.random.Generator) -> tuple[int, int, int, int]:
        return int(generator.integers(size[0])), 1, 2, 3

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        return image, mask


def of_own(builder: type) -> Component:
    return Component("augmentation", builder.__name__, builder, "own", "textseg-own", "0.1")


def listed(*components: Any, seed: int = 7, places: Sequence[Any] = (), probability: float = 1.0) -> TransformList:
    transforms = [
        Transform(of_own(type(part)), part, probability, (places or ["workers"] * 9)[position])
        for position, part in enumerate(components)
    ]
    return TransformList(transforms, seed)


def stack(slices: int = 1) -> tuple[Tensor, Tensor]:
    return torch.rand(slices, 1, HEIGHT, WIDTH), torch.randint(0, 20, (slices, HEIGHT, WIDTH)).byte()


def test_a_list_is_applied_in_its_order_with_a_key_for_each_position() -> None:
    image, mask = stack(3)
    transforms = listed(Shift(), Scale(), Shift())
    moved, classes = transforms.of_batch(image, mask, [5], epoch=2)
    generators = [np.random.default_rng((7, 2, 5, 5, position)) for position in range(3)]
    assert [generator.random() < 1 for generator in generators] == [True] * 3  # the draw of the probability
    first, last = (int(generators[position].integers(1, WIDTH)) for position in (0, 2))
    assert first != last
    assert torch.equal(classes, mask.roll(first + last, -1))
    factor = float(generators[1].uniform(1, 2))
    assert torch.equal(moved, image.roll(first + last, -1) * factor)
    assert transforms.enlargement((HEIGHT, WIDTH), epoch=2, key=5) == factor
    assert not torch.equal(listed(Scale(), Shift()).of_batch(image, mask, [5], epoch=2)[1], mask.roll(first, -1))


def test_a_probability_is_the_share_of_slices() -> None:
    image, mask = stack()
    transforms = listed(Shift(), probability=0.25)
    moved = [not torch.equal(transforms.of_batch(image, mask, [key], epoch=0)[1], mask) for key in range(400)]
    assert 70 < sum(moved) < 130
    assert not torch.equal(listed(Shift(), seed=8).of_batch(image, mask, [1], epoch=0)[1], mask)
    unchanged = listed(Shift(), probability=0.0).of_batch(image, mask, [1], epoch=0)
    assert torch.equal(unchanged[0], image)


def test_workers_and_device_share_a_list() -> None:
    image, mask = stack(4)
    whole = listed(Shift(), Scale(), Shift()).of_batch(image, mask, [1, 2, 3, 4], epoch=1)
    shared = listed(Shift(), Scale(), Shift(), places=["workers", "device", "device"])
    assert shared.places == {"workers", "device"}
    parts = shared.of_batch(image, mask, [1, 2, 3, 4], epoch=1, on="workers")
    parts = shared.of_batch(*parts, [1, 2, 3, 4], epoch=1, on="device")
    assert all(torch.equal(first, second) for first, second in zip(whole, parts, strict=True))
    assert shared.moves
    assert not shared.windows
    assert not listed(Scale()).moves


def test_a_window_of_a_list_is_that_of_the_fixed_order() -> None:
    image, mask = stack()
    view = View((10.0, 5.0, 50.0, 40.0), (8.3, 4.1, 44.0, 33.0), (HEIGHT, WIDTH))
    transforms = listed(Cut(), probability=0.5)
    expected = FixedOrder(AugmentationSettings(), 7).of_batch(image, mask, [3], epoch=0, views=[view])
    shown = transforms.of_batch(image, mask, [3], epoch=0, views=[view])
    assert all(torch.equal(first, second) for first, second in zip(expected, shown, strict=True))
    windows = [transforms.window((90, 70), epoch=0, key=key) for key in range(200)]
    assert 60 < windows.count(None) < 140
    assert len({window.top for window in windows if window is not None}) > 30
    assert transforms.windows
    assert transforms.moves


class HostOnly(Scale):
    host_only = True


@pytest.mark.parametrize(
    ("components", "places", "message"),
    [
        (
            (Shift(), Cut()),
            ["workers"] * 2,
            r"augmentation.1: 'Cut' of .* cuts a window .* must be the first",
        ),
        (
            (Shift(), HostOnly()),
            ["device"] * 2,
            r"augmentation.1: 'HostOnly' of .* can't be computed on a GPU",
        ),
        ((Shift(), Scale()), ["device", "workers"], r"augmentation.1: 'Scale' of .* stands after .*'on: device'"),
    ],
)
def test_a_list_whose_items_do_not_fit_together_is_refused(
    components: Sequence[Any], places: Sequence[Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        listed(*components, places=places)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image, mask: image, r"fails: ValueError: not enough values"),
        (
            lambda image, mask: (image[..., 1:], mask),
            r"turns the image \[1, 1, 60, 44\] float32 .* \[1, 1, 60, 43",
        ),
        (
            lambda image, mask: (image, mask.long()),
            r"turns the mask .* uint8 on cpu into .* int64 on cpu; it",
        ),
        (lambda image, mask: (image.numpy(), mask), "gives ndarray instead of the tensor of the image"),
        (lambda image, mask: (image / 0, mask), "gives an image with NaN or infinity"),
        (lambda image, mask: (image, mask + 1), "gives a mask with class 2, which was not in it"),
        (lambda image, mask: (image, mask.flip(-1)), "changes the mask, and its `geometric` is False"),
    ],
)
def test_what_is_wrong_with_a_transform_is_found_before_the_training(change: Any, message: str) -> None:
    class Wrong:
        geometric = False

        def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> Any:
            return change(image, mask)

    image, mask = pair()
    with pytest.raises(PluginError, match=rf"augmentation.1: 'Wrong' .*({message})"):
        listed(Scale(), Wrong()).try_out(image[None], mask[None].byte())
    listed(Scale(), Shift()).try_out(image[None], mask[None].byte())


def test_a_transform_that_fails_in_a_later_draw_is_named_with_its_line() -> None:
    class Late:
        geometric = True

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
            self.calls += 1
            if self.calls == 3:
                raise ValueError("too late")
            return image, mask

        def enlargement(self, size: tuple[int, int], generator: np.random.Generator) -> float:
            raise KeyError("size")

    image, mask = pair()
    augmentation = listed(Late())
    for key in (0, 1, 2):
        with pytest.raises(PluginError) if key == 2 else nullcontext() as caught:
            augmentation.of_batch(image[None], mask[None].byte(), [key], epoch=4)
    assert re.match(
        r"augmentation 'Late' of plug-in 'own' \(textseg-own 0.1\) failed in a draw of epoch 5: ValueError: too late "
        r"\(.*test_augmentation.py, line \d+\)\. Check it further",
        str(caught.value),
    )
    with pytest.raises(PluginError, match="failed in a draw of epoch 1: KeyError: 'size'"):
        augmentation.enlargement((8, 8), epoch=0, key=0)
