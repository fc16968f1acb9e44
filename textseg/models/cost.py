"""What a model costs: parameters, multiply-accumulates, milliseconds."""

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

from textseg.contracts import Atlas, Structure, Task, TextFeatures
from textseg.models.segmenter import Segmenter

POSITIONS = re.compile(r"(^|_)(pos|position|positional)(_|$)")  # how tables of positions are called
META = torch.device("meta")  # computes shapes alone
USUAL_TEXT = {"text_size": 768, "text_length": 128}  # of a full prompt, read by an encoder like BERT


def measure_cost(segmenter: Segmenter, task: Task, device: torch.device, repeats: int = 5) -> dict[str, Any]:
    """Parameters, multiply-accumulates and milliseconds of one slice, at the size of the recipe.

    Multiply-accumulates are those of convolutions, matrix products and attention; milliseconds the median of
    `repeats`. For a model that reads whole volumes they are a slice's part in a volume of the usual slice count.
    """
    slices, image, text = _input(segmenter, task, device)
    with _still(segmenter):
        multiply_accumulates = _count_multiply_accumulates(segmenter, image, text)
        seconds = []
        for _ in range(repeats):
            _synchronise(device)
            start = time.perf_counter()
            segmenter(image, text)
            _synchronise(device)
            seconds.append(time.perf_counter() - start)
    return {
        **count_parameters(segmenter),
        "multiply_accumulates": multiply_accumulates // slices,
        "milliseconds_per_slice": round(1000 * float(np.median(seconds)) / slices, 3),
    }


def memory_of_a_slice(segmenter: Segmenter, task: Task, device: torch.device) -> int:
    """Bytes of a GPU's memory that one slice takes on its way through a model."""
    _, image, text = _input(segmenter, task, device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with _still(segmenter):
        segmenter(image, text)
    return torch.cuda.max_memory_allocated(device) - before


def cost_of_determinism(segmenter: Segmenter, task: Task, batch_size: int, device: torch.device) -> tuple[float, float]:
    """Milliseconds of a batch forward and backward, as torch likes it and with deterministic operators; medians of 5.

    Measured on a copy. Raises RuntimeError for an operator without a deterministic form.
    """
    model, before = copy.deepcopy(segmenter).train(), torch.are_deterministic_algorithms_enabled()
    _, image, text = _input(segmenter, task, device)
    if segmenter.batching != "volume":
        image, text = (
            image.repeat(batch_size, 1, 1, 1),
            empty_text(task, device, batch_size) if text is not None else None,
        )
    medians = []
    try:
        for wanted in (False, True):
            torch.use_deterministic_algorithms(wanted)
            seconds = []
            for _ in range(6):
                _synchronise(device)
                start = time.perf_counter()
                model(image, text).logits.float().square().mean().backward()
                _synchronise(device)
                seconds.append(time.perf_counter() - start)
            medians.append(1000 * float(np.median(seconds[1:])))  # the first one chooses kernels
    finally:
        torch.use_deterministic_algorithms(before)
    return medians[0], medians[1]


def count_cost(build: Callable[[], Segmenter], task: Task) -> dict[str, int]:
    """The part of `measure_cost` that takes no time: parameters and multiply-accumulates, without computing.

    On the device "meta" where the model can be built and run there, so that no weights are needed; else on one slice.
    """
    try:
        with META:
            segmenter = build()
    except Exception:  # it looks at a value while it is built, which fails in as many ways as there are models
        segmenter = build()
    counts = count_parameters(segmenter)
    try:
        with META:
            found = _multiply_accumulates_of_a_slice(segmenter.to(META), task, META)
    except Exception:
        found = _multiply_accumulates_of_a_slice(build(), task, torch.device("cpu"))
    return {**counts, "multiply_accumulates": found}


def count_parameters(segmenter: Segmenter) -> dict[str, int]:
    """All, those that are trained, and all without tables of positions, which some tables of results leave out."""
    counts = {name: parameter.numel() for name, parameter in segmenter.named_parameters()}
    positions = sum(count for name, count in counts.items() if POSITIONS.search(name.rpartition(".")[2]))
    return {
        "parameters": sum(counts.values()),
        "trainable_parameters": sum(p.numel() for p in segmenter.parameters() if p.requires_grad),
        "parameters_without_positions": sum(counts.values()) - positions,
    }


def usual_task(size: tuple[int, int], *, class_count: int = 20, slices: int = 8) -> Task:
    """A task without data, to tell models apart: grey slices, structures in a row, volumes of some slices.

    With the defaults, that of the ATM-Net paper's table.
    """
    names = [f"structure {index}" for index in range(1, class_count)]
    structures = tuple(Structure(name, "structure", index) for index, name in enumerate(names, start=1))
    atlas = Atlas("row", structures, sequence=tuple(names), adjacent=tuple(pairwise(names)))
    fingerprint = {"native_sizes": [(slices, *size)], "spacings_mm": [(4.0, 1.0, 1.0)]}
    return Task(1, size, class_count, atlas, **USUAL_TEXT, fingerprint=fingerprint)


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


def _input(segmenter: Segmenter, task: Task, device: torch.device) -> tuple[int, Tensor, TextFeatures | None]:
    """How many slices, without content, and their text."""
    slices = _usual_slice_count(task) if segmenter.batching == "volume" else 1
    image = torch.zeros(slices, task.image_channels, *task.image_size, device=device)
    return slices, image, empty_text(task, device, slices) if segmenter.uses_text else None


def _usual_slice_count(task: Task) -> int:
    """The median of the training cases; 1 where the task knows of none."""
    counts = [size[0] for size in task.fingerprint.get("native_sizes", ())]
    return int(np.median(counts)) if counts else 1


def _multiply_accumulates_of_a_slice(segmenter: Segmenter, task: Task, device: torch.device) -> int:
    slices, image, text = _input(segmenter, task, device)
    with _still(segmenter):
        return _count_multiply_accumulates(segmenter, image, text) // slices


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


@contextmanager
def _still(segmenter: Segmenter) -> Iterator[None]:
    """In evaluation mode and without gradients, and afterwards as it was."""
    training = segmenter.training
    trained = [parameter for parameter in segmenter.parameters() if parameter.requires_grad]
    segmenter.eval()
    for parameter in trained:  # the counter would look for the gradient of a parameter that a module is given
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():  # inference mode would spoil what a network keeps of a forward pass for training
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        segmenter.train(training)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
