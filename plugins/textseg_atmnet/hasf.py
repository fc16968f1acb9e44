"""Holistic Anatomy-aware Semantic Fusion (ATM-Net, arXiv 2504.03476).

The formulas of the published copy are lost; this is the form restored from the module's ancestor, the guide decoder of
Ariadne's Thread (Zhong 2023), with V the visual tokens of a level and T the text tokens:

    T_i = ReLU(Linear(ReLU(Conv1d(T))))                          text, from T x D to M x C_l
    V'  = V  + LN(MHSA(q = k = LN(V) + PE, v = LN(V)))           image positions look at each other
    Z   = V' + alpha LN(MHCA(q = LN(V') + PE, k = T_i + PE, v = T_i))    and at the text
    next finer level = ReLU(Conv([Up(Z), skip]))
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Features, Task, TextFeatures
from textseg.errors import RecipeError
from textseg.models import Attention, plane_sinusoids, sinusoids


class FusionBlock(nn.Module):
    """Attention of image positions to each other, then to the text if they read it, then an optional feed-forward."""

    def __init__(self, channels: int, heads: int, feed_forward: int, *, reads_text: bool = True) -> None:
        super().__init__()
        self.self_norm, self.self_output_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        if reads_text:
            self.cross_norm, self.cross_output_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.self_attention = Attention(channels, heads)
        if reads_text:
            self.cross_attention = Attention(channels, heads)
            self.alpha = nn.Parameter(torch.ones(1))
        self.feed_forward = (
            nn.Sequential(
                nn.LayerNorm(channels),
                nn.Linear(channels, feed_forward * channels),
                nn.GELU(),
                nn.Linear(feed_forward * channels, channels),
            )
            if feed_forward
            else None
        )

    def forward(self, visual: Tensor, text: Tensor | None, key_grid: tuple[int, int]) -> Tensor:
        """Map [B, C_l, H_l, W_l], text [B, M, C_l] -> [B, C_l, H_l, W_l]; keys lie on `key_grid` rows and columns."""
        height, width = visual.shape[-2:]
        position = plane_sinusoids(height, width, visual.shape[1], visual.device)  # [C_l, H_l, W_l]
        tokens = visual.flatten(2).transpose(1, 2)  # [B, N, C_l]
        position_tokens = position.flatten(1).T  # [N, C_l]

        normed = self.self_norm(tokens)
        keys, key_positions = normed, position_tokens
        if key_grid != (height, width):
            grid = normed.transpose(1, 2).unflatten(2, (height, width))
            keys = F.adaptive_avg_pool2d(grid, key_grid).flatten(2).transpose(1, 2)
            key_positions = F.adaptive_avg_pool2d(position, key_grid).flatten(1).T
        attended = self.self_attention(normed + position_tokens, keys + key_positions, keys)
        tokens = tokens + self.self_output_norm(attended)

        if text is not None:
            text_position = sinusoids(text.shape[1], text.shape[2], text.device)  # [M, C_l]
            guided = self.cross_attention(self.cross_norm(tokens) + position_tokens, text + text_position, text)
            tokens = tokens + self.alpha * self.cross_output_norm(guided)
        if self.feed_forward is not None:
            tokens = tokens + self.feed_forward(tokens)
        fused: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
        return fused


class FusionStage(nn.Module):
    """The fusion of one level: its blocks and, if they read text, the projection of the text to the level's width."""

    def __init__(
        self,
        task: Task,
        channels: int,
        *,
        heads: int,
        text_tokens: int,
        blocks: int,
        feed_forward: int,
        learn_absence: bool,
        pools_positions: bool,
        reads_text: bool,
    ) -> None:
        super().__init__()
        self.pools_positions, self.reads_text = pools_positions, reads_text
        if reads_text:
            if task.text_length is None or task.text_size is None:
                raise RecipeError(
                    "hasf reads text, and the recipe has no prompts. Add prompts, or set text_stages to 0."
                )
            self.text_mixture = nn.Conv1d(task.text_length, text_tokens, kernel_size=1)  # over tokens: T is constant
            self.text_projection = nn.Linear(task.text_size, channels)
        self.blocks = nn.ModuleList(
            FusionBlock(channels, heads, feed_forward, reads_text=reads_text) for _ in range(blocks)
        )
        # From zero: what the absence of each structure adds to every text token is only learned.
        learned = learn_absence and reads_text
        self.absence = nn.Parameter(torch.zeros(task.class_count - 1, channels)) if learned else None

    def guide(self, text: TextFeatures) -> Tensor:
        """Return the text tokens [B, M, C_l] that the image positions attend to."""
        tokens = text.tokens.masked_fill(~text.mask[..., None], 0)  # padding says nothing, whatever it holds
        guide = F.relu(self.text_projection(F.relu(self.text_mixture(tokens))))
        if self.absence is not None:
            absent = (~text.present).to(self.absence.dtype)
            guide = guide + (absent @ self.absence)[:, None]  # [B, K-1] x [K-1, C_l] -> [B, 1, C_l]
        return guide

    def forward(self, visual: Tensor, text: TextFeatures, key_grid: tuple[int, int]) -> Tensor:
        """Map [B, C_l, H_l, W_l] -> the same, guided by the text if this level reads it."""
        guide = self.guide(text) if self.reads_text else None
        size = visual.shape[-2:]
        if not self.pools_positions or key_grid == tuple(size):
            for block in self.blocks:
                visual = block(visual, guide, key_grid)
            return visual
        pooled = guided = F.adaptive_avg_pool2d(visual, key_grid)
        for block in self.blocks:
            guided = block(guided, guide, key_grid)
        return visual + F.interpolate(guided - pooled, size, mode="bilinear", align_corners=False)


