"""The encoder half of Swin UNETR (Hatamizadeh 2022) in two dimensions, from MONAI: ATM-Net's vision encoder."""

from __future__ import annotations

from monai.networks.nets.swin_unetr import SwinUNETR, WindowAttention
from torch import Tensor, nn

from textseg.contracts import Features, Task
from textseg.models import fuse_windows


class SwinUNETREncoder(nn.Module):
    """Five levels of a Swin transformer at strides 2 to 32, each through its residual block, and one at full size.

    At 384 x 384 with `feature_size` 48 the five levels have 36864, 9216, 2304, 576 and 144 positions with 48, 96, 192,
    384 and 768 channels, as in ATM-Net; the level of stride 1 is the skip that the last decoding step needs.

    Args:
        task: gives C.
        feature_size: channels of the finest level; a multiple of 12.
        checkpointing: trade time for memory in the transformer.
    """

    size_multiple = 32

    def __init__(self, task: Task, *, feature_size: int = 48, checkpointing: bool = False) -> None:
        super().__init__()
        whole = SwinUNETR(
            in_channels=task.image_channels,
            out_channels=task.class_count,
            feature_size=feature_size,
            spatial_dims=2,
            use_checkpoint=checkpointing,
        )
        fuse_windows(whole, WindowAttention)
        self.transformer = whole.swinViT
        self.full = whole.encoder1
        self.refine = nn.ModuleList([whole.encoder2, whole.encoder3, whole.encoder4, nn.Identity(), whole.encoder10])
        self.features = Features((feature_size, *(feature_size * 2**level for level in range(5))), (1, 2, 4, 8, 16, 32))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> 6 maps at strides 1 to 32."""
        hidden = self.transformer(image, True)  # normalised, as Swin UNETR does
        return (self.full(image), *(block(level) for block, level in zip(self.refine, hidden, strict=True)))
