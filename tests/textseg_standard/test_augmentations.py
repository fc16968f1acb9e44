from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from textseg.data.augmentation import FixedOrder
from textseg.data.field_of_view import draw_window
from textseg.distortions import blur
from textseg.errors import RecipeError
from textseg.recipe.schema import AugmentationSettings, FieldOfViewSettings
from textseg.registry.discovery import installed_registry
from textseg.testing import check_augmentation  # type: ignore[attr-defined]
from textseg_standard.augmentations.bias import Bias
from textseg_standard.augmentations.blur import Blur
from textseg_standard.augmentations.contrast import Contrast
from textseg_standard.augmentations.distortion import Distortion
from textseg_standard.augmentations.field_of_view import FieldOfView
from textseg_standard.augmentations.flip import Flip
from textseg_standard.augmentations.gamma import Gamma
from textseg_standard.augmentations.low_resolution import LowResolution
from textseg_standard.augmentations.noise import Noise

SIZE = (60, 44)


def stack() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.rand(1, 1, *SIZE, generator=random), torch.randint(0, 9, (1, *SIZE), generator=random).byte()


@pytest.mark.parametrize(
    ("component", "settings"),
    [
        (Contrast(amount=0.3), {"contrast": 0.3}),
        (Gamma(amount=0.4), {"gamma": 0.4}),
        (Noise(amount=0.1), {"noise": 0.1}),
        (Bias(amount=0.5), {"bias": 0.5}),
        (Blur(pixels=3.0), {"blur_pixels": 3.0}),
        (LowResolution(factor=4.0), {"low_resolution": 4.0}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else "",
)
def test_changes_of_intensity_are_those_of_the_fixed_order(component: Any, settings: dict[str, Any]) -> None:
    image, mask = stack()
    changed, classes = component(image, mask, np.random.default_rng(3))
    fixed = FixedOrder(AugmentationSettings(**settings), 0)
    expected = fixed.change_quality(
        np.random.default_rng(3), fixed.change_intensity(np.random.default_rng(3), image[0])
    )
    assert torch.equal(changed[0], expected)
    assert not torch.equal(changed, image)
    assert torch.equal(classes, mask)
    assert not component.geometric
    pair, _ = component(image.repeat(1, 2, 1, 1), mask, np.random.default_rng(3))
    assert torch.equal(pair[:, :1], changed)  # a second channel changes no draw of the first
    assert not torch.equal(pair[:, 1:], changed)


def test_a_distortion_is_that_of_the_fixed_order() -> None:
    image, mask = stack()
    settings = {"rotation_degrees": 20.0, "scale": 0.3, "translation": 0.1, "elastic_pixels": 2.0}
    fixed = FixedOrder(AugmentationSettings(distortion=1.0, **settings), 4)
    expected, classes = fixed.of_batch(image, mask, [9], epoch=1)
    generator = np.random.default_rng((4, 1, 9))
    generator.random()  # the draw of the probability
    state = generator.bit_generator.state
    component = Distortion(**settings)
    moved = component(image, mask, generator)
    assert torch.equal(moved[0], expected)
    assert torch.equal(moved[1], classes)
    generator.bit_generator.state = state
    assert component.enlargement(SIZE, generator) == fixed.enlargement(SIZE, epoch=1, key=9)


def test_the_ranges_of_nnunet() -> None:
    image, mask = stack()
    sizes = [Distortion(scale=(0.7, 1.4)).enlargement(SIZE, np.random.default_rng(i)) ** 0.5 for i in range(400)]
    assert 0.7 <= min(sizes) < 0.75
    assert 1.3 < max(sizes) <= 1.4
    assert 150 < sum(size < 1 for size in sizes) < 250
    blurred = [Blur(pixels=1.0, least=0.5)(image, mask, np.random.default_rng(i))[0].std() for i in range(50)]
    assert max(blurred) < blur(image, 0.49).std()


def test_contrast_around_the_mean_keeps_mean_and_range() -> None:
    image, mask = torch.rand(1, 1, *SIZE) + 3, torch.zeros(1, *SIZE)
    generator = np.random.default_rng(1)
    factor = 1 + 0.25 * np.random.default_rng(1).uniform(-1, 1)
    changed, _ = Contrast(amount=0.25, around="mean")(image, mask, generator)
    expected = ((image - image.mean()) * factor + image.mean()).clamp(image.min(), image.max())
    torch.testing.assert_close(changed, expected)
    assert not torch.equal(changed, image)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_may_keep_the_statistics_of_an_image(inverted: bool) -> None:
    image, mask = torch.randn(1, 1, *SIZE) * 2 + 1, torch.zeros(1, *SIZE)
    component = Gamma(exponents=(1.0, 1.5), inverted=inverted, keep_statistics=True)
    changed, _ = component(image, mask, np.random.default_rng(0))
    torch.testing.assert_close(changed.mean(), image.mean())
    torch.testing.assert_close(changed.std(), image.std())
    plain, _ = Gamma(exponents=(1.0, 1.5), inverted=inverted)(image, mask, np.random.default_rng(0))
    sign = -1 if inverted else 1
    assert sign * (plain - image).sum() < 0  # an exponent above 1 darkens an image, and brightens an inverted one
    torch.testing.assert_close((changed - changed.mean()) / changed.std(), (plain - plain.mean()) / plain.std())


def test_flips() -> None:
    image, mask = stack()
    for axis, name in ((-1, "horizontal"), (-2, "vertical")):
        moved, classes = Flip(axis=name)(image, mask, np.random.default_rng(0))  # type: ignore[arg-type]
        assert torch.equal(moved, image.flip(axis))
        assert torch.equal(classes, mask.flip(axis))


def test_a_window_is_that_of_the_fixed_order() -> None:
    image, mask = stack()
    component, settings = FieldOfView(height=(0.3, 0.6)), FieldOfViewSettings(probability=1.0, height=(0.3, 0.6))
    generator = np.random.default_rng(5)
    generator.random()
    window = draw_window(settings, (90, 70), np.random.default_rng(5))
    assert window is not None
    assert component.window((90, 70), generator) == (window.top, window.left, window.height, window.width)
    assert component(image, mask, generator) == (image, mask)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Noise(amount=-1.0), "Noise up to -1 is below 0"),
        (lambda: LowResolution(factor=0.5), "LowResolution up to 0.5 is below 1"),
        (lambda: Distortion(scale=1.0), "sizes lie around 1"),
        (lambda: Distortion(scale=(1.1, 1.4)), "sizes lie around 1"),
        (lambda: Gamma(exponents=(0.7, 0.9)), "exponents .* must lie around 1"),
        (lambda: FieldOfView(width=(0.9, 0.5)), "width of field_of_view must ascend"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build()


def monai(name: str, **settings: Any) -> Any:
    return installed_registry().build("augmentation", "monai", settings={"name": name, **settings})


def torchio(name: str, **settings: Any) -> Any:
    pytest.importorskip("torchio")
    return installed_registry().build("augmentation", "torchio", settings={"name": name, **settings})


@pytest.mark.parametrize(
    ("library", "settings"),
    [
        ("monai", {"name": "RandGaussianNoise", "std": 0.3}),
        ("monai", {"name": "RandCoarseDropout", "holes": 2, "spatial_size": 5}),  # changes its argument in place
        ("monai", {"name": "RandIntensityRemap"}),  # builds a transform with a generator of its own in each call
        ("monai", {"name": "RandZoom", "min_zoom": 0.8, "max_zoom": 1.3}),
        ("torchio", {"name": "RandomMotion"}),
        ("torchio", {"name": "RandomBiasField"}),
        ("torchio", {"name": "RandomElasticDeformation", "max_displacement": [2, 2, 0]}),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_transforms_of_libraries_are_keyed_and_leave_the_global_generators_alone(
    library: str, settings: dict[str, Any]
) -> None:
    if library == "torchio":
        pytest.importorskip("torchio")
    check_augmentation(library, settings=settings, image_size=(40, 48))


def test_a_transform_of_monai_is_that_of_monai() -> None:
    from monai.transforms import RandFlip, RandGaussianSmooth, RandShiftIntensity

    image, mask = stack()
    seed = int(np.random.default_rng(6).integers(2**32))
    for name, builder, settings in (
        ("RandGaussianSmooth", RandGaussianSmooth, {"sigma_x": [1.0, 3.0]}),
        ("RandShiftIntensity", RandShiftIntensity, {"offsets": 0.4}),
        ("RandFlip", RandFlip, {"spatial_axis": 1}),
    ):
        expected = builder(prob=1.0, **{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()})
        changed, classes = monai(name, **settings)(image, mask, np.random.default_rng(6))
        torch.testing.assert_close(changed[0], expected.set_random_state(seed=seed)(image[0]).as_tensor())
        assert torch.equal(classes, mask.flip(-1) if name == "RandFlip" else mask)


def test_what_monai_fills_with_zeros_is_the_darkest_value() -> None:
    image, mask = stack()
    shift = monai("RandAffine", translate_range=[[10, 10], [0, 0]], padding_mode="zeros")
    moved, classes = shift(image - 3, mask + 1, np.random.default_rng(0))
    assert (classes == 0).sum() == 10 * SIZE[1]
    torch.testing.assert_close(moved[:, 0][classes == 0], image.min().expand(10 * SIZE[1]) - 3)


def test_enlargements_of_libraries_are_measured() -> None:
    zoom = monai("RandZoom", min_zoom=1.2, max_zoom=1.2)
    assert zoom.enlargement(SIZE, np.random.default_rng(0)) == pytest.approx(1.44, rel=0.03)
    assert monai("RandFlip").enlargement(SIZE, np.random.default_rng(0)) == pytest.approx(1.0)
    assert monai("RandGaussianNoise").enlargement(SIZE, np.random.default_rng(0)) == 1.0


def test_enlargements_of_torchio_are_measured() -> None:
    scaled = torchio("RandomAffine", scales=[1.25, 1.25], degrees=0)
    assert scaled.enlargement(SIZE, np.random.default_rng(0)) == pytest.approx(1.25**2, rel=0.03)
    assert scaled.host_only


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "RandGaussianNoised"}, "unknown value 'RandGaussianNoised'. Did you mean 'RandGaussianNoise'"),
        ({"name": "Rand3DElastic"}, "unknown value 'Rand3DElastic'"),
        ({"name": "RandGaussianNoise", "prob": 0.5}, "prob: unknown setting"),
        ({"name": "RandGaussianNoise", "std": "much"}, "std: should be a valid number"),
        ({"name": "RandBiasField", "degree": 0}, "MONAI refuses the settings of RandBiasField: ValueError: degree"),
        ({"name": ["RandAffine"]}, "name: should be a text, not \\['RandAffine'\\]"),
        ({}, "name: required"),
    ],
)
def test_mistakes_in_the_settings_of_a_library_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        installed_registry().build("augmentation", "monai", settings=settings)
