"""Ariadne's Thread (Zhong 2023, arXiv 2307.03942): a ConvNeXt U-Net whose decoders are guided by text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

from textseg.contracts import SegmenterOutput, Task, TextFeatures
from textseg.system import Progress
from textseg_baselines.convnext import ConvNeXt, fetch_weights, find_weights
from textseg_baselines.guide_decoder import GuideDecoder, SubPixelHead, guide_decoders, spoken


class AriadnesThread(nn.Module):
    """Guide decoders from the coarsest level to the finest, then sub-pixel upsampling to the image.

    Written from the paper's description; see `guide_decoder.py` for what is ours. The paper segments one class, here
    the last convolution has K. Its text encoder is the recipe's, and its limit of 24 text tokens is T, the longest
    prompt of the recipe, which each level mixes into its `text_tokens`.

    Args:
        task: gives C, K, T and D.
        widths: channels of the encoder's levels, finest first, at strides 4, 8, 16 and so on.
        depths: the encoder's blocks in each level.
        text_tokens: number of tokens to which the text is reduced at each guided level, coarsest first.
        self_heads: attention heads among image positions; must divide every width except the first.
        heads: attention heads from image to text; must divide every width except the first.
        weights: weights of the encoder, a name on the Hugging Face hub or a folder; random by default.
        revision: branch, tag or commit on the hub.
        pickled_weights: read weights in PyTorch's older format if there are no safetensors.

    Raises RecipeError for a setting out of range, a recipe without text, and weights that do not fit.
    """

    uses_text = True

    def __init__(
        self,
        task: Task,
        *,
        widths: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (3, 3, 9, 3),
        text_tokens: tuple[int, ...] = (24, 12, 9),
        self_heads: int = 1,
        heads: int = 4,
        weights: str | None = None,
        revision: str | None = None,
        pickled_weights: bool = False,
    ) -> None:
        super().__init__()
        self.decoders = guide_decoders(
            "ariadnes_thread",
            task,
            widths=widths,
            depths=depths,
            text_tokens=text_tokens,
            self_heads=self_heads,
            heads=heads,
        )
        self.encoder = ConvNeXt(
            task.image_channels, widths, depths, find_weights(weights, revision, pickled=pickled_weights)
        )
        self.size_multiple = self.encoder.size_multiple
        self.head = SubPixelHead(widths[0], task.class_count)

    @classmethod
    def fetch(
        cls,
        *,
        progress: Progress,
        weights: str | None = None,
        revision: str | None = None,
        pickled_weights: bool = False,
        **_: Any,
    ) -> str:
        """Download the encoder's weights, and return a sentence on the result. Raises RecipeError."""
        return fetch_weights(weights, revision, pickled=pickled_weights, progress=progress)

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """[B, C, H, W], text -> logits [B, K, H, W]. Raises ValueError without text."""
        tokens = spoken(text)
        *skips, feature = self.encoder(image)
        for decoder, skip in zip(cast(Iterable[GuideDecoder], self.decoders), reversed(skips), strict=True):
            feature = decoder(feature, skip, decoder.guide(tokens))
        return SegmenterOutput(self.head(feature))
