"""Level order: the pieces of a segmentation get names that follow the atlas and what a person said.

Without a statement, names that contradict the order of the atlas are repaired. With a statement, such as "T11 to L3",
the names of the whole row are chosen so that they agree with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import softmax

from textseg.contracts import Atlas
from textseg.errors import DataError, PromptError
from textseg.system.messages import counted

SMALL = 0.25  # of the usual size in its group: below it, a second piece of a structure is a fragment
TOUCHED = 1 / 3  # of the faces of a fragment: from here on, it belongs to the piece that has them
LEAST = 0.1  # of the largest usual size: the smallest usual size of another group
CUT = 0.5  # of the usual size: below it, a piece may be one that the picture cuts and that nobody named
SKIPPED = 0.1  # cost of leaving out a level between two pieces, against 1 for a piece that the model is sure of
MOVED = 0.01  # cost of each level by which the names of the model are moved to agree with a statement
CHANGED = 0.2  # cost of another move from a piece on, as after a vertebra that a tool missed or counted twice
FARTHEST = 6  # levels by which the names of the model are moved at most

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Stretch:
    """A person's statement on the uppermost and the lowermost structure of the sequence that a picture shows."""

    first: str
    last: str


@dataclass(frozen=True)
class Click:
    """A person's statement on one structure: its name, and a voxel of it in an array [S, H, W]."""

    name: str
    position: tuple[int, int, int]


Statement = Stretch | Click


@dataclass(frozen=True)
class Naming:
    """The names that the pieces of a segmentation got.

    `changes` lists in words every piece that was renamed, `unnamed` every piece of the row that became background.
    `margins` holds, for each name of the row, how much lower the objective is if its piece bears any other name, or
    none; 1 is the worth of one piece of usual size that the model is sure of. A structure that a click names has no
    margin. `contradictions` lists landmarks of the picture that disagree with the statement.
    """

    changes: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    margins: Mapping[str, float] = field(default_factory=dict)
    contradictions: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Piece:
    """Connected voxels of one class."""

    label: int
    positions: tuple[NDArray[np.intp], ...]  # slices, rows, columns
    height: float  # mean row of its anterior half, where a vertebra has its body
    rows: tuple[int, int]  # first and last row of that half
    front: float  # column that a tenth of it lies before
    depth: float  # columns of that half, twice
    evidence: Floats  # [K], mean probability of each class

    @property
    def size(self) -> int:
        return len(self.positions[0])


@dataclass(frozen=True)
class _Objective:
    """The worth of every assignment of levels to the P pieces of a row, for N moves of the model's names.

    An assignment gives some pieces a move and a level each, levels increasing downwards. It is worth `start` of its
    first level, `gain` of each piece at its level, and `end` of its last level. Between two pieces, each level that is
    skipped beyond or short of `gap` costs SKIPPED, and another move costs CHANGED.
    """

    gain: Floats  # [N, P, L]; -inf where a piece can't have a level
    gap: Floats  # [P, P], the levels that fit between two pieces
    start: Floats  # [N, L]
    end: Floats  # [L]


def stated_stretch(atlas: Atlas, visible: Sequence[str]) -> Stretch | None:
    """Return the stretch from the first to the last structure of the sequence among `visible`; None if it has none."""
    row = [name for name in atlas.sequence if name in visible]
    return Stretch(row[0], row[-1]) if row else None


def order_levels(logits: Floats, atlas: Atlas, statement: Statement | None = None) -> tuple[Floats, Naming]:
    """Return logits [S, K, H, W] whose highest classes follow `atlas.sequence` and the statement, and the naming.

    The row of levels consists of connected pieces (6 neighbours): the largest piece of each structure, and further
    pieces of similar size on the same curve. Their names must increase from superior to inferior, each used once.

    Without a statement, the sum of the mean probabilities of their names is highest; each level that is left out
    between two pieces costs `SKIPPED`.

    With a statement, the names of the model count as relative ones: they may all be moved by some levels, each for
    `MOVED`. A named piece counts half by itself, and half by the probability of its moved name, so that pieces keep
    their names only if these fit. From a piece on, the names may be moved by another number of levels, for `CHANGED`.
    A stretch FIRST:LAST bounds the names: each of its levels that is left out at an end costs as much as one between
    two pieces. Beyond its ends only these are named: pieces below `CUT` of the usual size, which the picture may cut;
    a smaller structure of another group next to an end, such as the disc below the last vertebra; and landmarks next to
    an end. A click fixes the name of one piece. Between two pieces, as many levels are expected to be left out as fit
    into the distance, so a missing vertebra is noticed.

    A piece of the row that gets no name becomes background. A piece outside the row takes the name of the piece of its
    group that encloses it. Otherwise it follows the nearest piece of its own name, as the posterior elements of a
    vertebra do where the pedicles are not in the picture.

    A renamed piece has the logits of the two classes exchanged, so its outline stays. Raises DataError for slices that
    are not sagittal, PromptError for a statement that does not fit the atlas or the picture.
    """
    probability = softmax(logits, axis=1) if atlas.ordered else None
    renamed, naming = _name(logits.argmax(axis=1), probability, atlas, statement)
    result = np.array(logits)
    for piece, new in renamed:
        slices, rows, columns = piece.positions
        old = result[slices, piece.label, rows, columns]
        result[slices, piece.label, rows, columns] = result[slices, new, rows, columns]
        result[slices, new, rows, columns] = old
    return result, naming


