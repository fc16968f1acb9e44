"""Scores of a segmentation, structure by structure, by one policy.

The voxels and the distances between borders that metrics read are computed once for all of them. Each
metric is a component, and most of them are in a plug-in.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np

from textseg.errors import DataError
from textseg.metrics import surfaces as borders
from textseg.metrics.named import NamedMetric, Pair, metric_named
from textseg.metrics.surfaces import Array

Status = Literal["ok", "missed", "spurious", "absent"]
# What compares two label maps: `borders`, or `compiled_borders`, or medpy for the metrics that it has
Kernel = Literal["numpy", "numba", "medpy"]

POLICY = (
    "A structure is 'ok' where prediction and reference both contain it: all metrics are computed. 'missed' (in the "
    "reference only) and 'spurious' (in the prediction only): a metric has the value that it defines for a miss, 0 for "
    "DSC, Jaccard and NSD; distances define none, so they are undefined (NaN), left out of their means and counted "
    "beside the table. 'absent' (in neither): every metric is undefined (NaN) and left out."
)


@dataclass(frozen=True)
class StructureScore:
    """The status of one structure and the value of each requested metric, by `POLICY`."""

    status: Status
    values: dict[str, float]


def score(
    prediction: Array,
    reference: Array,
    *,
    spacing: Sequence[float],
    structures: Sequence[int],
    metrics: Sequence[str | NamedMetric],
    spacing_mm: Sequence[float] | None = None,
    where: Callable[[int], str] = "label {}".format,
    kernel: Kernel | None = None,
) -> dict[int, StructureScore]:
    """Scores of the labels `structures` in two label maps [H, W] or [S, H, W].

    Args:
        prediction: non-negative integers.
        reference: of the same shape.
        spacing: one entry for each axis, in mm; with ones, lengths are in pixels.
        structures: labels.
        metrics: installed metrics by name, with their default settings, or those that `build_metrics` gives.
        spacing_mm: for metrics with a unit of their own, if `spacing` is in pixels.
        where: the name of a label in messages.
        kernel: the faster of `numpy` and `numba` that is installed unless it is named; all give the same numbers.

    Raises DataError where the label maps differ in shape, PluginError for a metric that is missing or broken,
    ValueError for labels that are no non-negative integers or a spacing that doesn't fit.
    """
    chosen = [metric_named(metric) if isinstance(metric, str) else metric for metric in metrics]
    prediction, reference = _labels(prediction), _labels(reference)
    if prediction.shape != reference.shape:
        raise DataError(
            f"The prediction has shape {prediction.shape}, the reference {reference.shape}; only label maps on the "
            f"same grid can be compared."
        )
    if len(spacing) != prediction.ndim or not all(0 < distance < np.inf for distance in spacing):
        raise ValueError(f"A spacing of {prediction.ndim} positive numbers is needed, not {tuple(spacing)}.")

    medpy = kernel == "medpy"
    measured = any(metric.form == "distances" and not (medpy and metric.medpy) for metric in chosen)
    compare = _compare(fastest_kernel() if kernel in (None, "medpy") else kernel)
    comparison = compare(prediction, reference, structures=structures, spacing=spacing if measured else None)
    steps, steps_mm = tuple(spacing), tuple(spacing if spacing_mm is None else spacing_mm)
    scores = {}
    for label in structures:
        a, b, c = int(comparison.predicted[label]), int(comparison.expected[label]), int(comparison.common[label])
        status: Status = "ok" if a and b else "spurious" if a else "missed" if b else "absent"
        if status == "ok":
            masks = cache(partial(_masks, prediction, reference, label))
            pair = Pair((a, b, c), comparison.distances.get(label), masks, steps, steps_mm, medpy)
            values = {metric.name: metric.value(pair, where(label)) for metric in chosen}
        else:
            values = {metric.name: math.nan if status == "absent" else metric.missed for metric in chosen}
        scores[label] = StructureScore(status, values)
    return scores


def _masks(prediction: Array, reference: Array, label: int) -> tuple[Array, Array]:
    masks = prediction == label, reference == label
    for mask in masks:
        mask.flags.writeable = False  # all metrics read the same ones
    return masks


def recorded_kernel(kernel: Literal["textseg", "medpy"]) -> str:
    """Return what computes metrics with this `evaluation.kernel` of a recipe, for run.json: `numba`, `medpy 0.5.2`."""
    return f"medpy {importlib.metadata.version('medpy')}" if kernel == "medpy" else fastest_kernel()


@cache
def fastest_kernel() -> Kernel:
    """Return "numba" if numba (the extra `fast`) works, else "numpy"; warn if numba is installed and does not work."""
    if importlib.util.find_spec("numba") is None:
        return "numpy"
    try:
        _compare("numba")
    except (ImportError, RuntimeError) as error:  # the second where it finds no folder for what it compiles
        warnings.warn(f"numba can't be used ({error}); metrics are computed without it, more slowly.", stacklevel=2)
        return "numpy"
    return "numba"


def _compare(kernel: Kernel) -> Callable[..., borders.Comparison]:
    if kernel == "numpy":
        return borders.compare_labels
    from textseg.metrics import surfaces_numba as compiled_borders

    return compiled_borders.compare_labels


def _labels(labels: Array) -> Array:
    labels = np.asarray(labels)
    if labels.dtype == np.bool_:
        return labels.astype(np.uint8)
    if labels.dtype.kind not in "ui" or (labels.dtype.kind == "i" and labels.min(initial=0) < 0):
        raise ValueError(f"Label maps hold non-negative integers, not {labels.dtype} from {labels.min()}.")
    return labels
