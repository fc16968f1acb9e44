"""A random bias field."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import add_bias
from textseg_standard.augmentations.intensity import Intensity


class Bias(Intensity):
    """A smooth bias field like that of a receiver coil, from about exp(-amount) to exp(amount)."""

    def __init__(self, *, amount: float = 0.3) -> None:
        super().__init__(amount)

    def changed(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        return add_bias(image, generator, self.amount)