def rename_levels(label_map: Labels, atlas: Atlas, statement: Statement | None = None) -> tuple[Labels, Naming]:
    """Return a label map [S, H, W] whose names follow `atlas.sequence` and the statement, and the naming.

    It does what `order_levels` does, for a label map of class indices without probabilities: each voxel counts as sure.
    """
    renamed, naming = _name(label_map, None, atlas, statement)
    result = np.array(label_map)
    for piece, new in renamed:
        result[piece.positions] = new
    return result, naming


def find_contradictions(label_map: Labels, atlas: Atlas, statement: Statement | None) -> tuple[str, ...]:
    """Return sentences on landmarks of a label map [S, H, W] that contradict a statement; see `Naming`.

    A landmark contradicts a statement if the names that follow from the statement give it another name, or none, and if
    the picture shows levels of its group beyond it although the atlas has none there. A contradiction that the model
    hides because it follows the text in everything is not noticed.
    """
    landmarks = [atlas[name].index for name in atlas.landmarks if name in atlas.sequence]
    if statement is None or atlas.plane != "sagittal" or not np.isin(label_map, landmarks).any():
        return ()
    return rename_levels(label_map, atlas, statement)[1].contradictions


def _name(
    labels: Labels, probability: Floats | None, atlas: Atlas, statement: Statement | None
) -> tuple[list[tuple[_Piece, int]], Naming]:
    """Return the pieces whose class changes, each with its new class, and the naming."""
    if atlas.ordered and atlas.plane != "sagittal":
        raise DataError(
            f"Levels are put in order in sagittal slices only, and atlas '{atlas.name}' has {atlas.plane} ones. "
            "Leave out --ordered."
        )
    _check(statement, atlas)
    # 1. Split the segmentation into pieces, and choose those that make the row.
    names = {structure.index: structure.name for structure in atlas.structures}
    group_of = {name: group for group, members in atlas.groups.items() for name in members}
    groups = {index: group_of.get(name, name) for index, name in names.items()}
    boxes = ndimage.find_objects(labels, max_label=atlas.class_count - 1)
    pieces_of = {
        index: _pieces(labels, index, boxes[index - 1], probability, atlas.class_count)
        for index in (atlas[name].index for name in atlas.sequence)
    }
    usual = _usual_sizes(pieces_of, groups)
    row, others = _in_row(pieces_of, {index: usual[groups[index]] for index in pieces_of})
    instances = np.zeros(labels.shape, np.int32)
    for number, piece in enumerate(row, start=1):
        instances[piece.positions] = number
    # 2. Find the body of each piece outside the row: the piece of the row whose name it takes.
    body_of: dict[int, _Piece | None] = {id(piece): piece for piece in row}
    for piece in others:
        same = [body for body in row if body.label == piece.label]
        nearest = min(same, key=lambda body: abs(body.height - piece.height), default=None)
        body_of[id(piece)] = _neighbour(piece, labels, instances, row, groups) or nearest
    # 3. Give the row the best names in order.
    clicked = None
    if isinstance(statement, Click):
        body = body_of[id(_clicked_piece(statement, labels, [*row, *others], atlas, groups))]
        clicked = next((number for number, piece in enumerate(row) if piece is body), None)
        if clicked is None:
            raise PromptError(f"The click on {statement.name} lies on a part whose body the picture doesn't show.")
    weights = np.array([min(1.0, piece.size / usual[groups[piece.label]]) for piece in row])
    moves = range(1) if statement is None else range(-FARTHEST, FARTHEST + 1)
    assigned, margins = _assign(_objective(row, weights, usual, atlas, groups, moves, statement, clicked))
    levels = [atlas[name].index for name in atlas.sequence]
    new = {id(piece): levels[given[1]] if given else 0 for piece, given in zip(row, assigned, strict=True)}
    # 4. Rename the row, then the other pieces after their bodies. Without a body, a name moves as the nearest one does.
    named = [(piece.height, moves[given[0]]) for piece, given in zip(row, assigned, strict=True) if given]
    for piece in others:
        body = body_of[id(piece)]
        move = min((abs(height - piece.height), move) for height, move in [*named, (np.inf, 0)])[1]
        name = atlas.neighbour(names[piece.label], move)
        new[id(piece)] = new[id(body)] if body is not None else atlas[name].index if name else 0
    renamed = [(piece, new[id(piece)]) for piece in (*row, *others) if new[id(piece)] != piece.label]
    return renamed, Naming(
        tuple(
            f"{counted(piece.size, 'voxel')} of {names[piece.label]} became {names.get(index, 'background')}"
            for piece, index in renamed
        ),
        tuple(f"{names[piece.label]} ({counted(piece.size, 'voxel')})" for piece in row if not new[id(piece)]),
        {
            names[new[id(piece)]]: round(margin, 4)
            for number, (piece, margin) in enumerate(zip(row, margins, strict=True))
            if new[id(piece)] and number != clicked
        },
        _contradictions(row, new, weights, atlas, groups) if statement is not None else (),
    )


