"""Random distortions of slices: one fused sampling grid for everything geometric, then changes of intensity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from textseg.recipe import Augmentation as Settings

CONTROL_POINTS = 6  # rows and columns of the coarse displacement field: smooth at the scale of a vertebra


class Augmentation:
    """Distorts a slice as `augmentation` in the recipe says; every draw is a function of (seed, epoch, slice id).

    Images are sampled linearly, masks by nearest neighbour. What comes from outside is background, as dark as the
    slice's darkest pixel. `horizontal` mirrors the picture's columns.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings = settings
        self.seed = seed

    def __call__(self, image: Tensor, mask: Tensor, *, epoch: int, slice_id: int) -> tuple[Tensor, Tensor]:
        """Image [C, H, W], mask [H, W] -> the same, distorted."""
        generator = np.random.default_rng((self.seed, epoch, slice_id))
        settings = self.settings
        if settings.distortion and generator.random() < settings.distortion:
            grid = self.sampling_grid(generator, image.shape[-2], image.shape[-1])
            floor = image.amin(dim=(-2, -1), keepdim=True)  # 0 would be a medium grey where intensities are z-scores
            image = F.grid_sample((image - floor)[None], grid, mode="bilinear", align_corners=False)[0] + floor
            mask = F.grid_sample(mask[None, None].float(), grid, mode="nearest", align_corners=False)[0, 0].to(
                mask.dtype
            )
        if settings.flip == "horizontal" and generator.random() < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        return self.change_intensity(generator, image), mask

    def sampling_grid(self, generator: np.random.Generator, height: int, width: int) -> Tensor:
        """Where each pixel is taken from, [1, H, W, 2] in (column, row) from -1 to 1: affine and elastic in one."""
        settings = self.settings
        angle = math.radians(settings.rotation_degrees) * generator.uniform(-1, 1)
        zoom = 1 + settings.scale * generator.uniform(-1, 1)
        shift = settings.translation * 2 * generator.uniform(-1, 1, 2)
        cos, sin, aspect = math.cos(angle) / zoom, math.sin(angle) / zoom, height / width
        affine = torch.tensor([[cos, -sin * aspect, shift[0]], [sin / aspect, cos, shift[1]]], dtype=torch.float32)
        grid = F.affine_grid(affine[None], [1, 1, height, width], align_corners=False)
        if settings.elastic_pixels:
            control = generator.standard_normal((1, 2, CONTROL_POINTS, CONTROL_POINTS)).astype(np.float32)
            field = F.interpolate(torch.from_numpy(control), (height, width), mode="bicubic", align_corners=True)
            pixel = torch.tensor([2 / width, 2 / height])
            grid = grid + settings.elastic_pixels * field.movedim(1, -1) * pixel
        return grid

    def change_intensity(self, generator: np.random.Generator, image: Tensor) -> Tensor:
        """Contrast, gamma and noise, each by a random amount up to its setting."""
        settings = self.settings
        if settings.contrast:
            image = image * float(1 + settings.contrast * generator.uniform(-1, 1))
        if settings.gamma:
            low, high = image.amin(), image.amax()
            span = (high - low).clamp(min=1e-6)
            exponent = math.exp(settings.gamma * generator.uniform(-1, 1))
            image = ((image - low) / span) ** exponent * span + low
        if settings.noise:
            amount = settings.noise * generator.random()
            image = image + torch.from_numpy(generator.standard_normal(image.shape, dtype=np.float32)) * amount
        return image
