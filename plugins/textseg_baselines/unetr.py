"""UNETR (Hatamizadeh 2022, arXiv 2103.10504) in two dimensions, from MONAI."""

from __future__ import annotations

from monai.networks import nets
from torch import Tensor, nn

from textseg.contracts import SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError

PATCH = 16  # pixels along a side of what becomes a token


class UNETR(nn.Module):
    """A vision transformer as encoder of a convolutional decoder; reads no text.

    With the default settings it has, at 384 x 384, the 87.12 M parameters of the ATM-Net paper's table, and 0.44 M of
    position embeddings, which the table leaves out. These bind it to the image size of the task.

    Args:
        task: gives C, K and the image size.
        feature_size: channels of the finest level of the decoder.
        hidden_size: features of a token; a multiple of `heads`.
        feed_forward_size: width of the layer between two attentions.
        heads: attention heads.

    Raises RecipeError for heads that do not divide the features of a token.
    """

    uses_text = False
    size_multiple = PATCH

    def __init__(
        self,
        task: Task,
        *,
        feature_size: int = 16,
        hidden_size: int = 768,
        feed_forward_size: int = 3072,
        heads: int = 12,
    ) -> None:
        super().__init__()
        if heads < 1 or hidden_size % heads:
            raise RecipeError(f"unetr: heads is {heads}, but must divide hidden_size ({hidden_size}).")
        self.image_size = tuple(-(-side // PATCH) * PATCH for side in task.image_size)  # as the core pads
        self.network = nets.UNETR(
            in_channels=task.image_channels,
            out_channels=task.class_count,
            img_size=self.image_size,
            feature_size=feature_size,
            hidden_size=hidden_size,
            mlp_dim=feed_forward_size,
            num_heads=heads,
            spatial_dims=2,
        )
        for block in self.network.vit.blocks:  # MONAI gives each a norm for a cross-attention that isn't there
            block.norm_cross_attn = nn.Identity()

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """[B, C, H, W] of the task's image size -> logits [B, K, H, W]. Raises ValueError for another size."""
        if tuple(image.shape[-2:]) != self.image_size:
            raise ValueError(
                f"This UNETR has position embeddings for {self.image_size[0]} x {self.image_size[1]} pixels, not for "
                f"{image.shape[-2]} x {image.shape[-1]}."
            )
        return SegmenterOutput(self.network(image))
