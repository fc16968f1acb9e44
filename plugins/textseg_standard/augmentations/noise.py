"""Random noise."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import add_noise
from textseg_standard.augmentations.intensity import Intensity


class Noise(Intensity):
    """Gaussian noise with a standard deviation from 0 to amount."""

    def __init__(self, *, amount: float = 0.03) -> None:
        super().__init__(amount)

    def changed(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        return add_noise(image, generator, self.amount)
