"""Random distortions of slices: one sampling grid for all geometric changes, then changes of intensity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from textseg import randomness
from textseg.data.field_of_view import View
from textseg.recipe.schema import AugmentationSettings

CONTROL_POINTS = 6  # rows and columns of the coarse displacement field: smooth at the scale of a vertebra
BIAS_POINTS = 4  # of the coarse field of a receiver coil


class Augmentation:
    """Distortion of slices with the settings of a recipe; every draw is a function of (seed, epoch, slice id).

    Images are sampled linearly, masks by nearest neighbour. Pixels from outside the slice are background, as dark as
    its darkest pixel. `horizontal` mirrors the columns of the image, `vertical` its rows, which reverses the order of
    levels. Slices may lie on any device: the draws are the same, except for the values of the noise.
    """

    def __init__(self, settings: AugmentationSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def __call__(
        self,
        image: Tensor,
        mask: Tensor,
        *,
        epoch: int,
        slice_id: int,
        view: View | None = None,
        channels: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Distort an image [C, H, W] and its mask, [H, W] or [any, H, W], all planes alike.

        With a `view` they show its window, enlarged to the whole slice, before anything else is changed. The `channels`
        of a volume, whose planes are [S * C, H, W], keep their grid, but each has draws of its own for its intensities.
        """
        generator = randomness.distortion(self.seed, epoch, slice_id)
        settings, (height, width) = self.settings, image.shape[-2:]
        distorted = settings.distortion and generator.random() < settings.distortion
        if distorted or view is not None:
            grid = self.sampling_grid(generator, height, width) if distorted else _plain_grid(height, width)
            floor = image.amin(dim=(-2, -1), keepdim=True)  # 0 would be a medium grey where intensities are z-scores
            raised, planes = image - floor, mask.reshape(1, -1, *mask.shape[-2:]).float()
            if view is not None:
                # One grid for the window and the distortion: the slice is resampled once.
                grid = _through(view, grid)
                raised, planes = _inside(view, raised), _inside(view, planes)
            grid = grid.to(image.device)
            image = F.grid_sample(raised[None], grid, mode="bilinear", align_corners=False)[0] + floor
            mask = F.grid_sample(planes, grid, mode="nearest", align_corners=False).to(mask.dtype).reshape(mask.shape)
        for axis, flips in ((-1, ("horizontal", "both")), (-2, ("vertical", "both"))):
            if settings.flip in flips and generator.random() < 0.5:
                image, mask = image.flip(axis), mask.flip(axis)
        # A separate stream: the settings of the quality do not change the draws of the settings above.
        quality = randomness.image_quality(self.seed, epoch, slice_id)
        planes = image.reshape(-1, channels or len(image), *image.shape[-2:])  # [S, C, H, W]
        changed = [
            self.change_quality(second, self.change_intensity(first, planes[:, channel]))
            for channel, (first, second) in enumerate(_for_channels(planes.shape[1], generator, quality))
        ]
        return torch.stack(changed, dim=1).flatten(0, 1), mask

    def zoom(self, *, epoch: int, slice_id: int) -> float:
        """Return the factor by which the distortion of a slice enlarges its structures along each side."""
        generator, settings = randomness.distortion(self.seed, epoch, slice_id), self.settings
        if not settings.distortion or generator.random() >= settings.distortion:
            return 1.0
        return self._affine(generator)[1]

    def of_batch(
        self,
        image: Tensor,
        mask: Tensor,
        keys: Sequence[int],
        *,
        epoch: int,
        views: Sequence[View | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Distort image [B, C, H, W] and mask [B, H, W] in as many equal parts as there are keys, and views if given.

        With a key for each slice, every slice is distorted by itself. With one key for a volume, its slices are
        distorted as one image whose channels they are, so they stay aligned; only the noise differs between them.
        """
        count = len(keys)
        parts = []
        chunks = zip(image.chunk(count), mask.chunk(count), keys, views or [None] * count, strict=True)
        for planes, labels, key, view in chunks:
            flat, channels = planes.flatten(0, 1), planes.shape[1]
            distorted, labels = self(flat, labels, epoch=epoch, slice_id=key, view=view, channels=channels)
            parts.append((distorted.reshape(planes.shape), labels))
        images, masks = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(masks)

    def sampling_grid(self, generator: np.random.Generator, height: int, width: int) -> Tensor:
        """Return the source of each pixel, [1, H, W, 2] as (column, row) from -1 to 1: affine and elastic in one grid.

        Both are sums of products of a function of the row and a function of the column, so one product of small
        matrices gives the whole grid. Its coordinates lie in planes, which sampling reads fastest.
        """
        settings = self.settings
        angle, zoom = self._affine(generator)
        shift = settings.translation * 2 * generator.uniform(-1, 1, 2)
        cos, sin, aspect = math.cos(angle) / zoom, math.sin(angle) / zoom, height / width
        factors = torch.zeros(2, CONTROL_POINTS + 2, CONTROL_POINTS + 2)  # rows: control points, 1, row; columns alike
        factors[:, -2, -2] = torch.tensor(shift, dtype=torch.float32)
        factors[:, -2, -1] = torch.tensor([cos, sin / aspect])
        factors[:, -1, -2] = torch.tensor([-sin * aspect, cos])
        if settings.elastic_pixels:
            control = generator.standard_normal((2, CONTROL_POINTS, CONTROL_POINTS)).astype(np.float32)
            pixel = torch.tensor([2 / width, 2 / height])[:, None, None]
            factors[:, :-2, :-2] = settings.elastic_pixels * torch.from_numpy(control) * pixel
        return (_functions(height) @ factors @ _functions(width).T).movedim(0, -1)[None]

    def _affine(self, generator: np.random.Generator) -> tuple[float, float]:
        """Draw the rotation in radians and the factor of the enlargement, the first draws of a grid."""
        angle = math.radians(self.settings.rotation_degrees) * generator.uniform(-1, 1)
        return angle, 1 + self.settings.scale * generator.uniform(-1, 1)

    def change_intensity(self, generator: np.random.Generator, image: Tensor) -> Tensor:
        """Change contrast and gamma and add noise, each by a random amount up to its setting."""
        settings = self.settings
        if settings.contrast:
            image = image * float(1 + settings.contrast * generator.uniform(-1, 1))
        if settings.gamma:
            low, span = image.amin(), (image.amax() - image.amin()).clamp(min=1e-6)
            exponent = math.exp(settings.gamma * generator.uniform(-1, 1))
            image = ((image - low) / span) ** exponent * span + low
        if settings.noise:
            image = image + settings.noise * generator.random() * _normal(generator, image)
        return image

    def change_quality(self, generator: np.random.Generator, image: Tensor) -> Tensor:
        """Add the shade of a receiver coil, blur and low resolution, each by a random amount up to its setting."""
        settings = self.settings
        if settings.bias:
            control = settings.bias * generator.uniform(-1, 1, (1, 1, BIAS_POINTS, BIAS_POINTS)).astype(np.float32)
            size = (image.shape[-2], image.shape[-1])
            shade = F.interpolate(torch.from_numpy(control).to(image.device), size, mode="bicubic", align_corners=True)
            floor = image.amin()
            image = (image - floor) * shade[0].exp() + floor
        if settings.blur_pixels:
            image = _blurred(image, settings.blur_pixels * float(generator.random()))
        if settings.low_resolution:
            image = _coarsened(image, 1 + (settings.low_resolution - 1) * float(generator.random()))
        return image


def _for_channels(count: int, *generators: np.random.Generator) -> list[tuple[np.random.Generator, ...]]:
    """Return the generators of each channel: these for the first one, streams of their own for the others."""
    return [generators, *zip(*(generator.spawn(count - 1) for generator in generators), strict=True)]


@lru_cache(maxsize=4)
def _plain_grid(height: int, width: int) -> Tensor:
    """Return the grid that samples each pixel at its own position, [1, H, W, 2], its coordinates in planes."""
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=False)
    return grid.movedim(-1, 0).contiguous().movedim(0, -1)


def _through(view: View, grid: Tensor) -> Tensor:
    """Return the positions in a prepared slice that a grid over the box of a view samples."""
    (top, left, box_height, box_width), (height, width) = view.box, view.size
    centre = torch.tensor([(2 * left + box_width) / width - 1, (2 * top + box_height) / height - 1])
    return grid * torch.tensor(view.scale[::-1]) + centre


def _inside(view: View, planes: Tensor) -> Tensor:
    """Return planes [..., H, W] that are 0 outside the window of a view."""
    (height, width), (top, left, bottom, right) = view.size, view.window
    rows = slice(max(0, round(top)), min(height, max(0, round(bottom))))
    columns = slice(max(0, round(left)), min(width, max(0, round(right))))
    result = torch.zeros_like(planes)
    result[..., rows, columns] = planes[..., rows, columns]
    return result


@lru_cache(maxsize=16)
def _functions(size: int) -> Tensor:
    """Return [size, CONTROL_POINTS + 2] for each pixel: bicubic weights of control points, 1, position from -1 to 1."""
    points = torch.eye(CONTROL_POINTS)[None, None]
    weights = F.interpolate(points, (size, CONTROL_POINTS), mode="bicubic", align_corners=True)[0, 0]
    positions = (torch.arange(size) * 2 + 1) / size - 1
    return torch.cat([weights, torch.ones(size, 1), positions[:, None]], dim=1)


def _normal(generator: np.random.Generator, image: Tensor) -> Tensor:
    """Draw standard normal noise of the shape of an image; a GPU draws its own, which is faster than copying it."""
    if image.device.type == "cpu":
        return torch.from_numpy(generator.standard_normal(image.shape, dtype=np.float32))
    own = torch.Generator(image.device).manual_seed(int(generator.integers(2**62)))
    return torch.randn(image.shape, generator=own, device=image.device)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Smooth an image [C, H, W] by a Gaussian of `sigma` pixels."""
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return image
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    blurred = F.conv2d(F.pad(image[:, None], (0, 0, radius, radius), mode="replicate"), kernel[None, None, :, None])
    return F.conv2d(F.pad(blurred, (radius, radius, 0, 0), mode="replicate"), kernel[None, None, None, :])[:, 0]


def _coarsened(image: Tensor, factor: float) -> Tensor:
    """Coarsen an image [C, H, W] as if it were scanned with pixels `factor` times as large."""
    height, width = image.shape[-2:]
    size = max(1, round(height / factor)), max(1, round(width / factor))
    coarse = F.interpolate(image[None], size, mode="bilinear", antialias=True)
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0]