def _check(statement: Statement | None, atlas: Atlas) -> None:
    """Raise PromptError for a statement that does not fit the atlas."""
    if statement is None:
        return
    if isinstance(statement, Stretch):
        atlas.between(statement.first, statement.last)
    elif statement.name not in atlas.sequence:
        structure = atlas[statement.name]
        raise PromptError(
            f"'{structure.name}' is no level of atlas '{atlas.name}'; possible are {', '.join(atlas.sequence)}."
        )


def _clicked_piece(
    click: Click, labels: Labels, pieces: Sequence[_Piece], atlas: Atlas, groups: Mapping[int, str]
) -> _Piece:
    """Return the piece that a click lies on; raises PromptError where it lies on none, or on one of another group."""
    inside = all(0 <= side < size for side, size in zip(click.position, labels.shape, strict=True))
    if not inside:
        raise PromptError(f"The click on {click.name} lies outside the picture.")
    label = int(labels[click.position])
    for piece in pieces:
        if piece.label == label and (np.stack(piece.positions, axis=1) == click.position).all(axis=1).any():
            if groups[label] != groups[atlas[click.name].index]:
                raise PromptError(
                    f"The click on {click.name} lies on {atlas.names[label - 1]}, which belongs to the "
                    f"{groups[label]}. Click on one of the {groups[atlas[click.name].index]}."
                )
            return piece
    if label:
        raise PromptError(f"The click on {click.name} lies on {atlas.names[label - 1]}, which has no place in the row.")
    message = f"The click on {click.name} lies on background"
    if not pieces:
        raise PromptError(f"{message}, and the mask shows no level at all.")
    distances = [float(np.square(np.stack(p.positions, axis=1) - click.position).sum(axis=1).min()) for p in pieces]
    nearest = int(np.argmin(distances))
    raise PromptError(
        f"{message}; the nearest level is {atlas.names[pieces[nearest].label - 1]}, "
        f"{distances[nearest] ** 0.5:.0f} voxels away. Click on the structure itself."
    )


def _in_row(pieces_of: dict[int, list[_Piece]], usual: dict[int, float]) -> tuple[list[_Piece], list[_Piece]]:
    """Return the pieces that make the row, from superior to inferior, and the remaining ones."""
    first = sorted((pieces[0] for pieces in pieces_of.values() if pieces), key=lambda piece: piece.height)
    if not first:
        return [], []
    depth = float(np.median([piece.depth for piece in first]))
    # Posterior elements whose body is not in the picture are small; they must not bend the curve.
    large = [piece for piece in first if piece.size >= CUT * usual[piece.label]] or first

    def apart(piece: _Piece) -> float:
        """Return the columns between a piece and the curve through the large pieces of the other structures."""
        curve = [body for body in large if body.label != piece.label] or first
        expected = np.interp(piece.height, [body.height for body in curve], [body.front for body in curve])
        return abs(piece.front - float(expected))

    row, others = list[_Piece](), list[_Piece]()
    for pieces in pieces_of.values():
        # The largest piece may be the posterior elements, where the edge of the picture cuts off the body.
        solid = CUT * usual[pieces[0].label] if pieces else 0.0
        body = next((piece for piece in pieces if piece.size >= solid or apart(piece) < depth), None)
        for piece in pieces:
            # A second piece is a level of its own where it is large, on the curve, and not beside the first.
            further = piece.size >= SMALL * usual[piece.label] and apart(piece) < depth / 2
            beside = body is not None and body.rows[0] <= piece.rows[1] and piece.rows[0] <= body.rows[1]
            (row if piece is body or (further and not beside) else others).append(piece)
    return sorted(row, key=lambda piece: piece.height), others


