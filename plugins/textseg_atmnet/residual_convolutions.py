"""A small convolutional vision encoder, for trainings that are too short for a transformer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Features, Task
from textseg.errors import RecipeError


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with instance normalisation and a short cut (He 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm, self.second_norm = (nn.InstanceNorm2d(channels, affine=True) for _ in range(2))
        self.short_cut = (
            nn.Conv2d(channels_in, channels, 1, stride=stride)
            if stride > 1 or channels_in != channels
            else nn.Identity()
        )

    def forward(self, image: Tensor) -> Tensor:
        residual = self.second_norm(self.second(F.leaky_relu(self.first_norm(self.first(image)), 0.01)))
        return F.leaky_relu(residual + self.short_cut(image), 0.01)


class ResidualConvolutions(nn.Module):
    """A pyramid of residual blocks, halving the resolution at each level.

    Args:
        task: gives C.
        channels: C_l of each level, finest first; level l has a stride of `stem_stride` x 2^l.
        blocks: residual blocks in a level.
        stem_stride: stride of the finest level; 2 reduces the cost to a quarter.

    Raises RecipeError for a setting out of range.
    """

    def __init__(
        self,
        task: Task,
        *,
        channels: tuple[int, ...] = (16, 32, 64, 128, 256),
        blocks: int = 1,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise RecipeError(
                f"residual_convolutions: channels is {list(channels)}, but must name at least 1 for one or more levels."
            )
        for name, value in (("blocks", blocks), ("stem_stride", stem_stride)):
            if value < 1:
                raise RecipeError(f"residual_convolutions: {name} is {value}, but must be at least 1.")
        self.features = Features(channels, tuple(stem_stride * 2**level for level in range(len(channels))))
        self.size_multiple = self.features.strides[-1]
        widths = (task.image_channels, *channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                *(
                    ResidualBlock(
                        widths[level] if block == 0 else width,
                        width,
                        (2 if level else stem_stride) if block == 0 else 1,
                    )
                    for block in range(blocks)
                )
            )
            for level, width in enumerate(channels)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> L maps, finest first."""
        maps = []
        for level in self.levels:
            image = level(image)
            maps.append(image)
        return tuple(maps)
