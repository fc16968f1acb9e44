"""A random gamma curve."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import Range, bend, change_gamma, draw_factor
from textseg.errors import RecipeError
from textseg_standard.augmentations.intensity import Intensity


class Gamma(Intensity):
    """A gamma curve; the darkest and the brightest value stay.

    Args:
        amount: for an exponent from exp(-amount) to exp(amount).
        exponents: instead of `amount`, the least and the greatest exponent, around 1: half of the draws lie below 1.
        inverted: True to bend the negative of the image.
        keep_statistics: True to bring the result back to the mean and the deviation of the image.

    Raises RecipeError for exponents that do not lie around 1.
    """

    def __init__(
        self,
        *,
        amount: float = 0.2,
        exponents: Range | None = None,
        inverted: bool = False,
        keep_statistics: bool = False,
    ) -> None:
        super().__init__(amount)
        if exponents is not None and not 0 < exponents[0] <= 1 <= exponents[1]:
            raise RecipeError(f"augmentation: the exponents {list(exponents)} of gamma must lie around 1, above 0.")
        self.exponents, self.inverted, self.keep_statistics = exponents, inverted, keep_statistics

    def changed(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        sign = -1 if self.inverted else 1
        if self.exponents is None:
            bent = sign * change_gamma(sign * image, generator, self.amount)
        else:
            bent = sign * bend(sign * image, draw_factor(generator, self.exponents))
        if not self.keep_statistics:
            return bent
        return (bent - bent.mean()) / bent.std().clamp(min=1e-6) * image.std() + image.mean()
