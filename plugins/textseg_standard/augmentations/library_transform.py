"""The parts that adapters for libraries of transforms share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from textseg.randomness import for_channels, forked


class LibraryTransform(ABC):
    """A transform of a library that draws from global generators, which are seeded for the call and restored.

    Transforms of intensity draw for each channel by itself. Geometric ones move all planes alike.
    """

    geometric: bool

    @abstractmethod
    def applied(self, planes: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return planes [any, H, W] and mask [S, H, W] after the transform; the global generators have this seed."""

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        if not self.geometric:
            streams = for_channels(generator, image.shape[1])
            pairs = zip(image.unbind(1), streams, strict=True)
            return torch.stack([self._forked(channel, mask, stream)[0] for channel, stream in pairs], dim=1), mask
        floor = image.amin(dim=(-2, -1), keepdim=True)  # 0 would be a medium grey where intensities are z-scores
        planes, classes = self._forked((image - floor).flatten(0, 1), mask, generator)
        return planes.reshape(*image.shape[:2], *planes.shape[-2:]) + floor, classes

    def enlargement(self, size: tuple[int, int], generator: np.random.Generator) -> float:
        """Return the factor by which areas grow in the middle of a slice.

        The transform gets a picture whose values are the row and the column of each pixel, so that the slopes of the
        result are those of the transform.
        """
        if not self.geometric:
            return 1.0
        height, width = size
        axes = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
        source, _ = self._forked(torch.stack(axes), torch.zeros(1, height, width, dtype=torch.uint8), generator)
        middle = source[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
        rows, columns = (
            (middle.select(axis, -1) - middle.select(axis, 0)).mean(1) / max(1, middle.shape[axis] - 1)
            for axis in (1, 2)
        )
        area = abs(float(rows[0] * columns[1] - rows[1] * columns[0]))  # of the source that a pixel shows
        return 1 / area if area > 0 else 1.0

    def _forked(self, planes: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        with forked(generator) as seed:
            return self.applied(planes, mask, seed)
