"""U-BiSeNet (Deng 2024, doi 10.1016/j.bspc.2023.105682), reconstructed from its description."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError
from textseg_baselines.bisenet import ConvolutionBlock, FeatureFusion, ResidualBlock, UpBlock

BLOCKS = (3, 4, 6, 3)  # of ResNet-34's stages
WIDTHS = (1, 2, 4, 4)  # of the stages, times `channels`


class UBiSeNet(nn.Module):
    """A residual U-Net as context path beside a spatial path of strip pooling; reads no text.

    The paper has no code, and its description fixes the parts: a residual U-Net with the stages of ResNet-34 as context
    path, a spatial path of strip pooling, BiSeNet's feature fusion. Our choices are: a last stage as narrow as the one
    before (with all 512 channels ResNet-34 alone would exceed the published size), one residual block a level in the
    decoder, bilinear upsampling, two strip poolings in the spatial path, fusion at half the resolution, no auxiliary
    heads. The sum has 14.7 M parameters where the ATM-Net paper's table has 12.59 M.

    Args:
        task: gives C and K.
        channels: channels of the first stage; the others have 2, 4 and 4 times as many.
        strip_poolings: number of strip poolings in the spatial path.

    Raises RecipeError for a setting below 1.
    """

    uses_text = False
    size_multiple = 32

    def __init__(self, task: Task, *, channels: int = 64, strip_poolings: int = 2) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("strip_poolings", strip_poolings)):
            if value < 1:
                raise RecipeError(f"u_bisenet: {name} is {value}, but must be at least 1.")
        widths = [channels, *(factor * channels for factor in WIDTHS)]  # of the stem and the stages
        self.stem = ConvolutionBlock(task.image_channels, channels, 7, stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(before, width, stride=2), *(ResidualBlock(width, width) for _ in range(count - 1))
            )
            for (before, width), count in zip(pairwise(widths), BLOCKS, strict=True)
        )
        self.decoder = nn.ModuleList(UpBlock(coarse, fine) for fine, coarse in pairwise(widths))  # finest first
        self.spatial_path = nn.Sequential(
            ConvolutionBlock(task.image_channels, channels, stride=2),
            *(StripPooling(channels) for _ in range(strip_poolings)),
        )
        self.fusion = FeatureFusion(2 * channels, channels)
        self.head = nn.Conv2d(channels, task.class_count, 1)

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """[B, C, H, W] -> logits [B, K, H / 2, W / 2]."""
        features = [self.stem(image)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        context = features.pop()
        for join in reversed(self.decoder):
            context = join(context, features.pop())
        return SegmenterOutput(self.head(self.fusion(self.spatial_path(image), context)))


class StripPooling(nn.Module):
    """Weights for positions from the means of their row and column, after a convolution (Hou 2020, section 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = ConvolutionBlock(channels, channels)
        self.rows = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.columns = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C_l, H_l, W_l] -> the same shape."""
        feature = self.convolution(feature)
        rows, columns = self.rows(feature.mean(3, keepdim=True)), self.columns(feature.mean(2, keepdim=True))
        weights: Tensor = self.mix(F.relu(rows + columns)).sigmoid()  # both spread over H_l x W_l
        return feature * weights