def _pieces(
    labels: Labels, index: int, box: tuple[slice, ...] | None, probability: Floats | None, class_count: int
) -> list[_Piece]:
    """Return the connected pieces of a class, the largest first; `box` holds all of them."""
    if box is None:
        return []
    marked, count = ndimage.label(labels[box] == index)
    pieces = []
    for number, inner in enumerate(ndimage.find_objects(marked, count), start=1):
        inside = np.nonzero(marked[inner] == number)
        positions = tuple(axis + side.start + whole.start for axis, side, whole in zip(inside, inner, box, strict=True))
        rows, columns = positions[1], positions[2]
        front, middle = (float(value) for value in np.percentile(columns, (10, 50)))
        anterior = rows[columns <= middle]
        if probability is None:
            evidence: Floats = np.eye(1, class_count, index)[0]
        else:
            evidence = probability[positions[0], :, rows, columns].mean(axis=0)
        height, ends = float(anterior.mean()), (int(anterior.min()), int(anterior.max()))
        pieces.append(_Piece(index, positions, height, ends, front, 2 * (middle - front) + 1, evidence))
    return sorted(pieces, key=lambda piece: -piece.size)


def _usual_sizes(pieces_of: dict[int, list[_Piece]], groups: dict[int, str]) -> dict[str, float]:
    """Return, by group, the usual size of a structure: half of the voxels belong to structures of at least this size.

    Specks hardly count. A group of which the picture has nothing but specks has at least LEAST of the largest size.
    """
    sizes: dict[str, list[int]] = {}
    for index, pieces in pieces_of.items():
        sizes.setdefault(groups[index], []).extend(piece.size for piece in pieces[:1])
    usual = {}
    for group, known in sizes.items():
        descending = np.sort(known)[::-1]
        half = np.searchsorted(np.cumsum(descending), descending.sum() / 2)
        usual[group] = float(descending[half]) if known else 1.0
    return {group: max(size, LEAST * max(usual.values())) for group, size in usual.items()}


def _objective(
    row: Sequence[_Piece],
    weights: Floats,
    usual: Mapping[str, float],
    atlas: Atlas,
    groups: Mapping[int, str],
    moves: Sequence[int],
    statement: Statement | None,
    clicked: int | None,
) -> _Objective:
    """Return the worth of the assignments: see `order_levels`; `clicked` is the piece of the row that a click names."""
    sequence = atlas.sequence
    indices = [atlas[name].index for name in sequence]
    same_group = np.array([[groups[index] == groups[piece.label] for index in indices] for piece in row], dtype=bool)
    same_group = same_group.reshape(len(row), len(sequence))
    # 1. The probability of each level, with the names of the model moved by some levels.
    sources = [[atlas.neighbour(name, -move) for name in sequence] for move in moves]
    evidence = np.array([[*piece.evidence] for piece in row]).reshape(len(row), atlas.class_count)
    evidence[:, 0] = 0  # background stands for a level beyond the ends of the atlas
    probability = np.stack([evidence[:, [atlas[n].index if n else 0 for n in names]] for names in sources])
    worth = probability if statement is None else (1 + probability) / 2
    gain = np.where(same_group, weights[:, None] * worth, -np.inf)
    start = np.tile([[-MOVED * abs(move)] for move in moves], len(sequence))
    end = np.zeros(len(sequence))
    gap = np.zeros((len(row), len(row)))
    if statement is None:
        return _Objective(gain, gap, start, end)
    # 2. What the statement adds.
    if isinstance(statement, Click):
        assert clicked is not None
        level = sequence.index(statement.name)
        gain[:, clicked, np.arange(len(sequence)) != level] = -np.inf
        gain[:, clicked, level] += len(row) + SKIPPED * len(sequence) * len(row)  # more than all other pieces together
    else:
        first, last = sequence.index(statement.first), sequence.index(statement.last)
        positions = np.arange(len(sequence))
        # A structure of another group next to an end must not make up for a part of a missing level.
        above, below = _step(atlas, first), _step(atlas, last)
        start -= SKIPPED * above * np.ceil(np.maximum(0, positions - first) / above)
        end -= SKIPPED * below * np.ceil(np.maximum(0, last - positions) / below)
        outside = (positions < first) | (positions > last)
        gain[:, (weights[:, None] >= CUT) & outside & ~_beyond(first, last, usual, atlas, groups)] = -np.inf
    # 3. How many levels fit between two pieces.
    heights = np.array([piece.height for piece in row])
    distance = _level_distance(row, weights, atlas, groups)
    if distance is not None:
        gap = np.maximum(0, np.abs(heights[:, None] - heights) / distance - 1)
    return _Objective(gain, gap, start, end)


