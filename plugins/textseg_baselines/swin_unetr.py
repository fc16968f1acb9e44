"""Swin UNETR (Tang 2022, arXiv 2111.14791, as the ATM-Net paper cites it) in two dimensions, from MONAI."""

from __future__ import annotations

from monai.networks.nets import swin_unetr
from torch import Tensor, nn

from textseg.contracts import SegmenterOutput, Task, TextFeatures
from textseg.models import fuse_windows


class SwinUNETR(nn.Module):
    """A Swin transformer as encoder of a convolutional decoder; reads no text.

    With the default `feature_size` it has the 25.139 M parameters of the paper's table.

    Args:
        task: gives C and K.
        feature_size: channels of the finest level; a multiple of 12.
        checkpointing: trade time for memory in the transformer.
    """

    uses_text = False
    size_multiple = 32

    def __init__(self, task: Task, *, feature_size: int = 48, checkpointing: bool = False) -> None:
        super().__init__()
        self.network = swin_unetr.SwinUNETR(
            in_channels=task.image_channels,
            out_channels=task.class_count,
            feature_size=feature_size,
            spatial_dims=2,
            use_checkpoint=checkpointing,
        )
        fuse_windows(self.network, swin_unetr.WindowAttention)

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """[B, C, H, W] -> logits [B, K, H, W]."""
        return SegmenterOutput(self.network(image))
