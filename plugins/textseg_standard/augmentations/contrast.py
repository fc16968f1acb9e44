"""A random change of contrast."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import change_contrast
from textseg_standard.augmentations.intensity import Intensity


class Contrast(Intensity):
    """A factor of all intensities from 1 - amount to 1 + amount."""

    def __init__(self, *, amount: float = 0.2) -> None:
        super().__init__(amount)

    def changed(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        return change_contrast(image, generator, self.amount)
