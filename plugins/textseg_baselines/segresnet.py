"""SegResNet (Myronenko 2018, arXiv 1810.11654) without its variational branch, from MONAI."""

from __future__ import annotations

from monai.networks import nets
from torch import Tensor, nn

from textseg.contracts import SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError

GROUPS = 8  # of the group normalisation


class SegResNet(nn.Module):
    """A deep residual encoder and a light decoder; reads no text.

    With the default `channels` it has the 0.395 M parameters of the ATM-Net paper's table, which cuts them to 0.39.

    Args:
        task: gives C and K.
        channels: channels of the finest level, doubled at each of the three coarser ones; a multiple of 8.

    Raises RecipeError for other channels.
    """

    uses_text = False
    size_multiple = 8

    def __init__(self, task: Task, *, channels: int = 8) -> None:
        super().__init__()
        if channels < 1 or channels % GROUPS:
            raise RecipeError(f"segresnet: channels is {channels}, but must be a multiple of {GROUPS}.")
        self.network = nets.SegResNet(
            spatial_dims=2,
            init_filters=channels,
            in_channels=task.image_channels,
            out_channels=task.class_count,
        )

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """[B, C, H, W] -> logits [B, K, H, W]."""
        return SegmenterOutput(self.network(image))
