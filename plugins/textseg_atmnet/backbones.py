"""A backbone of another library as a pyramid: which of its maps are levels, and which image sizes it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textseg.contracts import Features
from textseg.errors import RecipeError

SIDE = 224  # pixels: a multiple of every usual patch and stride, and what most backbones expect

Run = Callable[[nn.Module, Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Pyramid:
    """The maps of a backbone, measured by running it, since declarations of libraries are not always right."""

    maps: tuple[int, ...]  # which of the maps that it gives are levels, finest first
    features: Features
    size_multiple: int
    unused: frozenset[str]  # parameters that no level depends on


def look_at(backbone: nn.Module, run: Run, image_channels: int, *, every_map: bool, name: str) -> Pyramid:
    """Measure the maps of a backbone on the device "meta", which computes only shapes.

    Raises RecipeError for a backbone that does not take images of every multiple of its strides.

    Args:
        backbone: built on "meta".
        run: (backbone, image [1, C, H, W]) -> maps [1, C_l, H_l, W_l], finest first.
        image_channels: C.
        every_map: make each map a level, not only the last one of each stride.
        name: the backbone's name in messages.
    """
    try:
        with torch.device("meta"):
            shapes = [feature.shape for feature in run(backbone.eval(), torch.zeros(1, image_channels, SIDE, SIDE))]
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _unusable(name, (SIDE, SIDE), error) from error
    if any(len(shape) != 4 or SIDE % shape[2] or SIDE % shape[3] for shape in shapes):
        raise _unusable(name, (SIDE, SIDE), ValueError(f"its maps are {', '.join(map(_written, shapes))}"))
    strides = [SIDE // shape[2] for shape in shapes]
    if strides != sorted(strides):
        raise RecipeError(f"{name}: its maps have the strides {strides}; name stages from the finest to the coarsest.")
    levels = tuple(range(len(strides)))
    if not every_map:
        # A map at full size with no more channels than the image is the image.
        features = [index for index in levels if strides[index] > 1 or shapes[index][1] > image_channels]
        levels = tuple({strides[index]: index for index in features}.values())
    pyramid = Features(tuple(shapes[index][1] for index in levels), tuple(strides[index] for index in levels))
    multiple = math.lcm(*pyramid.strides)
    sides = (4 * multiple, 6 * multiple)
    try:
        with torch.device("meta"), torch.enable_grad():
            given = run(backbone, torch.zeros(1, image_channels, *sides))
            chosen = [given[index] for index in levels]
            parameters = dict(backbone.named_parameters())
            total = torch.stack([feature.mean() for feature in chosen]).sum()
            gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _unusable(name, sides, error) from error
    expected = [
        (1, channels, sides[0] // stride, sides[1] // stride)
        for channels, stride in zip(pyramid.channels, pyramid.strides, strict=True)
    ]
    if [tuple(feature.shape) for feature in chosen] != expected:
        shapes_given = ", ".join(_written(feature.shape) for feature in chosen)
        raise _unusable(name, sides, ValueError(f"its maps are {shapes_given}"))
    unused = [key for key, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    return Pyramid(levels, pyramid, multiple, frozenset(unused))


class FullSize(nn.Module):
    """Two convolutions of the image, for details that a backbone with a first stride of 4 or 14 loses."""

    def __init__(self, image_channels: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (image_channels, channels):
            layers += [
                nn.Conv2d(width, channels, 3, padding=1, bias=False),
                nn.InstanceNorm2d(channels, affine=True),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C_0, H, W]."""
        maps: Tensor = self.layers(image)
        return maps


def full_size_level(image_channels: int, channels: int, features: Features) -> tuple[FullSize | None, Features]:
    """Return the level at full size and the pyramid with it; None if `channels` is 0 or the pyramid has it already."""
    if channels < 0:
        raise RecipeError(f"full_size_channels is {channels}, but must not be below 0.")
    if not channels or features.strides[0] == 1:
        return None, features
    return FullSize(image_channels, channels), Features((channels, *features.channels), (1, *features.strides))


def freeze(backbone: nn.Module, unused: frozenset[str]) -> None:
    """Freeze parameters that never get a gradient; training on several devices would wait for them."""
    for name, parameter in backbone.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)


def _written(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[1:]))


def _unusable(name: str, sides: tuple[int, int], error: Exception) -> RecipeError:
    cause = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    return RecipeError(
        f"{name} can't encode an image of {sides[0]} x {sides[1]}: {cause}. Choose a backbone that takes images of any "
        "size and gives maps at a stride."
    )
