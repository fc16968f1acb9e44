"""The encoder half of a U-Net (Ronneberger 2015), from MONAI."""

from __future__ import annotations

from monai.networks.nets import basic_unet
from torch import Tensor, nn

from textseg.contracts import Features, Task
from textseg.errors import RecipeError


class MonaiUNetEncoder(nn.Module):
    """Five levels at strides 1 to 16, two convolutions each, as in MONAI's BasicUNet.

    Args:
        task: gives C.
        channels: channels of each of the five levels, finest first.
        dropout: probability, after each normalisation.

    Raises RecipeError for another number of levels.
    """

    size_multiple = 16

    def __init__(self, task: Task, *, channels: tuple[int, ...] = (32, 32, 64, 128, 256), dropout: float = 0.0) -> None:
        super().__init__()
        if len(channels) != 5:
            raise RecipeError(f"monai_unet: channels has {len(channels)} values, but its levels are five.")
        whole = basic_unet.BasicUNet(
            spatial_dims=2,
            in_channels=task.image_channels,
            out_channels=task.class_count,
            features=(*channels, channels[0]),
            dropout=dropout,
        )
        self.stages = nn.ModuleList([whole.conv_0, whole.down_1, whole.down_2, whole.down_3, whole.down_4])
        self.features = Features(channels, (1, 2, 4, 8, 16))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> 5 maps at strides 1 to 16."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return tuple(maps)
