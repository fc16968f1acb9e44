"""Comparison of two label maps, compiled by numba: the numbers of `surfaces`, faster.

A border voxel looks for the nearest one of the other side row by row, from its own row outwards, and stops where the
next row lies farther away than what it has found; within a row it bisects. Borders that should agree lie close
together, so few rows are looked at. What lies far from the other border is left to a k-d tree after `ROWS` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from textseg.metrics.surfaces import Array, Comparison, nearest, on_both_sides, table_length

ROWS = 400


class Border(NamedTuple):
    """Border voxels label by label: those of a label stand from `first[label]` to `last[label]`, in raster order."""

    rows: Array  # slice * H + row
    columns: Array
    first: Array
    last: Array


def compare_labels(
    prediction: Array, reference: Array, *, structures: Sequence[int], spacing: Sequence[float] | None
) -> Comparison:
    """Compare two label maps like `textseg.metrics.surfaces.compare_labels`."""
    length = table_length(prediction, reference, structures)
    maps = [_uniform(labels, np.uint8 if length <= 256 else np.int64) for labels in (prediction, reference)]
    predicted, expected, common = _count(*(labels.reshape(-1) for labels in maps), length)
    both = on_both_sides(predicted, expected, structures)
    if spacing is None or not both:
        return Comparison(predicted, expected, common, {})

    flat, height = prediction.ndim == 2, prediction.shape[-2]
    steps = np.array([1.0, *spacing] if flat else spacing, dtype=np.float64)
    wanted = np.isin(np.arange(length), both)
    first, second = (
        Border(*_border(labels[None] if flat else labels, flat, wanted, counts))
        for labels, counts in zip(maps, (predicted, expected), strict=True)
    )
    there, back = (_search(*pair, np.array(both), height, steps, ROWS) for pair in ((first, second), (second, first)))

    def whole(nearest_distances: Array, border: Border, others: Border, label: int) -> Array:
        distances = nearest_distances[border.first[label] : border.last[label]]
        if (far := distances < 0).any():
            points, targets = (_points(side, label, height, steps) for side in (border, others))
            distances[far] = nearest(points[far], targets)
        return distances

    distances = {label: (whole(there, first, second, label), whole(back, second, first, label)) for label in both}
    return Comparison(predicted, expected, common, distances)


def _uniform(labels: Array, kind: type) -> Array:
    """The same values in one of two kinds of array; numba would compile for each other type, and for memory maps."""
    view: Array = np.ascontiguousarray(labels, dtype=kind)[...]
    view.flags.writeable = False
    return view


def _points(border: Border, label: int, height: int, steps: Array) -> Array:
    part = slice(border.first[label], border.last[label])
    return np.column_stack([*divmod(border.rows[part], height), border.columns[part]]) * steps


@njit(cache=True)
def _count(prediction: Array, reference: Array, length: int) -> tuple[Array, Array, Array]:
    predicted, expected, common = np.zeros(length, np.int64), np.zeros(length, np.int64), np.zeros(length, np.int64)
    background = 0
    for voxel in range(prediction.size):
        a, b = prediction[voxel], reference[voxel]
        if a == 0 and b == 0:  # most of an image: a local counter is faster than three tables
            background += 1
            continue
        predicted[a] += 1
        expected[b] += 1
        if a == b:
            common[a] += 1
    predicted[0] += background
    expected[0] += background
    common[0] += background
    return predicted, expected, common


@njit(cache=True)
def _border(labels: Array, flat: bool, wanted: Array, counts: Array) -> tuple[Array, Array, Array, Array]:
    """Border voxels of the labels `wanted` in [S, H, W], of which there are `counts` voxels; `flat` is one slice."""
    first = np.zeros(len(counts), np.int64)
    total = 0
    for label in range(len(counts)):
        first[label] = total
        if wanted[label]:
            total += counts[label]
    last = first.copy()
    rows, columns = np.empty(total, np.int64), np.empty(total, np.int64)
    depth, height, width = labels.shape
    for s in range(depth):
        for y in range(height):
            for x in range(width):
                label = labels[s, y, x]
                if not wanted[label]:
                    continue
                edge = x == 0 or y == 0 or x == width - 1 or y == height - 1 or (not flat and s in (0, depth - 1))
                if (
                    edge
                    or not labels[s, y, x - 1] == labels[s, y, x + 1] == label
                    or not labels[s, y - 1, x] == labels[s, y + 1, x] == label
                    or (not flat and not labels[s - 1, y, x] == labels[s + 1, y, x] == label)
                ):
                    rows[last[label]] = s * height + y
                    columns[last[label]] = x
                    last[label] += 1
    return rows, columns, first, last


@njit(cache=True)
def _search(border: Border, others: Border, structures: Array, height: int, steps: Array, limit: int) -> Array:
    """Distance from each voxel of a border to the nearest of the others'; -1 after `limit` rows without an answer."""
    distances = np.empty(len(border.rows))
    for label in structures:
        start, stop = others.first[label], others.last[label]
        top, bottom = height, -1
        for index in range(start, stop):
            top, bottom = min(top, others.rows[index] % height), max(bottom, others.rows[index] % height)
        front, rear = others.rows[start] // height, others.rows[stop - 1] // height
        rows = bottom - top + 1
        table = np.zeros((rear - front + 1) * rows + 1, np.int64)  # where the voxels of each row begin
        for index in range(start, stop):
            table[(others.rows[index] // height - front) * rows + others.rows[index] % height - top + 1] += 1
        table[0] = start
        for row in range(1, len(table)):
            table[row] += table[row - 1]

        for point in range(border.first[label], border.last[label]):
            s, y, x = border.rows[point] // height, border.rows[point] % height, border.columns[point]
            best, seen = np.inf, 0
            ahead, behind = min(s, rear), max(s + 1, front)
            while seen <= limit:  # slices, the nearest first
                gap_ahead = (s - ahead) * steps[0] if ahead >= front else np.inf
                gap_behind = (behind - s) * steps[0] if behind <= rear else np.inf
                across = min(gap_ahead, gap_behind) ** 2
                if across >= best:
                    break
                if gap_ahead <= gap_behind:
                    line, ahead = (ahead - front) * rows - top, ahead - 1
                else:
                    line, behind = (behind - front) * rows - top, behind + 1
                above, below = min(y, bottom), max(y + 1, top)
                while seen <= limit:  # rows, the nearest first
                    gap_above = (y - above) * steps[1] if above >= top else np.inf
                    gap_below = (below - y) * steps[1] if below <= bottom else np.inf
                    away = across + min(gap_above, gap_below) ** 2
                    if away >= best:
                        break
                    if gap_above <= gap_below:
                        row, above = line + above, above - 1
                    else:
                        row, below = line + below, below + 1
                    seen += 1
                    low, high = table[row], table[row + 1]
                    while low < high:
                        middle = (low + high) // 2
                        if others.columns[middle] < x:
                            low = middle + 1
                        else:
                            high = middle
                    if low < table[row + 1]:
                        best = min(best, away + ((others.columns[low] - x) * steps[2]) ** 2)
                    if low > table[row]:
                        best = min(best, away + ((others.columns[low - 1] - x) * steps[2]) ** 2)
            distances[point] = np.sqrt(best) if seen <= limit else -1.0
    return distances
