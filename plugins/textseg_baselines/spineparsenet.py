"""SpineParseNet (Pang 2021, IEEE TMI 40(1), doi 10.1109/TMI.2020.3025087): coarse on the volume, then fine by slice.

Written from the description: a DeepLabv3+ in three dimensions with an Xception-like encoder, whose features are pooled
to a node for each structure, evolve by graph convolutions along the structures that touch, and go back to the map; then
a two-dimensional residual U-Net that sees the slice and the coarse maps. Ours are the widths of the coarse network
(chosen so that the whole has the published size), group normalisation in place of batch normalisation (a step is one
volume), what supervises the nodes (each must be recognised as its structure), and that one run trains both parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from textseg.contracts import IGNORED, Batch, SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError
from textseg_baselines.spineparsenet_coarse import CoarseNetwork, normalisation


@dataclass(frozen=True, kw_only=True)
class CoarseOutput(SegmenterOutput):
    """The output of SpineParseNet, with that of the first stage; G is the coarse grid."""

    coarse_logits: Tensor  # [1, K, *G]
    node_logits: Tensor  # [K, K]: of each node, which structure it is


class SpineParseNet(nn.Module):
    """Coarse maps of the volume by convolutions and a graph of structures, refined slice by slice; reads no text.

    B is the S slices of one case, in order. Trained in two stages: the coarse network by cross-entropy on its own grid
    and by the cross-entropy of its nodes, then the fine one, on the maps of the first, by the recipe's loss. With the
    defaults and 20 classes it has 15.98 M parameters: 4.19 coarse, 11.78 fine (published: 15.95 together).

    Args:
        task: gives C, K and the atlas, whose `adjacent` pairs are the edges of the graph.
        coarse_size: S, H and W of the grid on which the coarse network works.
        columns: the part of the columns with the spine, from anterior (0) to posterior (1).
        coarse_width: channels of its first layer; the others are multiples.
        hidden: channels of the graph.
        widths: channels of each level of the fine network, finest first.
        node_weight: weight of the supervision of the nodes.
        coarse_share: share of the epochs of the first stage.
        slices_at_once: slices in one pass of the fine network; fewer need less memory and give the same result.

    Raises RecipeError for a setting out of range.
    """

    uses_text = False
    batching = "volume"

    def __init__(
        self,
        task: Task,
        *,
        coarse_size: tuple[int, int, int] = (18, 256, 128),
        columns: tuple[float, float] = (0.25, 0.75),
        coarse_width: int = 32,
        hidden: int = 128,
        widths: tuple[int, ...] = (32, 64, 128, 256, 512),
        node_weight: float = 0.3,
        coarse_share: float = 0.5,
        slices_at_once: int = 8,
    ) -> None:
        super().__init__()
        _check(
            sizes={
                "coarse_size": min(coarse_size),
                "coarse_width": coarse_width,
                "hidden": hidden,
                "widths": min(widths, default=0),
                "slices_at_once": slices_at_once,
            },
            columns=columns,
            coarse_share=coarse_share,
        )
        self.coarse_size, self.columns, self.slices_at_once = coarse_size, columns, slices_at_once
        self.node_weight = node_weight
        self.size_multiple = 2 ** (len(widths) - 1)
        self.stages = {"coarse": coarse_share, "fine": 1 - coarse_share}
        self.stage: str | None = None  # until one is started, both parts are trained
        self.coarse = CoarseNetwork(task, coarse_width, hidden)
        self.fine = ResidualUNet(task.image_channels + task.class_count, task.class_count, widths)

    def start_stage(self, name: str) -> None:
        """Train `coarse` or `fine`, and freeze the other part."""
        self.stage = name
        self.coarse.requires_grad_(name == "coarse")
        self.fine.requires_grad_(name == "fine")

    def forward(self, image: Tensor, text: TextFeatures | None) -> CoarseOutput:
        """All slices of a case [B, C, H, W], B = S -> logits [B, K, H, W]; in the first stage those of the maps."""
        volume = image.transpose(0, 1)[None]  # [1, C, S, H, W]
        seen = volume[..., self._seen(image.shape[-1])]
        coarse_logits, node_logits = self.coarse(
            F.interpolate(seen, self.coarse_size, mode="trilinear", align_corners=False)
        )
        maps = self._maps(coarse_logits, image)
        if self.training and self.stage == "coarse":
            logits = maps.clamp(min=torch.finfo(torch.float32).tiny).log()
        else:
            logits = self._refine(torch.cat([image, maps], dim=1))
        return CoarseOutput(logits, coarse_logits=coarse_logits, node_logits=node_logits)

    def losses(
        self,
        output: CoarseOutput,
        batch: Batch,
        segmentation_loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return the losses of the current stage, or of both stages if none was started."""
        terms: dict[str, Tensor] = {}
        if self.stage != "fine":
            mask = self._coarse_mask(batch.mask)
            classes = torch.arange(len(output.node_logits), device=mask.device)
            present = (torch.bincount(mask.flatten(), minlength=len(classes))[: len(classes)] > 0).float()
            nodes = F.cross_entropy(output.node_logits.float(), classes, reduction="none")
            pixels = F.cross_entropy(output.coarse_logits.float(), mask, ignore_index=IGNORED, reduction="sum")
            terms["coarse_cross_entropy"] = pixels / (mask != IGNORED).sum().clamp(min=1)
            terms["nodes"] = self.node_weight * (nodes * present).sum() / present.sum().clamp(min=1)
        if self.stage != "coarse":
            terms |= segmentation_loss(output.logits, batch.mask)
        return terms

    def _seen(self, width: int) -> slice:
        """Return the columns that the coarse network sees."""
        start = min(round(width * self.columns[0]), width - 1)
        return slice(start, max(round(width * self.columns[1]), start + 1))

    def _maps(self, coarse_logits: Tensor, image: Tensor) -> Tensor:
        """[1, K, *G] -> output of the coarse network for each slice [S, K, H, W]; background outside its columns."""
        seen = self._seen(image.shape[-1])
        size = len(image), image.shape[-2], seen.stop - seen.start
        shares = coarse_logits.float().softmax(1)
        maps = F.interpolate(shares, size, mode="trilinear", align_corners=False)[0].transpose(0, 1)
        edges = seen.start, image.shape[-1] - seen.stop
        background = F.pad(maps[:, :1], edges, value=1.0)
        return torch.cat([background, F.pad(maps[:, 1:], edges)], dim=1)

    def _coarse_mask(self, mask: Tensor) -> Tensor:
        """Mask [S, H, W] -> that of the coarse grid, [1, *G], padded before as the image was."""
        height, width = mask.shape[-2:]
        padded = F.pad(mask, (0, -width % self.size_multiple, 0, -height % self.size_multiple))
        seen = padded[None, None, ..., self._seen(padded.shape[-1])]
        return F.interpolate(seen.float(), self.coarse_size, mode="nearest-exact")[0].long()

    def _refine(self, stack: Tensor) -> Tensor:
        """[S, C + K, H, W] -> [S, K, H, W], some slices at a time; in training each twice, which saves memory."""
        parts = torch.split(stack, self.slices_at_once)
        if torch.is_grad_enabled() and len(parts) > 1:
            return torch.cat([cast(Tensor, checkpoint(self.fine, part, use_reentrant=False)) for part in parts])
        return torch.cat([self.fine(part) for part in parts])


