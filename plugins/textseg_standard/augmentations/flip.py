"""A mirror image."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor


class Flip:
    """A mirror image: horizontal mirrors the columns of the picture, vertical its rows.

    In a spine, `vertical` reverses the order of levels. Without `probability`, every slice is mirrored.
    """

    geometric = True

    def __init__(self, *, axis: Literal["horizontal", "vertical"] = "horizontal") -> None:
        self.axis = {"horizontal": -1, "vertical": -2}[axis]

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        return image.flip(self.axis), mask.flip(self.axis)
