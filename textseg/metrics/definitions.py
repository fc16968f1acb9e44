"""Scores of a segmentation, structure by structure: plain functions, one definition each, one policy.

Definitions follow medpy 0.5.2 with connectivity 1, so that numbers compare with papers that used it. Distances run
between the centres of border voxels: voxels of the structure with a face neighbour outside it; what lies beyond the
edge of the image is outside.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from textseg.errors import DataError, RecipeError, suggestion
from textseg.metrics import surfaces as borders
from textseg.metrics.surfaces import Array

Status = Literal["ok", "missed", "spurious", "absent"]
Kernel = Literal["numpy", "numba"]  # what compares two label maps: `borders`, or `compiled_borders`

METRICS = {
    "dsc": "Dice similarity coefficient: twice the common voxels over the sum of both sides' voxels; 1 is best.",
    "jaccard": "Jaccard index: the common voxels over those of either side; 1 is best.",
    "hd95": (
        "95 % Hausdorff distance: one 95th percentile (linear interpolation) over the pooled distances from each "
        "predicted border voxel to the nearest reference border voxel and the other way round; 0 is best."
    ),
    "hd95_directed_max": (
        "The larger of the two directed 95 % Hausdorff distances, as MONAI and surface-distance define HD95: the 95th "
        "percentile of the distances from the prediction, or of those from the reference; 0 is best."
    ),
    "asd": "Average surface distance: mean distance from the predicted to the reference border only; 0 is best.",
    "asd_reverse": "Average surface distance the other way: mean distance from the reference to the predicted border.",
    "assd": (
        "Average symmetric surface distance: mean over the pooled distances of both directions, each border voxel "
        "counted once; 0 is best."
    ),
    "nsd": (
        "Normalised surface Dice: the share of the border voxels of both sides within `tolerance` of the other "
        "border; 1 is best. Voxels count alike, where surface-distance weighs them by the area of the surface."
    ),
}
RATIOS = frozenset({"dsc", "jaccard", "nsd"})  # from 0 to 1 and without a unit; the others are distances


def lower_is_better(metric: str) -> bool:
    """Return True for a distance, False for a ratio."""
    return metric not in RATIOS


POLICY = (
    "A structure is 'ok' where prediction and reference both contain it: all metrics are computed. 'missed' (in the "
    "reference only) and 'spurious' (in the prediction only): DSC, Jaccard and NSD are 0, distances are undefined "
    "(NaN), left out of their means and counted beside the table. 'absent' (in neither): every metric is undefined "
    "(NaN) and left out."
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
    metrics: Sequence[str],
    tolerance: float | None = None,
    kernel: Kernel | None = None,
) -> dict[int, StructureScore]:
    """Scores of the labels `structures` in two label maps [H, W] or [S, H, W].

    `spacing` has one entry per axis, in mm; with ones, distances are in pixels. `metrics` are names in `METRICS`;
    `tolerance` of "nsd" is in the unit of the spacing. `kernel` is the fastest that is installed unless it is named;
    both give the same numbers.
    Raises DataError where the label maps differ in shape, RecipeError for an unknown metric, ValueError for labels
    that are no non-negative integers or a spacing that doesn't fit.
    """
    for name in metrics:
        if name not in METRICS:
            raise RecipeError(f"There is no metric '{name}'.{suggestion(name, METRICS)}")
    if "nsd" in metrics and tolerance is None:
        raise ValueError("The normalised surface Dice needs a tolerance.")
    prediction, reference = _labels(prediction), _labels(reference)
    if prediction.shape != reference.shape:
        raise DataError(
            f"The prediction has shape {prediction.shape}, the reference {reference.shape}; only label maps on the "
            f"same grid can be compared."
        )
    if len(spacing) != prediction.ndim or not all(0 < distance < np.inf for distance in spacing):
        raise ValueError(f"A spacing of {prediction.ndim} positive numbers is needed, not {tuple(spacing)}.")

    measured = any(name in _DISTANCES or name == "nsd" for name in metrics)
    compare = _compare(kernel or fastest_kernel())
    comparison = compare(prediction, reference, structures=structures, spacing=spacing if measured else None)
    distances = comparison.distances
    scores = {}
    for label in structures:
        a, b, c = int(comparison.predicted[label]), int(comparison.expected[label]), int(comparison.common[label])
        known = {"dsc": 2 * c / (a + b), "jaccard": c / (a + b - c), "nsd": 0.0} if a + b else {}
        if a and b and measured:
            known |= {name: _DISTANCES[name](*distances[label]) for name in metrics if name in _DISTANCES}
            if tolerance is not None:
                known["nsd"] = float(np.mean(np.concatenate(distances[label]) <= tolerance))
        values = {name: known.get(name, float("nan")) for name in metrics}
        status: Status = "ok" if a and b else "spurious" if a else "missed" if b else "absent"
        scores[label] = StructureScore(status, values)
    return scores


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


def worst_value(metric: str, shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the value of a missed or spurious structure: 0, or the diagonal of the grid for a distance."""
    sides = (np.asarray(shape, dtype=np.float64) - 1) * np.asarray(spacing, dtype=np.float64)
    return float(np.sqrt((sides**2).sum())) if metric in _DISTANCES else 0.0


# From the distances of the predicted border to the reference, and of the reference border to the prediction.
_DISTANCES: dict[str, Callable[[Array, Array], float]] = {
    "hd95": lambda there, back: _percentile_95(np.concatenate((there, back))),
    "hd95_directed_max": lambda there, back: max(_percentile_95(there), _percentile_95(back)),
    "asd": lambda there, back: float(there.mean()),
    "asd_reverse": lambda there, back: float(back.mean()),
    "assd": lambda there, back: float(np.concatenate((there, back)).mean()),
}


def _percentile_95(distances: Array) -> float:
    """Return `np.percentile(distances, 95)`, several times as fast for the few values of a structure."""
    position = 0.95 * (len(distances) - 1)
    below = int(position)
    above = min(below + 1, len(distances) - 1)
    lower, upper = np.partition(distances, (below, above))[[below, above]]
    return float(lower + (upper - lower) * (position - below))


def _labels(labels: Array) -> Array:
    labels = np.asarray(labels)
    if labels.dtype == np.bool_:
        return labels.astype(np.uint8)
    if labels.dtype.kind not in "ui" or (labels.dtype.kind == "i" and labels.min(initial=0) < 0):
        raise ValueError(f"Label maps hold non-negative integers, not {labels.dtype} from {labels.min()}.")
    return labels
