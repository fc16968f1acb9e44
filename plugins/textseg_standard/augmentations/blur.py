"""A random blur."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import blur
from textseg_standard.augmentations.intensity import Intensity


class Blur(Intensity):
    """A Gaussian blur with a standard deviation from `least` to `pixels`, in pixels."""

    def __init__(self, *, pixels: float = 1.0, least: float = 0.0) -> None:
        super().__init__(pixels, least)
        self.least = least

    def changed(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        return blur(image, float(generator.uniform(self.least, self.amount)))
