"""Levels in their order: pieces of a segmentation named anew where the row of an ordered atlas contradicts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from textseg.contracts import Atlas
from textseg.errors import DataError
from textseg.system.messages import counted

SMALL = 0.25  # of the usual size in its group: below it, a second piece of a structure is a fragment
SKIPPED = 0.1  # what leaving out a level between two pieces costs, against 1 for a piece of which the model is certain

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Piece:
    """Connected voxels of one class."""

    label: int
    places: tuple[NDArray[np.intp], ...]  # slices, rows, columns
    height: float  # mean row of its anterior half, where a vertebra has its body
    front: float  # column that a tenth of it lies before
    depth: float  # columns of that half, twice
    evidence: Floats  # [K], mean probability of each class

    @property
    def size(self) -> int:
        return len(self.places[0])


def order_levels(logits: Floats, atlas: Atlas) -> tuple[Floats, list[str]]:
    """Logits [S, K, H, W] whose highest classes stand in the order of `atlas.sequence`, and in words what was changed.

    The pieces (connected, 6 neighbours) that make the row get names that increase from superior to inferior, each once,
    such that the sum of their mean probabilities is highest; a level that is passed over between two pieces costs
    `SKIPPED`. One that finds no name becomes background. In the row are the largest piece of each structure, and others
    as large that lie on the same curve: the posterior elements of a vertebra are a piece of their own wherever the
    pedicles are not in the picture, and follow the nearest body of their name. A piece outside of the row that touches
    one in it, of its group, takes that one's name. A renamed piece has
    the two classes' logits exchanged, so that its outline stays. Raises DataError for
    slices that are not sagittal.
    """
    if atlas.ordered and atlas.plane != "sagittal":
        raise DataError(
            f"Levels are put in order in sagittal slices only, and atlas '{atlas.name}' has {atlas.plane} ones. "
            "Leave out --ordered."
        )
    labels = logits.argmax(axis=1)
    names = {structure.index: structure.name for structure in atlas.structures}
    group_of = {name: group for group, members in atlas.groups.items() for name in members}
    probability = _softmax(logits)
    found = {atlas[name].index: _pieces(labels, atlas[name].index, probability) for name in atlas.sequence}
    usual = _usual_sizes(found, names, group_of)
    row, others = _in_row(found, {index: usual[group_of.get(names[index], names[index])] for index in found})
    new = dict(zip(map(id, row), _assign(row, atlas, names, group_of, usual), strict=True))
    instances = np.zeros(labels.shape, np.int32)
    for number, piece in enumerate(row, start=1):
        instances[piece.places] = number
    changes: list[str] = []
    result = np.array(logits)
    for piece in row:
        _rename(result, piece, new[id(piece)], names, changes)
    for piece in others:
        same = [body for body in row if body.label == piece.label]
        nearest = min(same, key=lambda body: abs(body.height - piece.height))
        body = _neighbour(piece, instances, row, names, group_of) or nearest
        _rename(result, piece, new[id(body)], names, changes)
    return result, changes


def _in_row(found: dict[int, list[_Piece]], usual: dict[int, float]) -> tuple[list[_Piece], list[_Piece]]:
    """The pieces that make the row, from above, and the others."""
    first = sorted((pieces[0] for pieces in found.values() if pieces), key=lambda piece: piece.height)
    row, others = list(first), [piece for pieces in found.values() for piece in pieces[1:]]
    if first:
        heights, fronts = [piece.height for piece in first], [piece.front for piece in first]
        depth = float(np.median([piece.depth for piece in first]))
        for piece in others:
            apart = abs(piece.front - float(np.interp(piece.height, heights, fronts)))
            if piece.size >= SMALL * usual[piece.label] and apart < depth / 2:
                row.append(piece)
    return sorted(row, key=lambda piece: piece.height), [piece for piece in others if not any(piece is r for r in row)]


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalised: Floats = raised / raised.sum(axis=1, keepdims=True)
    return normalised


def _pieces(labels: NDArray[np.integer[Any]], index: int, probability: Floats) -> list[_Piece]:
    """The connected pieces of a class, the largest first."""
    marked, count = ndimage.label(labels == index)
    pieces = []
    for number, box in enumerate(ndimage.find_objects(marked, count), start=1):
        inside = np.nonzero(marked[box] == number)
        places = tuple(axis + side.start for axis, side in zip(inside, box, strict=True))
        rows, columns = places[1], places[2]
        front, middle = (float(value) for value in np.percentile(columns, (10, 50)))
        height = float(rows[columns <= middle].mean())
        evidence = probability[places[0], :, rows, columns].mean(axis=0)
        pieces.append(_Piece(index, places, height, front, 2 * (middle - front) + 1, evidence))
    return sorted(pieces, key=lambda piece: -piece.size)


def _usual_sizes(found: dict[int, list[_Piece]], names: dict[int, str], group_of: dict[str, str]) -> dict[str, float]:
    """By group, the median size of the largest piece of each of its structures."""
    sizes: dict[str, list[int]] = {}
    for index, pieces in found.items():
        sizes.setdefault(group_of.get(names[index], names[index]), []).extend(piece.size for piece in pieces[:1])
    return {group: float(np.median(known)) if known else 1.0 for group, known in sizes.items()}


def _assign(
    row: Sequence[_Piece], atlas: Atlas, names: dict[int, str], group_of: dict[str, str], usual: dict[str, float]
) -> list[int]:
    """The class of each piece, 0 for none; by dynamic programming over pieces and levels, both from above."""
    levels = [atlas[name].index for name in atlas.sequence]
    groups = [group_of.get(name, name) for name in atlas.sequence]
    gain = np.full((len(row), len(levels)), -np.inf)
    for place, piece in enumerate(row):
        group = group_of.get(names[piece.label], names[piece.label])
        weight = min(1.0, piece.size / usual[group])
        for level, index in enumerate(levels):
            if groups[level] == group:
                gain[place, level] = weight * piece.evidence[index]
    # best[p, l]: of all ways in which piece p is the last that has a name, and that name is l.
    best = np.full(gain.shape, -np.inf)
    before = np.full((*gain.shape, 2), -1)
    for place in range(len(row)):
        for level in range(len(levels)):
            best[place, level] = gain[place, level]
            for previous in range(place):
                for upper in range(level):
                    total = best[previous, upper] + gain[place, level] - SKIPPED * (level - upper - 1)
                    if total > best[place, level]:
                        best[place, level], before[place, level] = total, (previous, upper)
    assigned = [0] * len(row)
    if best.size and np.isfinite(best.max()):
        place, level = (int(part) for part in np.unravel_index(int(best.argmax()), best.shape))
        while place >= 0:
            assigned[place] = levels[level]
            place, level = (int(part) for part in before[place, level])
    return assigned


def _neighbour(
    piece: _Piece, instances: NDArray[np.int32], row: Sequence[_Piece], names: dict[int, str], group_of: dict[str, str]
) -> _Piece | None:
    """The piece of the row, of the same group, that shares most faces with a fragment."""
    contacts = np.zeros(len(row) + 1, dtype=np.int64)
    for axis in range(3):
        for step in (-1, 1):
            beside = [*piece.places]
            beside[axis] = beside[axis] + step
            inside = (beside[axis] >= 0) & (beside[axis] < instances.shape[axis])
            contacts += np.bincount(instances[tuple(side[inside] for side in beside)], minlength=len(row) + 1)
    group = group_of.get(names[piece.label], names[piece.label])
    for number in np.argsort(-contacts[1:], kind="stable"):
        other: _Piece = row[number]
        if not contacts[number + 1]:
            return None
        if group_of.get(names[other.label], names[other.label]) == group:
            return other
    return None


def _rename(logits: Floats, piece: _Piece, new: int, names: dict[int, str], changes: list[str]) -> None:
    """Exchange the logits of the piece's class and the new one, where the piece lies."""
    if new == piece.label:
        return
    slices, rows, columns = piece.places
    old = logits[slices, piece.label, rows, columns]
    logits[slices, piece.label, rows, columns] = logits[slices, new, rows, columns]
    logits[slices, new, rows, columns] = old
    changes.append(f"{counted(piece.size, 'voxel')} of {names[piece.label]} became {names.get(new, 'background')}")
