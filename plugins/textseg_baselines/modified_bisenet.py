"""Modified BiSeNet (Deng 2023, doi 10.1007/978-981-99-6489-5_11), reconstructed from its description."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from textseg.contracts import SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError
from textseg_baselines.bisenet import AttentionRefinement, ConvolutionBlock, FeatureFusion, ResidualBlock, UpBlock

LEVELS = 5  # of the context path, from half the resolution to a 32nd of it


class ModifiedBiSeNet(nn.Module):
    """A U-shaped context path with refinement and a spatial path of multi-scale attention; reads no text.

    The paper has no code, and its description fixes the parts: a U-shaped context path with attention refinement of
    every level of its encoder and a residual structure, a spatial path of SegNeXt's multi-scale convolutional
    attention, BiSeNet's feature fusion. Our choices are: five levels of 64 to 1024 channels that begin at half the
    resolution, one residual block a level on both sides, bilinear upsampling, two blocks in the spatial path, fusion at
    half the resolution, no auxiliary heads. The sum has 34.7 M parameters where the ATM-Net paper's table has 41.91 M.

    Args:
        task: gives C and K.
        channels: channels of the finest level, doubled at each coarser one.
        attention_blocks: blocks in the spatial path.

    Raises RecipeError for a setting below 1.
    """

    uses_text = False
    size_multiple = 2**LEVELS

    def __init__(self, task: Task, *, channels: int = 64, attention_blocks: int = 2) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("attention_blocks", attention_blocks)):
            if value < 1:
                raise RecipeError(f"modified_bisenet: {name} is {value}, but must be at least 1.")
        widths = [channels * 2**level for level in range(LEVELS)]
        stem = ResidualBlock(task.image_channels, channels, stride=2)
        self.encoder = nn.ModuleList([stem, *(ResidualBlock(a, b, stride=2) for a, b in pairwise(widths))])
        self.refinements = nn.ModuleList(AttentionRefinement(width) for width in widths)
        self.decoder = nn.ModuleList(UpBlock(coarse, fine) for fine, coarse in pairwise(widths))  # finest first
        self.spatial_path = nn.Sequential(
            ConvolutionBlock(task.image_channels, channels, stride=2),
            *(AttentionBlock(channels) for _ in range(attention_blocks)),
        )
        self.fusion = FeatureFusion(2 * channels, channels)
        self.head = nn.Conv2d(channels, task.class_count, 1)

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """[B, C, H, W] -> logits [B, K, H / 2, W / 2]."""
        refined, feature = [], image
        for block, refine in zip(self.encoder, self.refinements, strict=True):
            feature = block(feature)
            refined.append(refine(feature))
        context = refined.pop()
        for join in reversed(self.decoder):
            context = join(context, refined.pop())
        return SegmenterOutput(self.head(self.fusion(self.spatial_path(image), context)))


class AttentionBlock(nn.Module):
    """Multi-scale convolutional attention, then a feed-forward layer, each with a short cut (SegNeXt, Guo 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, channels, 1),
            nn.GELU(),
            MultiScaleAttention(channels),
            nn.Conv2d(channels, channels, 1),
        )
        wide = 4 * channels
        self.feed_forward = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, wide, 1),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.GELU(),
            nn.Conv2d(wide, channels, 1),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C_l, H_l, W_l] -> the same shape."""
        attended: Tensor = feature + self.attention(feature)
        result: Tensor = attended + self.feed_forward(attended)
        return result


class MultiScaleAttention(nn.Module):
    """Weights for each position from its neighbourhood, by pairs of strips of three lengths (section 3.1)."""

    def __init__(self, channels: int, lengths: tuple[int, ...] = (7, 11, 21)) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.strips = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, (1, length), padding=(0, length // 2), groups=channels),
                nn.Conv2d(channels, channels, (length, 1), padding=(length // 2, 0), groups=channels),
            )
            for length in lengths
        )
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C_l, H_l, W_l] -> the same shape."""
        near = self.near(feature)
        seen = near
        for strip in self.strips:
            seen = seen + strip(near)
        weights: Tensor = self.mix(seen)
        return feature * weights
