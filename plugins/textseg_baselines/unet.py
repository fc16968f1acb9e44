"""U-Net (Ronneberger 2015, arXiv 1505.04597), from MONAI."""

from __future__ import annotations

from monai.networks import nets
from torch import Tensor, nn

from textseg.contracts import SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError


class UNet(nn.Module):
    """An encoder and a decoder of convolutions, with skip connections; reads no text.

    With the default `channels` it has the 1.49 M parameters of the ATM-Net paper's table.

    Args:
        task: gives C and K.
        channels: channels of each level, finest first; each level halves the resolution.

    Raises RecipeError for fewer than two levels.
    """

    uses_text = False

    def __init__(self, task: Task, *, channels: tuple[int, ...] = (24, 48, 96, 192, 384)) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 1:
            raise RecipeError(f"unet: channels is {list(channels)}, but must name at least 1 for two or more levels.")
        self.size_multiple = 2 ** (len(channels) - 1)
        self.network = nets.UNet(
            spatial_dims=2,
            in_channels=task.image_channels,
            out_channels=task.class_count,
            channels=channels,
            strides=(2,) * (len(channels) - 1),
            num_res_units=0,
        )

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """[B, C, H, W] -> logits [B, K, H, W]."""
        return SegmenterOutput(self.network(image))