class ResidualUNet(nn.Module):
    """A U-Net of residual blocks that adds skip connections and does not concatenate them (after Lee 2017)."""

    def __init__(self, channels: int, class_count: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            ResidualBlock(before, after) for before, after in zip((channels, *widths[:-1]), widths, strict=True)
        )
        upwards = widths[::-1]
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose2d(before, after, kernel_size=3, stride=2, padding=1, output_padding=1)
            for before, after in pairwise(upwards)
        )
        self.decoders = nn.ModuleList(ResidualBlock(width, width) for width in upwards[1:])
        self.head = nn.Conv2d(widths[0], class_count, kernel_size=1)

    def forward(self, stack: Tensor) -> Tensor:
        """[B, C + K, H, W] -> [B, K, H, W]."""
        kept: list[Tensor] = []
        for encoder in self.encoders:
            stack = encoder(F.max_pool2d(stack, 2) if kept else stack)
            kept.append(stack)
        for upsampler, decoder, skip in zip(self.upsamplers, self.decoders, kept[-2::-1], strict=True):
            stack = decoder(upsampler(stack) + skip)
        logits: Tensor = self.head(stack)
        return logits


class ResidualBlock(nn.Module):
    """A convolution that changes the channels, followed by a residual block of two convolutions."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), normalisation(out_channels), nn.ReLU()
        )
        self.layers = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            normalisation(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            normalisation(out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_l, H_l, W_l] -> [B, out, H_l, W_l]."""
        entered = self.enter(features)
        return F.relu(entered + self.layers(entered))


def _check(*, sizes: dict[str, int], columns: tuple[float, float], coarse_share: float) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise RecipeError(f"spineparsenet: {name} is or holds {value}, but must be at least 1.")
    if not 0 <= columns[0] < columns[1] <= 1:
        raise RecipeError(f"spineparsenet: columns is {list(columns)}, but must rise, from 0 at least to 1 at most.")
    if not 0 < coarse_share < 1:
        raise RecipeError(f"spineparsenet: coarse_share is {coarse_share}, but must lie between 0 and 1.")
