"""Attention U-Net (Oktay 2018, arXiv 1804.03999), from MONAI."""

from __future__ import annotations

from monai.networks import nets
from torch import Tensor, nn

from textseg.contracts import SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError


class AttentionUNet(nn.Module):
    """A U-Net whose skips are weighted by what the coarser level saw; reads no text.

    With the default `channels` it has the 4.47 M parameters of the ATM-Net paper's table, which cuts them to 4.46.

    Args:
        task: gives C and K.
        channels: channels of each level, finest first; each level halves the resolution.

    Raises RecipeError for fewer than two levels, or less than two channels.
    """

    uses_text = False

    def __init__(self, task: Task, *, channels: tuple[int, ...] = (24, 48, 96, 192, 384)) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 2:  # a gate has half the channels of its level
            raise RecipeError(
                f"attention_unet: channels is {list(channels)}, but must name at least 2 for two or more levels."
            )
        self.size_multiple = 2 ** (len(channels) - 1)
        self.network = nets.AttentionUnet(
            spatial_dims=2,
            in_channels=task.image_channels,
            out_channels=task.class_count,
            channels=channels,
            strides=(2,) * (len(channels) - 1),
        )

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """[B, C, H, W] -> logits [B, K, H, W]."""
        return SegmenterOutput(self.network(image))
