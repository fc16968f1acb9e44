"""Common voxels of two label maps, and distances between the borders of each structure, by numpy and SciPy.

`surfaces_numba` computes the same with numba. Both take all structures in one pass over the label maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """Voxels of each label, on each side and on both, and the distances between the borders of the structures."""

    predicted: Array
    expected: Array
    common: Array
    distances: dict[int, tuple[Array, Array]]  # by label: from its predicted border to the reference one, and back


def compare_labels(
    prediction: Array, reference: Array, *, structures: Sequence[int], spacing: Sequence[float] | None
) -> Comparison:
    """Compare non-negative integers [H, W] or [S, H, W] of one shape; without `spacing`, it measures no distances.

    `distances` holds the structures that both sides contain.
    """
    if 0 not in structures:  # beyond the box there is background only, as beyond the image
        box = bounding_box(prediction, reference)
        prediction, reference = prediction[box], reference[box]
    length = table_length(prediction, reference, structures)
    predicted, expected, common = (
        np.bincount(labels.ravel(), minlength=length)
        for labels in (prediction, reference, prediction[prediction == reference])
    )
    both = on_both_sides(predicted, expected, structures)
    distances = {}
    if both and spacing is not None:
        distances = _border_distances(prediction, reference, spacing=spacing, structures=both, length=length)
    return Comparison(predicted, expected, common, distances)


def table_length(prediction: Array, reference: Array, structures: Sequence[int]) -> int:
    """Entries of a table that any label can index."""
    return max([*structures, *(int(side.max(initial=0)) for side in (prediction, reference))], default=0) + 1


def on_both_sides(predicted: Array, expected: Array, structures: Sequence[int]) -> list[int]:
    """Return the structures with voxels on both sides."""
    return [label for label in structures if predicted[label] and expected[label]]


def nearest(points: Array, others: Array) -> Array:
    """Distance from each point [N, axes] to the nearest of `others` [M, axes]."""
    tree = KDTree(others, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points)[0], dtype=np.float64)


def bounding_box(prediction: Array, reference: Array) -> tuple[slice, ...]:
    """Return the smallest box around everything except background on both sides."""
    boxes = ndimage.find_objects(((prediction != 0) | (reference != 0)).astype(np.uint8))
    return boxes[0] if boxes else (slice(0, 0),) * prediction.ndim


def _border(labels: Array) -> Array:
    """Return True at border voxels, which differ from a face neighbour or lie at the edge, for all structures."""
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
    wanted = np.isin(np.arange(length), structures)
    sides = []
    borders = [_border(labels) for labels in (prediction, reference)]
    shared = borders[0] & borders[1] & (prediction == reference)
    for labels, border in zip((prediction, reference), borders, strict=True):
        places = np.flatnonzero(border)
        places = places[wanted[labels.ravel()[places]]]
        border_labels = labels.ravel()[places]
        order = np.argsort(border_labels, kind="stable")
        places = places[order]
        points = np.stack(np.unravel_index(places, labels.shape), axis=1) * np.asarray(spacing, dtype=np.float64)
        limits = np.searchsorted(border_labels[order], np.arange(length + 1))
        sides.append((points, ~shared.ravel()[places], limits))

    distances = {}
    for label in structures:
        (there, apart), (back, away) = (
            (points[limits[label] : limits[label + 1]], alone[limits[label] : limits[label + 1]])
            for points, alone, limits in sides
        )
        distances[label] = _distances(there, apart, back), _distances(back, away, there)
    return distances


def _distances(points: Array, alone: Array, others: Array) -> Array:
    """Distance from each point to the nearest of `others`; zero, without a search, where it is not `alone`."""
    distances = np.zeros(len(points))
    if alone.any():
        distances[alone] = nearest(points[alone], others)
    return distances