def _step(atlas: Atlas, level: int) -> int:
    """Return the number of positions in the sequence from a structure to the next one of its group."""
    neighbours = (atlas.neighbour(atlas.sequence[level], levels) for levels in (-1, 1))
    return min((abs(atlas.sequence.index(name) - level) for name in neighbours if name), default=1)


def _beyond(
    first: int, last: int, usual: Mapping[str, float], atlas: Atlas, groups: Mapping[int, str]
) -> NDArray[np.bool_]:
    """Return True for the levels just beyond a stretch that a person does not name, but that are there."""
    result = np.zeros(len(atlas.sequence), dtype=bool)
    group = [groups[atlas[name].index] for name in atlas.sequence]
    for end, step in ((first, -1), (last, 1)):
        next_of_group = atlas.neighbour(atlas.sequence[end], step)
        level = end + step
        while 0 <= level < len(result):
            # A disc next to a vertebra, not a vertebra next to a disc; nobody counts the sacrum.
            smaller = usual[group[level]] < usual[group[end]]
            result[level] = smaller or atlas.sequence[level] in atlas.landmarks
            if atlas.sequence[level] == next_of_group or not result[level]:
                break
            level += step
    return result


def _level_distance(row: Sequence[_Piece], weights: Floats, atlas: Atlas, groups: Mapping[int, str]) -> float | None:
    """Return the usual number of rows from a level of the sequence to the next; None in a row that is too short."""
    distances = []
    for group in {groups[piece.label] for piece in row}:
        levels = [number for number, name in enumerate(atlas.sequence) if groups[atlas[name].index] == group]
        heights = [
            piece.height
            for piece, weight in zip(row, weights, strict=True)
            if groups[piece.label] == group and weight >= CUT
        ]
        if len(levels) > 1:
            step = float(np.median(np.diff(levels)))
            distances += [(lower - upper) / step for upper, lower in pairwise(heights)]
    return float(np.median(distances)) or None if len(distances) > 1 else None


