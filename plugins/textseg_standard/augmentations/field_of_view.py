"""A random window of the scan."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from textseg.distortions import draw_window
from textseg.errors import RecipeError

Shares = tuple[float, float]  # least and greatest


class FieldOfView:
    """A window of the scan, as if less had been scanned; the first item of its list.

    The window is enlarged to the box that the preparation would choose for it as a file. With this transform,
    validation also scores windows.

    Args:
        height: least and greatest share of the rows of the file.
        width: of its columns.
    """

    geometric = True

    def __init__(self, *, height: Shares = (0.45, 0.95), width: Shares = (0.7, 1.0)) -> None:
        for name, (least, greatest) in (("height", height), ("width", width)):
            if not 0 < least <= greatest <= 1:
                raise RecipeError(f"augmentation: {name} of field_of_view must ascend, above 0 and up to 1.")
        self.height, self.width = height, width

    def window(self, size: tuple[int, int], generator: np.random.Generator) -> tuple[int, int, int, int]:
        return draw_window(generator, size, self.height, self.width)

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        return image, mask  # the core has shown the window
