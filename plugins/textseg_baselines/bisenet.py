"""The parts of BiSeNet (Yu 2018, arXiv 1808.00897) that its two descendants share, and a residual block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvolutionBlock(nn.Sequential):
    """A convolution, batch normalisation, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation and a short cut (He 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvolutionBlock(channels_in, channels, stride=stride)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.short_cut = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))
            if stride > 1 or channels_in != channels
            else nn.Identity()
        )

    def forward(self, image: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, H / stride, W / stride]."""
        return F.relu(self.second(self.first(image)) + self.short_cut(image))


class AttentionRefinement(nn.Module):
    """Weighs channels by what the whole map holds (section 3.2).

    Without BiSeNet's batch normalisation of the weights: one value a channel can't be normalised in a batch of one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(channels, channels, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C_l, H_l, W_l] -> the same shape."""
        weights: Tensor = self.weigh(feature.mean((2, 3), keepdim=True)).sigmoid()
        return feature * weights


class FeatureFusion(nn.Module):
    """Joins the spatial and the context path, and adds what their channels' weights let through (section 3.3)."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.join = ConvolutionBlock(channels_in, channels, 1)
        self.weigh = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        """Two maps of H_l x W_l with `channels_in` channels together -> [B, channels, H_l, W_l]."""
        joined: Tensor = self.join(torch.cat([spatial, context], 1))
        weights: Tensor = self.weigh(joined.mean((2, 3), keepdim=True)).sigmoid()
        return joined + joined * weights


class UpBlock(nn.Module):
    """Brings a coarse map to the size of a skip and joins the two in a residual block."""

    def __init__(self, coarse_channels: int, channels: int) -> None:
        super().__init__()
        self.join = ResidualBlock(coarse_channels + channels, channels)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """[B, C_l+1, H_l / 2, W_l / 2], [B, C_l, H_l, W_l] -> [B, C_l, H_l, W_l]."""
        raised = F.interpolate(coarse, skip.shape[-2:], mode="bilinear", align_corners=False)
        joined: Tensor = self.join(torch.cat([raised, skip], 1))
        return joined