def _assign(objective: _Objective) -> tuple[list[tuple[int, int] | None], list[float]]:
    """Return the move of the names and the level of each piece, None for no name, and the margin of each name.

    The best assignment is found by dynamic programming over pieces and levels, both downwards. The margin of a name is
    the difference to the best assignment that gives the piece another level, or none.
    """
    gain, start, end = objective.gain, objective.start, objective.end
    _, count, levels = gain.shape
    skipped = np.arange(levels)[None] - np.arange(levels)[:, None] - 1.0  # [upper, lower]

    def cost(upper: slice | int, lower: slice | int) -> Floats:
        """Return the cost [pieces, upper level, lower level] between pieces; infinite where levels don't increase."""
        gap = np.atleast_1d(objective.gap[upper, lower])
        return np.where(skipped < 0, np.inf, SKIPPED * np.abs(skipped - gap[:, None, None]))

    def changed(worth: Floats) -> Floats:
        """Return the worth where the move of the names may change."""
        best: Floats = np.maximum(worth, worth.max(axis=0) - CHANGED)
        return best

    # until[n, p, l]: the highest worth of all assignments in which piece p is the last one with a name, and that is l.
    until = np.full(gain.shape, -np.inf)
    for piece in range(count):
        upper = changed(until[:, :piece])[..., None] - cost(slice(piece), piece)
        until[:, piece] = gain[:, piece] + np.maximum(start, upper.max(axis=(1, 2), initial=-np.inf))
    # after[n, p, l]: the highest worth of what follows piece p with level l.
    # passing[p, q]: the highest worth of all assignments in which q is the next piece with a name after p.
    after, passing = np.full(gain.shape, -np.inf), np.full((count, count), -np.inf)
    for piece in reversed(range(count)):
        below = slice(piece + 1, count)
        lower = changed((gain + after)[:, below])[:, :, None] - cost(piece, below)
        after[:, piece] = np.maximum(end, lower.max(axis=(1, 3), initial=-np.inf))
        through = until[:, piece, None, :, None] + lower
        passing[piece, below] = through.max(axis=(0, 2, 3), initial=-np.inf)
    # Follow the best assignment back from its last piece.
    assigned: list[tuple[int, int] | None] = [None] * count
    total = float((until + end).max(initial=-np.inf))
    if not np.isfinite(total):
        return assigned, [0.0] * count
    move, piece, level = (int(part) for part in np.unravel_index(int((until + end).argmax()), until.shape))
    while True:
        assigned[piece] = move, level
        upper = (changed(until[:, :piece])[move, ..., None] - cost(slice(piece), piece))[:, :, level]
        if start[move, level] >= upper.max(initial=-np.inf):
            break
        piece, level = (int(part) for part in np.unravel_index(int(upper.argmax()), upper.shape))
        if until[move, piece, level] < until[:, piece, level].max() - CHANGED:
            move = int(until[:, piece, level].argmax())
    margins = []
    for piece, chosen in enumerate(assigned):
        rivals = (
            np.delete((until + after)[:, piece], [] if chosen is None else chosen[1], axis=1),  # another level
            (until + end)[:, :piece],  # the row ends before the piece
            (gain + after + start[:, None])[:, piece + 1 :],  # the row begins after it
            passing[:piece, piece + 1 :],  # the row passes it
        )
        # An assignment of nothing is worth nothing.
        margins.append(total - max(0.0, *(float(worth.max(initial=-np.inf)) for worth in rivals)))
    return assigned, margins


def _contradictions(
    row: Sequence[_Piece], new: Mapping[int, int], weights: Floats, atlas: Atlas, groups: Mapping[int, str]
) -> tuple[str, ...]:
    """Return sentences on landmarks of the picture that the statement names otherwise, or that can't lie there."""
    names = {structure.index: structure.name for structure in atlas.structures}
    large = [piece for piece, weight in zip(row, weights, strict=True) if weight >= CUT]
    sentences = []
    for position, piece in enumerate(large):
        name, called = names[piece.label], names.get(new[id(piece)])
        if name not in atlas.landmarks:
            continue
        if called != name:
            statement = f"the statement says {called}" if called else "the statement leaves no room for it"
            sentences.append(f"the picture contradicts the statement: the picture says {name}, {statement}")
        for step, side, further in ((-1, "above", large[:position]), (1, "below", large[position + 1 :])):
            same = any(groups[neighbour.label] == groups[piece.label] for neighbour in further)
            if called == name and same and atlas.neighbour(name, step) is None:
                others = f"others of the {groups[piece.label]}"
                sentences.append(
                    f"the picture contradicts the statement: the picture says {name}, with {others} {side} it"
                )
    return tuple(sentences)


def _neighbour(
    piece: _Piece, labels: Labels, instances: NDArray[np.int32], row: Sequence[_Piece], groups: dict[int, str]
) -> _Piece | None:
    """Return the piece of the row, of the same group, that shares most voxel faces with a fragment.

    It has at least TOUCHED of the faces of the fragment: posterior elements that touch the next vertebra are not of it.
    """
    contacts, faces = np.zeros(len(row) + 1, dtype=np.int64), 0
    for axis in range(3):
        for step in (-1, 1):
            beside = [*piece.positions]
            beside[axis] = beside[axis] + step
            inside = (beside[axis] >= 0) & (beside[axis] < instances.shape[axis])
            voxels = tuple(side[inside] for side in beside)
            faces += int((labels[voxels] != piece.label).sum())
            contacts += np.bincount(instances[voxels], minlength=len(row) + 1)
    for number in np.argsort(-contacts[1:], kind="stable"):
        candidate: _Piece = row[number]
        if not contacts[number + 1] or contacts[number + 1] < TOUCHED * faces:
            return None
        if groups[candidate.label] == groups[piece.label]:
            return candidate
    return None
