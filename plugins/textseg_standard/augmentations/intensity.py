"""A change of intensities, from which the components inherit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from textseg.errors import RecipeError
from textseg.randomness import for_channels


class Intensity:
    """A change of the image alone, by a random amount up to the one that is given; each channel has its own draws."""

    geometric = False

    def __init__(self, amount: float, least: float = 0.0) -> None:
        if amount < least:
            raise RecipeError(f"augmentation: {type(self).__name__} up to {amount:g} is below {least:g}. Raise it.")
        self.amount = amount

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        channels = zip(image.unbind(1), for_channels(generator, image.shape[1]), strict=True)
        return torch.stack([self.changed(*channel) for channel in channels], dim=1), mask

    def changed(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        """Return a channel [S, H, W] with other intensities."""
        raise NotImplementedError
