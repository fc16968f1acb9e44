"""A random blur."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import blur
from textseg_standard.augmentations.intensity import Intensity


class Blur(Intensity):
    """A Gaussian blur with a standard deviation from 0 to this many pixels."""

    def __init__(self, *, pixels: float = 1.0) -> None:
        super().__init__(pixels)

    def changed(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        return blur(image, self.amount * float(generator.random()))
