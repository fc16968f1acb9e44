"""Changes of images [..., H, W] and masks that an augmentation is made of; each draws from the generator that it gets.

Images may lie on any device: the draws are the same, except for the values of the noise.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CONTROL_POINTS = 6  # rows and columns of the coarse displacement field: smooth at the scale of a vertebra
BIAS_POINTS = 4  # of the coarse field of a receiver coil


Range = tuple[float, float]  # least and greatest


def draw_affine(generator: np.random.Generator, rotation_degrees: float, scale: float | Range) -> tuple[float, float]:
    """Draw a rotation in radians and the factor by which structures grow along each side.

    `scale` is 0.1 for a factor from 0.9 to 1.1, or a range: see `draw_factor`.
    """
    angle = math.radians(rotation_degrees) * generator.uniform(-1, 1)
    return angle, draw_factor(generator, scale) if isinstance(scale, tuple) else 1 + scale * generator.uniform(-1, 1)


def draw_factor(generator: np.random.Generator, limits: Range) -> float:
    """Draw a factor from a range around 1: half of the draws lie below 1, and half above, as in nnU-Net."""
    low, high = limits
    return float(generator.uniform(low, 1) if generator.random() < 0.5 else generator.uniform(1, high))


def sampling_grid(
    generator: np.random.Generator,
    size: tuple[int, int],
    *,
    rotation_degrees: float = 0.0,
    scale: float | Range = 0.0,
    translation: float = 0.0,
    elastic_pixels: float = 0.0,
) -> Tensor:
    """Return the source of each pixel, [1, H, W, 2] as (column, row) from -1 to 1: affine and elastic in one grid.

    Both are sums of products of a function of the row and a function of the column, so one product of small matrices
    gives the whole grid. Its coordinates lie in planes, which sampling reads fastest. The first draws are those of
    `draw_affine`. `translation` is a share of the side.
    """
    height, width = size
    angle, zoom = draw_affine(generator, rotation_degrees, scale)
    shift = translation * 2 * generator.uniform(-1, 1, 2)
    cos, sin, aspect = math.cos(angle) / zoom, math.sin(angle) / zoom, height / width
    factors = torch.zeros(2, CONTROL_POINTS + 2, CONTROL_POINTS + 2)  # rows: control points, 1, row; columns alike
    factors[:, -2, -2] = torch.tensor(shift, dtype=torch.float32)
    factors[:, -2, -1] = torch.tensor([cos, sin / aspect])
    factors[:, -1, -2] = torch.tensor([-sin * aspect, cos])
    if elastic_pixels:
        control = generator.standard_normal((2, CONTROL_POINTS, CONTROL_POINTS)).astype(np.float32)
        pixel = torch.tensor([2 / width, 2 / height])[:, None, None]
        factors[:, :-2, :-2] = elastic_pixels * torch.from_numpy(control) * pixel
    return (_functions(height) @ factors @ _functions(width).T).movedim(0, -1)[None]


@lru_cache(maxsize=4)
def plain_grid(size: tuple[int, int]) -> Tensor:
    """Return the grid that samples each pixel at its own position, [1, H, W, 2], its coordinates in planes."""
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, *size], align_corners=False)
    return grid.movedim(-1, 0).contiguous().movedim(0, -1)


def resample(
    image: Tensor, mask: Tensor, grid: Tensor, inside: tuple[slice, slice] | None = None
) -> tuple[Tensor, Tensor]:
    """Return image and mask at the positions of a sampling grid: the image linearly, the mask by nearest neighbour.

    Pixels from outside the slice, or outside the rows and columns of `inside`, are background, and as dark as the
    darkest pixel of their plane.
    """
    floor = image.amin(dim=(-2, -1), keepdim=True)  # 0 would be a medium grey where intensities are z-scores
    raised, planes = (t.reshape(1, -1, *t.shape[-2:]) for t in (image - floor, mask.float()))
    if inside is not None:
        raised, planes = _only(raised, inside), _only(planes, inside)
    grid = grid.to(image.device)
    moved = F.grid_sample(raised, grid, mode="bilinear", align_corners=False).reshape(image.shape) + floor
    classes = F.grid_sample(planes, grid, mode="nearest", align_corners=False)
    return moved, classes.to(mask.dtype).reshape(mask.shape)


def draw_window(
    generator: np.random.Generator, size: tuple[int, int], height: tuple[float, float], width: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a window in a picture, from the least and greatest share of its sides."""
    rows, columns = (
        max(1, round(float(generator.uniform(*shares)) * side))
        for shares, side in zip((height, width), size, strict=True)
    )
    top, left = int(generator.integers(size[0] - rows + 1)), int(generator.integers(size[1] - columns + 1))
    return top, left, rows, columns


