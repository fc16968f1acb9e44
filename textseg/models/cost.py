"""The cost of a model: parameters, multiply-accumulates, milliseconds."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textseg.contracts import Atlas, BatchGeometry, Structure, Task, TextFeatures
from textseg.models.segmenter import Segmenter

POSITIONS = re.compile(r"(^|_)(pos|position|positional)(_|$)")  # names of tables of positions
META = torch.device("meta")  # computes only shapes
USUAL_TEXT = {"text_size": 768, "text_length": 128}  # of a full prompt and an encoder like BERT


def measure_cost(segmenter: Segmenter, task: Task, device: torch.device, repeats: int = 5) -> dict[str, Any]:
    """Return parameters, multiply-accumulates and milliseconds of one slice, at the size of the recipe.

    Multiply-accumulates count convolutions, matrix products and attention; milliseconds are the median of `repeats`.
    For a model that reads whole volumes, both are those of a usual volume divided by its slices.
    """
    slices, inputs = _input(segmenter, task, device)
    multiply_accumulates = _multiply_accumulates_of_a_slice(segmenter, task, device)
    with _evaluating(segmenter):
        seconds = _seconds(lambda: segmenter(*inputs), repeats, device)
    return {
        **count_parameters(segmenter),
        "multiply_accumulates": multiply_accumulates,
        "milliseconds_per_slice": round(1000 * float(np.median(seconds)) / slices, 3),
    }


def _seconds(compute: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Return the seconds that each of several calls takes until the device has finished it."""
    seconds = []
    for _ in range(repeats):
        _synchronise(device)
        start = time.perf_counter()
        compute()
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def memory_of_a_slice(segmenter: Segmenter, task: Task, device: torch.device) -> int:
    """Return the bytes of GPU memory that the forward pass of one slice takes."""
    _, inputs = _input(segmenter, task, device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with _evaluating(segmenter):
        segmenter(*inputs)
    return torch.cuda.max_memory_allocated(device) - before


def cost_of_determinism(segmenter: Segmenter, task: Task, batch_size: int, device: torch.device) -> tuple[float, float]:
    """Return milliseconds of a batch forward and backward, with any and with deterministic operators; medians of 5.

    Measured on a copy. Raises RuntimeError for an operator without a deterministic form.
    """
    model, before = copy.deepcopy(segmenter).train(), torch.are_deterministic_algorithms_enabled()
    _, inputs = _input(segmenter, task, device, batch_size)
    medians = []
    try:
        for enabled in (False, True):
            torch.use_deterministic_algorithms(enabled)
            seconds = _seconds(lambda: model(*inputs).logits.float().square().mean().backward(), 6, device)
            medians.append(1000 * float(np.median(seconds[1:])))  # the first pass chooses kernels
    finally:
        torch.use_deterministic_algorithms(before)
    return medians[0], medians[1]


def count_cost(build: Callable[[], Segmenter], task: Task) -> dict[str, int]:
    """Return the part of `measure_cost` that needs no computing: parameters and multiply-accumulates.

    It uses the device "meta" if the model can be built and run there, so that no weights are needed; else one slice.
    """
    try:
        with META:
            segmenter = build()
    except Exception:  # a model that reads a value while it is built fails there, each in its own way
        segmenter = build()
    counts = count_parameters(segmenter)
    try:
        with META:
            operations = _multiply_accumulates_of_a_slice(segmenter.to(META), task, META)
    except Exception:
        operations = _multiply_accumulates_of_a_slice(build(), task, torch.device("cpu"))
    return {**counts, "multiply_accumulates": operations}


def count_parameters(segmenter: Segmenter) -> dict[str, int]:
    """Return the number of all parameters, of trained ones, and of all without tables of positions."""
    counts = {name: parameter.numel() for name, parameter in segmenter.named_parameters()}
    positions = sum(count for name, count in counts.items() if POSITIONS.search(name.rpartition(".")[2]))
    return {
        "parameters": sum(counts.values()),
        "trainable_parameters": sum(p.numel() for p in segmenter.parameters() if p.requires_grad),
        "parameters_without_positions": sum(counts.values()) - positions,
    }


def usual_task(size: tuple[int, int], *, class_count: int = 20, slices: int = 8) -> Task:
    """Return a task without data, to compare models: grey slices, structures in a row, volumes of some slices.

    With the defaults, it is the task of the ATM-Net paper's table.
    """
    names = [f"structure {index}" for index in range(1, class_count)]
    structures = tuple(Structure(name, "structure", index) for index, name in enumerate(names, start=1))
    atlas = Atlas("row", structures, sequence=tuple(names), adjacent=tuple(pairwise(names)))
    fingerprint = {"native_sizes": [(slices, *size)], "spacings_mm": [(4.0, 1.0, 1.0)]}
    return Task(1, size, class_count, atlas, USUAL_TEXT["text_size"], USUAL_TEXT["text_length"], fingerprint)


def empty_text(task: Task, device: torch.device, batch: int = 1) -> TextFeatures:
    """Return text features of the right shapes without content, for B = `batch`."""
    if task.text_length is None or task.text_size is None:
        raise ValueError("This task has no text.")
    structures = task.class_count - 1
    return TextFeatures(
        tokens=torch.zeros(batch, task.text_length, task.text_size, device=device),
        mask=torch.ones(batch, task.text_length, dtype=torch.bool, device=device),
        classwise=torch.zeros(batch, structures, task.text_size, device=device),
        present=torch.ones(batch, structures, dtype=torch.bool, device=device),
    )


Inputs = tuple[Tensor, TextFeatures | None, BatchGeometry | None]


def _input(segmenter: Segmenter, task: Task, device: torch.device, batch_size: int = 1) -> tuple[int, Inputs]:
    """Return a number of slices, and that many images without content with their text and geometry.

    A model that reads whole volumes gets a usual volume, whatever the batch size.
    """
    slices = _usual_slice_count(task) if segmenter.batching == "volume" else batch_size
    channels = task.image_channels * segmenter.context_slices
    image = torch.zeros(slices, channels, *task.image_size, device=device)
    text = empty_text(task, device, slices) if segmenter.uses_text else None
    index = torch.arange(slices, device=device)
    geometry = BatchGeometry(torch.ones(slices, 3, device=device), index, torch.full_like(index, slices))
    return slices, (image, text, geometry if segmenter.reads_geometry else None)


def _usual_slice_count(task: Task) -> int:
    """Return the median slice count of the training cases; 1 for a task without cases."""
    counts = [size[0] for size in task.fingerprint.get("native_sizes", ())]
    return int(np.median(counts)) if counts else 1


def _multiply_accumulates_of_a_slice(segmenter: Segmenter, task: Task, device: torch.device) -> int:
    """Return half of the operations that torch counts, plus attention on a CPU and fused layers, for one slice.

    Mirror images are not counted: the number describes the network.
    """
    from torch.utils.flop_counter import FlopCounterMode

    slices, inputs = _input(segmenter, task, device)
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _evaluating(segmenter), FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
            segmenter(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2 // slices // (1 + len(segmenter.mirrors))


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations of softmax(QK)V for the shapes [B, heads, N, D], [B, heads, M, D], [B, heads, M, E]."""
    batch, heads, queries, size = query
    return 2 * batch * heads * queries * key[-2] * (size + value[-1])


@contextmanager
def _evaluating(segmenter: Segmenter) -> Iterator[None]:
    """Put the model into evaluation mode without gradients, and afterwards back into its earlier state."""
    training, trained = segmenter.training, [p for p in segmenter.parameters() if p.requires_grad]
    segmenter.eval()
    for parameter in trained:  # else the counter would look for their gradients
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():  # in inference mode, tensors that a network keeps could not be used in training
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        segmenter.train(training)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
