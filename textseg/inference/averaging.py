"""Mean probabilities over several models, and over views of a volume: slightly moved, scaled, darker or brighter.

No view is mirrored: the names of structures depend on left and right, and on up and down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from textseg.errors import RunError, suggestion

Change = Literal["shift", "scale", "gamma"]
SHIFT = 0.02  # of the side, in each of four directions
SCALE = 0.05  # larger and smaller
GAMMA = 0.2  # the logarithm of the exponent, both ways


@dataclass(frozen=True)
class View:
    """A change of a volume that can be undone in the probabilities of a model, or no change."""

    rows: int = 0  # by which the picture moves down
    columns: int = 0  # to the right
    zoom: float = 1.0
    exponent: float = 1.0

    def show(self, image: Tensor) -> Tensor:
        """Return the changed image [S, C, H, W]; pixels from outside are as dark as the darkest one of the channel."""
        low, high = (limit(image, dim=(0, 2, 3), keepdim=True) for limit in (torch.amin, torch.amax))
        span = (high - low).clamp(min=1e-6)
        if self.exponent != 1:
            return ((image - low) / span) ** self.exponent * span + low
        return self._moved((image - low).flatten(0, 1)[None], self.zoom, 1)[0].reshape(image.shape) + low

    def undo(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps [1, K, H, W] moved back, and [1, 1, H, W] with 1 where the view showed the volume, else 0."""
        shown = torch.ones_like(maps[:, :1])
        back, shown = (self._moved(planes, 1 / self.zoom, -1) for planes in (maps, shown))
        return back, (shown > 0.999).to(maps.dtype)

    def _moved(self, planes: Tensor, zoom: float, way: int) -> Tensor:
        if zoom != 1:
            scaling = torch.tensor([[[1 / zoom, 0, 0], [0, 1 / zoom, 0]]], device=planes.device)
            grid = F.affine_grid(scaling, [1, 1, *planes.shape[-2:]], align_corners=False)
            return F.grid_sample(planes, grid, mode="bilinear", align_corners=False)
        if self.rows or self.columns:  # negative padding crops the opposite side
            return F.pad(planes, (way * self.columns, -way * self.columns, way * self.rows, -way * self.rows))
        return planes


def views(changes: Sequence[Change], size: tuple[int, int]) -> list[View]:
    """Return the view without a change, then the views of each of `changes`, for slices of `size` (H, W)."""
    # An odd number of pixels: moved by a multiple of its strides, a convolution would give the same once more.
    rows, columns = (round(SHIFT * side) | 1 for side in size)
    changed = {
        "shift": [View(rows=rows), View(rows=-rows), View(columns=columns), View(columns=-columns)],
        "scale": [View(zoom=1 + SCALE), View(zoom=1 / (1 + SCALE))],
        "gamma": [View(exponent=math.exp(GAMMA)), View(exponent=math.exp(-GAMMA))],
    }
    return [View(), *(view for change in get_args(Change) if change in changes for view in changed[change])]


def checked_changes(text: str) -> tuple[Change, ...]:
    """Read names with commas between them, each once, in a fixed order. Raises RunError for an unknown one."""
    named = [name.strip() for name in text.split(",")]
    if unknown := [name for name in named if name not in get_args(Change)]:
        raise RunError(
            f"--test-time-augmentation: there is no '{unknown[0]}'.{suggestion(unknown[0], get_args(Change))} "
            "Mirroring is not among them: it would exchange sides and levels."
        )
    return tuple(change for change in get_args(Change) if change in named)


def average(streams: Sequence[tuple[View, Iterable[Tensor]]]) -> Iterator[Tensor]:
    """Give, slice by slice, the logarithm [1, K, H, W] of the mean softmax of each stream's logits [B, K, H, W].

    Batches may differ in size from stream to stream. A view counts where it showed the volume; one of them must show
    all of it.
    """
    for slices in zip(*(_single_slices(logits) for _, logits in streams), strict=True):
        undone = [view.undo(logits.softmax(1)) for (view, _), logits in zip(streams, slices, strict=True)]
        total = torch.stack([probabilities * shown for probabilities, shown in undone]).sum(0)
        mean = total / torch.stack([shown for _, shown in undone]).sum(0)
        yield mean.clamp(min=torch.finfo(mean.dtype).tiny).log()  # rounding must not make it log(0)


def _single_slices(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        yield from torch.split(batch, 1)