class Decode(nn.Module):
    """Next finer level = ReLU(Conv([Up(Z), skip])), with instance normalisation before each ReLU."""

    def __init__(self, coarse: int, fine: int, ratio: int, convolutions: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(coarse, fine, kernel_size=ratio, stride=ratio)
        widths = [2 * fine] + [fine] * convolutions
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.InstanceNorm2d(b, affine=True), nn.ReLU())
                for a, b in pairwise(widths)
            )
        )

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """[B, C_l+1, H_l+1, W_l+1], [B, C_l, H_l, W_l] -> [B, C_l, H_l, W_l]."""
        decoded: Tensor = self.convolutions(torch.cat([self.up(coarse), skip], dim=1))
        return decoded


class HASF(nn.Module):
    """A decoder from the coarsest to the finest level in which image positions attend to the prompt.

    The self-attention is exact where a level is as coarse as `key_stride`; finer levels reduce keys and values to a
    grid of `key_stride` pixels, which grows with the image: exact attention there costs more than all the rest.

    Args:
        task: gives T and D.
        features: pyramid of the vision encoder; a level finer than `stages` only serves as skip.
        heads: attention heads; must divide C_l of every level with attention.
        stages: levels with self-attention, counted from the coarsest; 0 leaves a plain decoder that reads no text;
            more than there are give it to every level.
        text_stages: those of the `stages` that also attend to the text, counted from the coarsest; by default all.
            1 brings text to the bottleneck only, an ablation of the paper; 0 leaves a decoder with attention but
            without text, which then needs no prompts.
        key_stride: pixels between two keys of the finer levels; 1 is exact attention.
        reduction: reduction of the finer levels: "keys" keeps all queries; "positions" computes the fusion on the
            grid of the keys, and adds its change to every position by bilinear interpolation. It costs
            less, in time and in memory.
        text_tokens: M, the number of tokens to which the text is reduced at each level.
        blocks: fusion blocks in a stage.
        feed_forward: width of the feed-forward layer as a multiple of C_l; 0 leaves it out.
        convolutions: 3 x 3 convolutions after each upsampling.
        learn_absence: learn, at each level with text, a vector for each structure that is not visible in the text, and
            add it to the text tokens; for prompts that do not mention absent structures.

    With Swin UNETR of feature size 48 as encoder, D 768, T 128 and K 20, the whole model has 30.4 M parameters; with
    `blocks` 2, `feed_forward` 4 and `convolutions` 3 it has 52.9 M, with `blocks` 3 and the same 65.5 M, which is
    within 1 % of the paper's 64.87 M.

    Raises RecipeError for a setting out of range, heads that do not divide C_l, and text stages without prompts.
    """

    def __init__(
        self,
        task: Task,
        features: Features,
        *,
        heads: int = 8,
        stages: int = 5,
        text_stages: int | None = None,
        key_stride: int = 16,
        reduction: Literal["keys", "positions"] = "keys",
        text_tokens: int = 24,
        blocks: int = 1,
        feed_forward: int = 0,
        convolutions: int = 1,
        learn_absence: bool = False,
    ) -> None:
        super().__init__()
        counts = {"heads": heads, "key_stride": key_stride, "text_tokens": text_tokens}
        for name, value in {**counts, "blocks": blocks, "convolutions": convolutions}.items():
            if value < 1:
                raise RecipeError(f"hasf: {name} is {value}, but must be at least 1.")
        reading = stages if text_stages is None else text_stages
        for name, value in {"stages": stages, "text_stages": reading, "feed_forward": feed_forward}.items():
            if value < 0:
                raise RecipeError(f"hasf: {name} is {value}, but must not be below 0.")
        if reading > stages:
            raise RecipeError(f"hasf: text_stages is {reading}, above stages, which is {stages}. Raise stages.")
        levels = len(features.channels)
        attending = range(max(0, levels - stages), levels)
        shared = math.gcd(*(features.channels[level] for level in attending))
        if shared % heads:
            widths = ", ".join(str(features.channels[level]) for level in attending)
            possible = ", ".join(str(count) for count in range(1, shared + 1) if shared % count == 0)
            raise RecipeError(
                f"hasf: heads is {heads}, but must divide the channels of every level with attention: {widths}. "
                f"Possible: {possible}."
            )
        self.features = features
        self.key_stride = key_stride
        self.stages = nn.ModuleDict(
            {
                str(level): FusionStage(
                    task,
                    features.channels[level],
                    heads=heads,
                    text_tokens=text_tokens,
                    blocks=blocks,
                    feed_forward=feed_forward,
                    learn_absence=learn_absence,
                    pools_positions=reduction == "positions",
                    reads_text=level >= levels - reading,
                )
                for level in attending
            }
        )
        self.decoders = nn.ModuleList(
            Decode(coarse, fine, coarse_stride // fine_stride, convolutions)
            for (fine, coarse), (fine_stride, coarse_stride) in zip(
                pairwise(features.channels), pairwise(features.strides), strict=True
            )
        )

    @property
    def uses_text(self) -> bool:
        """True if some level is guided by the text."""
        return any(stage.reads_text for stage in self.stages.values())

    def forward(self, image_features: tuple[Tensor, ...], text: TextFeatures) -> tuple[Tensor, ...]:
        """L maps [B, C_l, H_l, W_l], text -> L maps of the same shapes, finest first."""
        fused: list[Tensor] = []
        for level in reversed(range(len(image_features))):
            current = image_features[level]
            if fused:
                current = self.decoders[level](fused[-1], current)
            if str(level) in self.stages:
                current = self.stages[str(level)](current, text, self.key_grid(level, current))
            fused.append(current)
        return tuple(reversed(fused))

    def key_grid(self, level: int, feature: Tensor) -> tuple[int, int]:
        """Rows and columns of the keys that positions of `level` attend to."""
        ratio = max(1, self.key_stride // self.features.strides[level])
        height, width = feature.shape[-2:]
        return math.ceil(height / ratio), math.ceil(width / ratio)
