from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from textseg.data.augmentation import FixedOrder
from textseg.data.field_of_view import draw_window
from textseg.errors import RecipeError
from textseg.recipe.schema import AugmentationSettings, FieldOfViewSettings
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
        (lambda: Distortion(scale=1.0), "scale below 1"),
        (lambda: FieldOfView(width=(0.9, 0.5)), "width of field_of_view must ascend"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build()
