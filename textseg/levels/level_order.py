"""Level order: pieces of a segmentation are renamed if their names contradict the order of the atlas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import softmax

from textseg.contracts import Atlas
from textseg.errors import DataError
from textseg.system.messages import counted

SMALL = 0.25  # of the usual size in its group: below it, a second piece of a structure is a fragment
SKIPPED = 0.1  # cost of leaving out a level between two pieces, against 1 for a piece that the model is sure of

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Piece:
    """Connected voxels of one class."""

    label: int
    positions: tuple[NDArray[np.intp], ...]  # slices, rows, columns
    height: float  # mean row of its anterior half, where a vertebra has its body
    front: float  # column that a tenth of it lies before
    depth: float  # columns of that half, twice
    evidence: Floats  # [K], mean probability of each class

    @property
    def size(self) -> int:
        return len(self.positions[0])


def order_levels(logits: Floats, atlas: Atlas) -> tuple[Floats, list[str]]:
    """Return logits [S, K, H, W] whose highest classes follow `atlas.sequence`, and in words what was changed.

    The row of levels consists of connected pieces (6 neighbours): the largest piece of each structure, and further
    pieces of similar size on the same curve. Their names must increase from superior to inferior, each used once, so
    that the sum of their mean probabilities is highest; each level that is left out between two pieces costs `SKIPPED`.
    A piece that gets no name becomes background.

    A piece outside the row takes the name of the piece of its group that it touches. Otherwise it follows the nearest
    piece of its own name, as the posterior elements of a vertebra do where the pedicles are not in the picture.

    A renamed piece has the logits of the two classes exchanged, so its outline stays. Raises DataError for slices that
    are not sagittal.
    """
    if atlas.ordered and atlas.plane != "sagittal":
        raise DataError(
            f"Levels are put in order in sagittal slices only, and atlas '{atlas.name}' has {atlas.plane} ones. "
            "Leave out --ordered."
        )
    # 1. Split the segmentation into pieces, and choose those that make the row.
    labels = logits.argmax(axis=1)
    names = {structure.index: structure.name for structure in atlas.structures}
    group_of = {name: group for group, members in atlas.groups.items() for name in members}
    groups = {index: group_of.get(name, name) for index, name in names.items()}
    probability = softmax(logits, axis=1)
    pieces_of = {atlas[name].index: _pieces(labels, atlas[name].index, probability) for name in atlas.sequence}
    usual = _usual_sizes(pieces_of, groups)
    row, others = _in_row(pieces_of, {index: usual[groups[index]] for index in pieces_of})
    # 2. Give the row the best names in order.
    new = dict(zip(map(id, row), _assign(row, atlas, groups, usual), strict=True))
    instances = np.zeros(labels.shape, np.int32)
    for number, piece in enumerate(row, start=1):
        instances[piece.positions] = number
    # 3. Rename the row, then the other pieces after the piece of the row that they belong to.
    changes: list[str] = []
    result = np.array(logits)
    for piece in row:
        _rename(result, piece, new[id(piece)], names, changes)
    for piece in others:
        same = [body for body in row if body.label == piece.label]
        nearest = min(same, key=lambda body: abs(body.height - piece.height))
        body = _neighbour(piece, instances, row, groups) or nearest
        _rename(result, piece, new[id(body)], names, changes)
    return result, changes


def _in_row(pieces_of: dict[int, list[_Piece]], usual: dict[int, float]) -> tuple[list[_Piece], list[_Piece]]:
    """Return the pieces that make the row, from superior to inferior, and the remaining ones."""
    first = sorted((pieces[0] for pieces in pieces_of.values() if pieces), key=lambda piece: piece.height)
    row, others = list(first), [piece for pieces in pieces_of.values() for piece in pieces[1:]]
    if first:
        heights, fronts = [piece.height for piece in first], [piece.front for piece in first]
        depth = float(np.median([piece.depth for piece in first]))
        # A further piece belongs to the row where it is large and lies near the curve through the largest ones.
        for piece in others:
            apart = abs(piece.front - float(np.interp(piece.height, heights, fronts)))
            if piece.size >= SMALL * usual[piece.label] and apart < depth / 2:
                row.append(piece)
    return sorted(row, key=lambda piece: piece.height), [piece for piece in others if not any(piece is r for r in row)]


def _pieces(labels: NDArray[np.integer[Any]], index: int, probability: Floats) -> list[_Piece]:
    """Return the connected pieces of a class, the largest first."""
    marked, count = ndimage.label(labels == index)
    pieces = []
    for number, box in enumerate(ndimage.find_objects(marked, count), start=1):
        inside = np.nonzero(marked[box] == number)
        positions = tuple(axis + side.start for axis, side in zip(inside, box, strict=True))
        rows, columns = positions[1], positions[2]
        front, middle = (float(value) for value in np.percentile(columns, (10, 50)))
        height = float(rows[columns <= middle].mean())
        evidence = probability[positions[0], :, rows, columns].mean(axis=0)
        pieces.append(_Piece(index, positions, height, front, 2 * (middle - front) + 1, evidence))
    return sorted(pieces, key=lambda piece: -piece.size)


def _usual_sizes(pieces_of: dict[int, list[_Piece]], groups: dict[int, str]) -> dict[str, float]:
    """Return, by group, the median size of the largest piece of each of its structures."""
    sizes: dict[str, list[int]] = {}
    for index, pieces in pieces_of.items():
        sizes.setdefault(groups[index], []).extend(piece.size for piece in pieces[:1])
    return {group: float(np.median(known)) if known else 1.0 for group, known in sizes.items()}


def _assign(row: Sequence[_Piece], atlas: Atlas, groups: dict[int, str], usual: dict[str, float]) -> list[int]:
    """Return the class of each piece, 0 for none, by dynamic programming over pieces and levels, both downwards."""
    levels = [atlas[name].index for name in atlas.sequence]
    gain = np.full((len(row), len(levels)), -np.inf)
    for position, piece in enumerate(row):
        weight = min(1.0, piece.size / usual[groups[piece.label]])
        for level, index in enumerate(levels):
            if groups[index] == groups[piece.label]:
                gain[position, level] = weight * piece.evidence[index]
    # best[p, l]: the highest sum of all assignments in which piece p is the last one with a name, and that name is l.
    best = np.full(gain.shape, -np.inf)
    before = np.full((*gain.shape, 2), -1)
    for position in range(len(row)):
        for level in range(len(levels)):
            best[position, level] = gain[position, level]
            for previous in range(position):
                for upper in range(level):
                    total = best[previous, upper] + gain[position, level] - SKIPPED * (level - upper - 1)
                    if total > best[position, level]:
                        best[position, level], before[position, level] = total, (previous, upper)
    # Follow the best assignment back from its last piece.
    assigned = [0] * len(row)
    if best.size and np.isfinite(best.max()):
        position, level = (int(part) for part in np.unravel_index(int(best.argmax()), best.shape))
        while position >= 0:
            assigned[position] = levels[level]
            position, level = (int(part) for part in before[position, level])
    return assigned


def _neighbour(
    piece: _Piece, instances: NDArray[np.int32], row: Sequence[_Piece], groups: dict[int, str]
) -> _Piece | None:
    """Return the piece of the row, of the same group, that shares most voxel faces with a fragment."""
    contacts = np.zeros(len(row) + 1, dtype=np.int64)
    for axis in range(3):
        for step in (-1, 1):
            beside = [*piece.positions]
            beside[axis] = beside[axis] + step
            inside = (beside[axis] >= 0) & (beside[axis] < instances.shape[axis])
            contacts += np.bincount(instances[tuple(side[inside] for side in beside)], minlength=len(row) + 1)
    for number in np.argsort(-contacts[1:], kind="stable"):
        candidate: _Piece = row[number]
        if not contacts[number + 1]:
            return None
        if groups[candidate.label] == groups[piece.label]:
            return candidate
    return None


def _rename(logits: Floats, piece: _Piece, new: int, names: dict[int, str], changes: list[str]) -> None:
    """Exchange the logits of the piece's class and the new one, where the piece lies."""
    if new == piece.label:
        return
    slices, rows, columns = piece.positions
    old = logits[slices, piece.label, rows, columns]
    logits[slices, piece.label, rows, columns] = logits[slices, new, rows, columns]
    logits[slices, new, rows, columns] = old
    changes.append(f"{counted(piece.size, 'voxel')} of {names[piece.label]} became {names.get(new, 'background')}")
