"""Scores of a segmentation, structure by structure: plain functions, one definition each, one policy.

Definitions follow medpy 0.5.2 with connectivity 1, so that numbers compare with papers that used it. Distances run
between the centres of border voxels: voxels of the structure with a face neighbour outside it; what lies beyond the
edge of the image is outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from textseg.errors import DataError, RecipeError, suggestion

Array = npt.NDArray[Any]
Status = Literal["ok", "missed", "spurious", "absent"]

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

POLICY = (
    "A structure is 'ok' where prediction and reference both contain it: all metrics are computed. 'missed' (in the "
    "reference only) and 'spurious' (in the prediction only): DSC, Jaccard and NSD are 0, distances are undefined "
    "(NaN), left out of their means and counted beside the table. 'absent' (in neither): every metric is undefined "
    "(NaN) and left out."
)


@dataclass(frozen=True)
class StructureScore:
    """How one structure was found, and the value of each metric asked for, as `POLICY` says."""

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
) -> dict[int, StructureScore]:
    """Scores of the labels `structures` in two label maps [H, W] or [S, H, W].

    `spacing` has one entry per axis, in mm; with ones, distances are in pixels. `metrics` are names in `METRICS`;
    `tolerance` of "nsd" is in the unit of the spacing.
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

    if 0 not in structures:  # beyond the box there is background only, as beyond the image
        box = _box(prediction, reference)
        prediction, reference = prediction[box], reference[box]

    length = max([*structures, *(int(side.max(initial=0)) for side in (prediction, reference))], default=0) + 1
    predicted, expected, common = (
        np.bincount(labels.ravel(), minlength=length)
        for labels in (prediction, reference, prediction[prediction == reference])
    )
    both = [label for label in structures if predicted[label] and expected[label]]
    distances = {}
    if both and any(name in _DISTANCES or name == "nsd" for name in metrics):
        distances = _border_distances(prediction, reference, spacing=spacing, structures=both, length=length)

    scores = {}
    for label in structures:
        a, b, c = int(predicted[label]), int(expected[label]), int(common[label])
        overlap = {"dsc": 2 * c / (a + b), "jaccard": c / (a + b - c)} if a + b else {}
        values = {}
        for name in metrics:
            if name in _DISTANCES:
                values[name] = _DISTANCES[name](*distances[label]) if a and b else float("nan")
            elif name == "nsd" and a and b:
                values[name] = float(np.mean(np.concatenate(distances[label]) <= tolerance))
            elif name == "nsd":
                values[name] = 0.0 if a or b else float("nan")
            else:
                values[name] = overlap.get(name, float("nan"))
        status: Status = "ok" if a and b else "spurious" if a else "missed" if b else "absent"
        scores[label] = StructureScore(status, values)
    return scores


def worst_value(metric: str, shape: Sequence[int], spacing: Sequence[float]) -> float:
    """What a structure that one side lacks costs where it is counted: 0, or the diagonal of the grid for a distance."""
    sides = (np.asarray(shape, dtype=np.float64) - 1) * np.asarray(spacing, dtype=np.float64)
    return float(np.sqrt((sides**2).sum())) if metric in _DISTANCES else 0.0


# From the distances of the predicted border to the reference, and of the reference border to the prediction.
_DISTANCES: dict[str, Callable[[Array, Array], float]] = {
    "hd95": lambda there, back: float(np.percentile(np.concatenate((there, back)), 95)),
    "hd95_directed_max": lambda there, back: float(max(np.percentile(there, 95), np.percentile(back, 95))),
    "asd": lambda there, back: float(there.mean()),
    "asd_reverse": lambda there, back: float(back.mean()),
    "assd": lambda there, back: float(np.concatenate((there, back)).mean()),
}


def _labels(labels: Array) -> Array:
    labels = np.asarray(labels)
    if labels.dtype == np.bool_:
        return labels.astype(np.uint8)
    if labels.dtype.kind not in "ui" or (labels.dtype.kind == "i" and labels.min(initial=0) < 0):
        raise ValueError(f"Label maps hold non-negative integers, not {labels.dtype} from {labels.min()}.")
    return labels


def _box(prediction: Array, reference: Array) -> tuple[slice, ...]:
    """The smallest box around all that is not background on either side."""
    occupied = (prediction != 0) | (reference != 0)
    box = []
    for axis in range(occupied.ndim):
        inside = np.flatnonzero(occupied.any(axis=tuple(i for i in range(occupied.ndim) if i != axis)))
        box.append(slice(inside[0], inside[-1] + 1) if inside.size else slice(0, 0))
    return tuple(box)


def _border(labels: Array) -> Array:
    """Where a voxel differs from a face neighbour or lies at the edge: the borders of all structures in one pass."""
    border = np.zeros(labels.shape, dtype=bool)
    for axis in range(labels.ndim):
        here, there, edge = np.moveaxis(labels, axis, 0), np.moveaxis(border, axis, 0), [0, -1]
        differs = here[1:] != here[:-1]
        there[1:] |= differs
        there[:-1] |= differs
        there[edge] = True
    return border


def _border_distances(
    prediction: Array, reference: Array, *, spacing: Sequence[float], structures: Sequence[int], length: int
) -> dict[int, tuple[Array, Array]]:
    """For each structure, distances in float64 from its predicted border to the reference one, and back."""
    wanted = np.zeros(length, dtype=bool)
    wanted[list(structures)] = True
    sides = []
    borders = [_border(labels) for labels in (prediction, reference)]
    shared = borders[0] & borders[1] & (prediction == reference)
    for labels, border in zip((prediction, reference), borders, strict=True):
        places = np.flatnonzero(border)
        found = labels.ravel()[places]
        keep = wanted[found]
        places, found = places[keep], found[keep]
        order = np.argsort(found, kind="stable")
        places = places[order]
        points = np.stack(np.unravel_index(places, labels.shape), axis=1) * np.asarray(spacing, dtype=np.float64)
        limits = np.searchsorted(found[order], np.arange(length + 1))
        sides.append((points, ~shared.ravel()[places], limits))

    distances = {}
    for label in structures:
        (there, apart), (back, away) = (
            (points[limits[label] : limits[label + 1]], alone[limits[label] : limits[label + 1]])
            for points, alone, limits in sides
        )
        distances[label] = _nearest(there, apart, back), _nearest(back, away, there)
    return distances


def _nearest(points: Array, alone: Array, others: Array) -> Array:
    """Distance from each point to the nearest of `others`; zero, without a search, where it is not `alone`."""
    distances = np.zeros(len(points))
    if alone.any():
        tree = KDTree(others, balanced_tree=False, compact_nodes=False)
        distances[alone] = tree.query(points[alone])[0]
    return distances
