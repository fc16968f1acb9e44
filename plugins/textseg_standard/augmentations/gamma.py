"""A random gamma curve."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import change_gamma
from textseg_standard.augmentations.intensity import Intensity


class Gamma(Intensity):
    """A gamma curve with an exponent from exp(-amount) to exp(amount); the darkest and brightest value stay."""

    def __init__(self, *, amount: float = 0.2) -> None:
        super().__init__(amount)

    def changed(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        return change_gamma(image, generator, self.amount)
