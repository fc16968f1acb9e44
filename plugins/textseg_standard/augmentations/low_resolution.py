"""A random loss of resolution."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import coarsen
from textseg_standard.augmentations.intensity import Intensity


class LowResolution(Intensity):
    """A scan with pixels up to `factor` times as large; the number of rows is drawn evenly."""

    def __init__(self, *, factor: float = 2.0) -> None:
        super().__init__(factor, least=1.0)

    def changed(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        return coarsen(image, float(generator.uniform(1 / self.amount, 1)))
