"""A random distortion: affine and elastic."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import draw_affine, resample, sampling_grid
from textseg.errors import RecipeError


class Distortion:
    """A rotation, a change of size, a shift and a smooth elastic field, in one sampling grid.

    Args:
        rotation_degrees: up to this angle in either direction.
        scale: relative: 0.1 is a size of 0.9 to 1.1.
        translation: up to this share of the side.
        elastic_pixels: strength of the elastic field; 0 for none.
    """

    geometric = True

    def __init__(
        self,
        *,
        rotation_degrees: float = 10.0,
        scale: float = 0.1,
        translation: float = 0.03,
        elastic_pixels: float = 0.0,
    ) -> None:
        if min(rotation_degrees, scale, translation, elastic_pixels) < 0 or scale >= 1:
            raise RecipeError("augmentation: the settings of distortion must be 0 or more, and scale below 1.")
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