def _only(planes: Tensor, inside: tuple[slice, slice]) -> Tensor:
    """Return planes that are 0 outside these rows and columns."""
    result = torch.zeros_like(planes)
    result[..., inside[0], inside[1]] = planes[..., inside[0], inside[1]]
    return result


def change_contrast(image: Tensor, generator: np.random.Generator, amount: float) -> Tensor:
    """Multiply an image by a factor from `1 - amount` to `1 + amount`."""
    return image * float(1 + amount * generator.uniform(-1, 1))


def stretch_contrast(image: Tensor, factor: float) -> Tensor:
    """Multiply the distances of the intensities of an image from their mean; the range of the image stays."""
    mean = image.mean()
    return ((image - mean) * factor + mean).clamp(image.amin(), image.amax())


def change_gamma(image: Tensor, generator: np.random.Generator, amount: float) -> Tensor:
    """Bend the intensities of an image by an exponent from `exp(-amount)` to `exp(amount)`; the ends stay."""
    return bend(image, math.exp(amount * generator.uniform(-1, 1)))


def bend(image: Tensor, exponent: float) -> Tensor:
    """Bend the intensities of an image by an exponent; the darkest and the brightest value stay."""
    low, span = image.amin(), (image.amax() - image.amin()).clamp(min=1e-6)
    return ((image - low) / span) ** exponent * span + low


def add_noise(image: Tensor, generator: np.random.Generator, amount: float) -> Tensor:
    """Add Gaussian noise with a standard deviation from 0 to `amount`."""
    return image + amount * generator.random() * _normal(generator, image)


def add_bias(image: Tensor, generator: np.random.Generator, amount: float) -> Tensor:
    """Multiply an image by the smooth shade of a receiver coil, from about `exp(-amount)` to `exp(amount)`."""
    control = amount * generator.uniform(-1, 1, (1, 1, BIAS_POINTS, BIAS_POINTS)).astype(np.float32)
    size = (image.shape[-2], image.shape[-1])
    shade = F.interpolate(torch.from_numpy(control).to(image.device), size, mode="bicubic", align_corners=True)
    floor = image.amin()
    return (image - floor) * shade[0, 0].exp() + floor


def blur(image: Tensor, sigma: float) -> Tensor:
    """Smooth an image by a Gaussian of `sigma` pixels."""
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return image
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    planes = F.pad(image.reshape(-1, 1, *image.shape[-2:]), (0, 0, radius, radius), mode="replicate")
    planes = F.pad(F.conv2d(planes, kernel[None, None, :, None]), (radius, radius, 0, 0), mode="replicate")
    return F.conv2d(planes, kernel[None, None, None, :]).reshape(image.shape)


def coarsen(image: Tensor, zoom: float) -> Tensor:
    """Change an image as if it were scanned with `zoom` times as many rows and columns."""
    height, width = image.shape[-2:]
    size = max(1, round(height * zoom)), max(1, round(width * zoom))
    coarse = F.interpolate(image.reshape(1, -1, height, width), size, mode="bilinear", antialias=True)
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False).reshape(image.shape)


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
