"""Slices in, label maps out, also in the geometry that the slices came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.data.preparation import PreparedCase
from textseg.data.slice_geometry import highest
from textseg.data.slices import Slices, batches_in_order
from textseg.models.segmenter import Segmenter


@dataclass(frozen=True)
class CasePrediction:
    """Class indices of one case."""

    prepared: NDArray[np.uint8]  # [S, H, W]
    native: NDArray[np.uint8] | None  # [S, H_native, W_native], where it was asked for


def predict_case(
    segmenter: Segmenter,
    prepared: PreparedCase,
    slices: Slices,
    *,
    device: torch.device,
    batch_size: int,
    native: bool = True,
) -> CasePrediction:
    """Segment every slice of one case.

    Args:
        segmenter: in evaluation mode, on `device`.
        prepared: the case.
        slices: those of this case alone, with their prompts.
        device: where to compute.
        batch_size: slices at a time; all at once for a model that reads whole volumes.
        native: also at the file's own size.
    """
    small: list[Tensor] = []
    large: list[Tensor] = []
    for logits in slice_logits(segmenter, slices, device=device, batch_size=batch_size):
        small.append(highest(logits.unbind(1))[1].cpu())
        if native:
            large.append(prepared.placement.restore(logits).cpu())
    return CasePrediction(torch.cat(small).numpy(), torch.cat(large).numpy() if native else None)


def slice_logits(segmenter: Segmenter, slices: Slices, *, device: torch.device, batch_size: int) -> Iterator[Tensor]:
    """The logits [B, K, H, W] of one batch of slices after the other, in order, on `device`."""
    for batch in batches_in_order(slices, batch_size, segmenter.batching):
        moved = batch.to(device)
        with torch.no_grad():  # inference mode would spoil what a network keeps of it for the next training step
            logits = segmenter(moved.image, moved.text).logits.float()
        yield logits
