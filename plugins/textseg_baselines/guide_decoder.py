"""The guide decoder of Ariadne's Thread (Zhong 2023, arXiv 2307.03942), reconstructed from its description.

With V the visual tokens of a level, T the text tokens and PE sinusoids that tell positions:

    T_i = LeakyReLU(Linear(GELU(Conv1d(T))))                             text, from T x D to M x C_l
    V'  = V  + LN(MHSA(q = k = LN(V) + PE, v = LN(V)))                   image positions look at each other
    Z   = V' + alpha LN(MHCA(q = LN(V') + PE, k = T_i + PE, v = T_i))    and at the text
    next finer level = Conv([Up(Z), skip])

As in the method's public code, PE counts positions row by row, alpha begins at 1.421, convolutions have batch
normalisation, and a mean over 4 x 4 pixels follows the sub-pixel upsampling. Ours are residual blocks as convolutions,
and the reduction of a whole prompt to M tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.blocks import SubpixelUpsample, UnetrUpBlock
from torch import Tensor, nn

from textseg.contracts import Task, TextFeatures
from textseg.errors import RecipeError
from textseg.models import Attention, sinusoids
from textseg_baselines.convnext import STEM_STRIDE

NORM = "BATCH"
ALPHA = 1.421  # in the beginning


class GuideDecoder(nn.Module):
    """A decoder to the next finer level in which positions attend to each other and to the text.

    Args:
        task: gives T and D.
        channels: C_l of the level.
        finer_channels: C_l of the next finer level.
        text_tokens: M, the number of tokens to which the text is reduced.
        self_heads: heads of the attention among positions.
        heads: heads of the attention to the text.
    """

    def __init__(
        self, task: Task, channels: int, finer_channels: int, *, text_tokens: int, self_heads: int, heads: int
    ) -> None:
        super().__init__()
        assert task.text_length is not None
        assert task.text_size is not None
        self.text_mixture = nn.Conv1d(task.text_length, text_tokens, kernel_size=1)  # over tokens: T is constant
        self.text_projection = nn.Linear(task.text_size, channels)
        self.self_norm, self.self_output_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.cross_norm, self.cross_output_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.self_attention = Attention(channels, self_heads)
        self.cross_attention = Attention(channels, heads)
        self.alpha = nn.Parameter(torch.full((1,), ALPHA))
        self.up = UnetrUpBlock(2, channels, finer_channels, 3, 2, NORM, res_block=True)

    def guide(self, tokens: Tensor, structures: Tensor | None = None) -> Tensor:
        """Text [B, T, D] -> [B, M, C_l]; vectors of single structures [B, K-1, D] follow unchanged."""
        mixed = self.text_mixture(tokens)
        if structures is not None:
            mixed = torch.cat([mixed, structures], dim=1)
        return F.leaky_relu(self.text_projection(F.gelu(mixed)))

    def forward(
        self, visual: Tensor, skip: Tensor, guide: Tensor, reweight: Callable[[Tensor], Tensor] = lambda tokens: tokens
    ) -> Tensor:
        """Map [B, C_l, H_l, W_l], that of the next finer level, text [B, M, C_l] -> the next finer level, guided.

        `reweight` changes queries and keys of the attention to the text, [B, N or M, C_l] -> the same shape.
        """
        height, width = visual.shape[-2:]
        positions = sinusoids(height * width, visual.shape[1], visual.device)  # [N, C_l]
        tokens = visual.flatten(2).transpose(1, 2)  # [B, N, C_l]
        normed = self.self_norm(tokens)
        attended = self.self_attention(normed + positions, normed + positions, normed)
        tokens = tokens + self.self_output_norm(attended)

        query = self.cross_norm(tokens) + positions
        key = guide + sinusoids(guide.shape[1], guide.shape[2], guide.device)
        guided = self.cross_attention(reweight(query), reweight(key), guide)
        tokens = tokens + self.alpha * self.cross_output_norm(guided)
        decoded: Tensor = self.up(tokens.transpose(1, 2).unflatten(2, (height, width)), skip)
        return decoded


def guide_decoders(
    name: str,
    task: Task,
    *,
    widths: Sequence[int],
    depths: Sequence[int],
    text_tokens: Sequence[int],
    self_heads: int,
    heads: int,
) -> nn.ModuleList:
    """Return a guide decoder for each level except the finest, coarsest first. Raises RecipeError for bad settings."""
    lengths: Mapping[str, int] = {"depths": len(widths), "text_tokens": len(widths) - 1}
    if len(widths) < 2:
        raise RecipeError(f"{name}: widths has {len(widths)} levels, but needs 2 at least.")
    for setting, values in (("widths", widths), ("depths", depths), ("text_tokens", text_tokens)):
        if min(values, default=1) < 1:
            raise RecipeError(f"{name}: {setting} holds {min(values)}, but must be at least 1.")
        if len(values) != lengths.get(setting, len(values)):
            raise RecipeError(
                f"{name}: {setting} has {len(values)} values, but {len(widths)} widths need {lengths[setting]}."
            )
    for setting, count in (("self_heads", self_heads), ("heads", heads)):
        if count < 1 or any(width % count for width in widths[1:]):
            guided = ", ".join(map(str, widths[1:]))
            raise RecipeError(f"{name}: {setting} is {count}, but must divide the guided widths: {guided}.")
    if task.text_length is None or task.text_size is None:
        raise RecipeError(f"{name} reads text, and the recipe has no prompts. Add prompts, or use another network.")
    levels = zip(reversed(list(pairwise(widths))), text_tokens, strict=True)
    return nn.ModuleList(
        GuideDecoder(task, coarse, fine, text_tokens=count, self_heads=self_heads, heads=heads)
        for (fine, coarse), count in levels
    )


class SubPixelHead(nn.Sequential):
    """A head from the map at stride 4 to logits at full size, by sub-pixel upsampling and a convolution to K."""

    def __init__(self, channels: int, class_count: int) -> None:
        inner = max(channels // STEM_STRIDE, class_count)
        super().__init__(SubpixelUpsample(2, channels, inner, STEM_STRIDE), nn.Conv2d(inner, class_count, 1))


def spoken(text: TextFeatures | None) -> Tensor:
    """Return tokens [B, T, D] with zeros in the padding. Raises ValueError without text."""
    if text is None:
        raise ValueError("A text-guided network needs text features.")
    return text.tokens.masked_fill(~text.mask[..., None], 0)
