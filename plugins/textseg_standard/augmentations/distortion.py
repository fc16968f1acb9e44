"""A random distortion: affine and elastic."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import Range, draw_affine, resample, sampling_grid
from textseg.errors import RecipeError


class Distortion:
    """A rotation, a change of size, a shift and a smooth elastic field, in one sampling grid.

    Args:
        rotation_degrees: up to this angle in either direction.
        scale: relative: 0.1 is a size of 0.9 to 1.1; or the least and the greatest size, [0.7, 1.4], where half of the
            draws lie below 1.
        translation: up to this share of the side.
        elastic_pixels: strength of the elastic field; 0 for none.
    """

    geometric = True

    def __init__(
        self,
        *,
        rotation_degrees: float = 10.0,
        scale: float | Range = 0.1,
        translation: float = 0.03,
        elastic_pixels: float = 0.0,
    ) -> None:
        low, high = scale if isinstance(scale, tuple) else (1 - scale, 1 + scale)
        if min(rotation_degrees, translation, elastic_pixels) < 0 or not 0 < low <= 1 <= high:
            raise RecipeError(
                "augmentation: the settings of distortion must be 0 or more, and sizes lie around 1, above 0."
            )
        self.rotation_degrees, self.scale = rotation_degrees, scale
        self.translation, self.elastic_pixels = translation, elastic_pixels

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        grid = sampling_grid(
            generator,
            (image.shape[-2], image.shape[-1]),
            rotation_degrees=self.rotation_degrees,
            scale=self.scale,
            translation=self.translation,
            elastic_pixels=self.elastic_pixels,
        )
        return resample(image, mask, grid)

    def enlargement(self, size: tuple[int, int], generator: np.random.Generator) -> float:
        _, zoom = draw_affine(generator, self.rotation_degrees, self.scale)
        return zoom * zoom
