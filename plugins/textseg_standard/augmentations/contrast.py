"""A random change of contrast."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from textseg.distortions import change_contrast, stretch_contrast
from textseg_standard.augmentations.intensity import Intensity


class Contrast(Intensity):
    """A factor from 1 - amount to 1 + amount.

    Args:
        amount: the largest relative change.
        around: "zero": a factor of all intensities, which changes the brightness, too. "mean": a factor of their
            distances from the mean of the channel, whose range stays.
    """

    def __init__(self, *, amount: float = 0.2, around: Literal["zero", "mean"] = "zero") -> None:
        super().__init__(amount)
        self.around = around

    def changed(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        if self.around == "mean":
            return stretch_contrast(image, float(1 + self.amount * generator.uniform(-1, 1)))
        return change_contrast(image, generator, self.amount)
