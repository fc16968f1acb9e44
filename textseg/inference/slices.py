"""Prediction of slices: logits and label maps, also in the native geometry of a case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.contracts import SegmenterOutput
from textseg.data.preparation import PreparedCase
from textseg.data.slice_geometry import PreparedVolume, highest
from textseg.data.slices import SliceStack
from textseg.models.segmenter import Segmenter


@dataclass(frozen=True)
class CasePrediction:
    """The label maps of one case."""

    prepared: NDArray[np.uint8]  # [S, H, W]
    native: NDArray[np.uint8] | None  # [S, H_native, W_native], where it was asked for


def predict_case(
    segmenter: Segmenter,
    prepared: PreparedCase | PreparedVolume,
    stack: SliceStack,
    *,
    device: torch.device,
    batch_size: int,
    native: bool = True,
) -> CasePrediction:
    """Segment every slice of one case.

    Args:
        segmenter: the model in evaluation mode, on `device`.
        prepared: the case, or a volume that was prepared in memory.
        stack: the slices of the case, with their prompts.
        device: the device to compute on.
        batch_size: the number of slices at a time; a model that reads whole volumes gets all slices.
        native: True to return label maps also at the size of the file.
    """
    small: list[Tensor] = []
    large: list[Tensor] = []
    for logits in slice_logits(segmenter, stack, device=device, batch_size=batch_size):
        small.append(highest(logits.unbind(1))[1].cpu())
        if native:
            large.append(prepared.slice_geometry.restore(logits).cpu())
    return CasePrediction(torch.cat(small).numpy(), torch.cat(large).numpy() if native else None)


def slice_logits(segmenter: Segmenter, stack: SliceStack, *, device: torch.device, batch_size: int) -> Iterator[Tensor]:
    """Yield the logits [B, K, H, W] of the slices in order, `batch_size` at a time, on `device`."""
    for output in slice_outputs(segmenter, stack, device=device, batch_size=batch_size):
        yield output.logits.float()


def slice_outputs(
    segmenter: Segmenter, stack: SliceStack, *, device: torch.device, batch_size: int
) -> Iterator[SegmenterOutput]:
    """Yield the output of a network for the slices in order, `batch_size` at a time, on `device`.

    A network that reads whole volumes gets all slices at once.
    """
    size = len(stack.image) if segmenter.batching == "volume" else batch_size
    first = 0
    for image, text in stack.batches(size, segmenter.context_slices):
        geometry = stack.geometry(first, len(image), device) if segmenter.reads_geometry else None
        with torch.no_grad():  # a network may keep tensors, and training cannot use those of inference mode
            output: SegmenterOutput = segmenter(image.to(device), None if text is None else text.to(device), geometry)
        yield output
        first += len(image)
