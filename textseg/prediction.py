"""Slices in, label maps out, also in the geometry that the slices came from; and what a slice costs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.contracts import Task, TextFeatures
from textseg.data import Slices, batches_in_order
from textseg.model import Segmenter
from textseg.placement import Placement
from textseg.preparation import PreparedCase


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
    logits = slice_logits(segmenter, slices, device=device, batch_size=batch_size)
    return take_classes(logits, prepared.placement, native=native)


def slice_logits(segmenter: Segmenter, slices: Slices, *, device: torch.device, batch_size: int) -> Iterator[Tensor]:
    """The logits [B, K, H, W] of one batch of slices after the other, in order, on `device`."""
    for batch in batches_in_order(slices, batch_size, segmenter.batching):
        moved = batch.to(device)
        with torch.no_grad():  # inference mode would spoil what a network keeps of it for the next training step
            logits = segmenter(moved.image, moved.text).logits.float()
        yield logits


def take_classes(logits: Iterable[Tensor], placement: Placement, *, native: bool = True) -> CasePrediction:
    """The class of the highest logit, at the prepared and, with `native`, at the file's own size.

    Logits, not labels, are brought to the native size, so that borders are as smooth as the file's own pixels.
    """
    small: list[Tensor] = []
    large: list[Tensor] = []
    for batch in logits:
        small.append(batch.argmax(1).to(torch.uint8).cpu())
        if native:  # one slice at a time: K float maps of a whole batch at the native size can fill a GPU
            for one in batch:
                large.append(placement.restore(one[None]).argmax(1).to(torch.uint8).cpu())
    return CasePrediction(torch.cat(small).numpy(), torch.cat(large).numpy() if native else None)


def measure_cost(segmenter: Segmenter, task: Task, device: torch.device, repeats: int = 5) -> dict[str, Any]:
    """Parameters, multiply-accumulates and milliseconds of one slice, at the size of the recipe.

    Multiply-accumulates are those of convolutions, matrix products and attention; milliseconds the median of
    `repeats`. For a model that reads whole volumes they are a slice's part in a volume of the usual slice count.
    """
    slices = _usual_slice_count(task) if segmenter.batching == "volume" else 1
    image = torch.zeros(slices, task.image_channels, *task.image_size, device=device)
    text = empty_text(task, device, slices) if segmenter.uses_text else None
    training = segmenter.training
    segmenter.eval()
    with torch.no_grad():  # as in predict_case
        multiply_accumulates = _count_multiply_accumulates(segmenter, image, text)
        seconds = []
        for _ in range(repeats):
            _synchronise(device)
            start = time.perf_counter()
            segmenter(image, text)
            _synchronise(device)
            seconds.append(time.perf_counter() - start)
    segmenter.train(training)
    return {
        "parameters": sum(parameter.numel() for parameter in segmenter.parameters()),
        "trainable_parameters": sum(p.numel() for p in segmenter.parameters() if p.requires_grad),
        "multiply_accumulates": multiply_accumulates // slices,
        "milliseconds_per_slice": round(1000 * float(np.median(seconds)) / slices, 3),
    }


def _usual_slice_count(task: Task) -> int:
    """The median of the training cases; 1 where the task knows of none."""
    counts = [size[0] for size in task.fingerprint.get("native_sizes", ())]
    return int(np.median(counts)) if counts else 1


def empty_text(task: Task, device: torch.device, batch: int = 1) -> TextFeatures:
    """Text features of the right shapes that say nothing, for B = `batch`."""
    if task.text_length is None or task.text_size is None:
        raise ValueError("This task has no text.")
    structures = task.class_count - 1
    return TextFeatures(
        tokens=torch.zeros(batch, task.text_length, task.text_size, device=device),
        mask=torch.ones(batch, task.text_length, dtype=torch.bool, device=device),
        classwise=torch.zeros(batch, structures, task.text_size, device=device),
        present=torch.ones(batch, structures, dtype=torch.bool, device=device),
    )


def _count_multiply_accumulates(segmenter: Segmenter, image: Tensor, text: TextFeatures | None) -> int:
    """Half of what torch's FlopCounterMode counts, which knows neither attention on a CPU nor the fused layers."""
    from torch.utils.flop_counter import FlopCounterMode

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping={on_cpu: _attention_flops}) as counter:
            segmenter(image, text)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Of softmax(QK)V, from the shapes [B, heads, N, D], [B, heads, M, D], [B, heads, M, E]."""
    batch, heads, queries, size = query
    return 2 * batch * heads * queries * key[-2] * (size + value[-1])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
