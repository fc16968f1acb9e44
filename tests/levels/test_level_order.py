from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from textseg.contracts import Atlas, Structure
from textseg.errors import DataError
from textseg.levels.level_order import SKIPPED, _assign, _Piece, order_levels

NAMES = ("L5", "L4", "L3", "L4/L5", "L3/L4", "SC")
ATLAS = Atlas(
    "short",
    tuple(Structure(name, name, index) for index, name in enumerate(NAMES, start=1)),
    sequence=("L3", "L3/L4", "L4", "L4/L5", "L5"),
    groups={"vertebrae": ("L5", "L4", "L3"), "discs": ("L4/L5", "L3/L4"), "canal": ("SC",)},
)
HEIGHTS = {"L3": (2, 7), "L3/L4": (7, 9), "L4": (9, 14), "L4/L5": (14, 16), "L5": (16, 21)}


def spine(**instead: str) -> NDArray[np.uint8]:
    """Three vertebrae, the discs between them, the canal behind; some of the places named otherwise."""
    labels = np.zeros((3, 24, 20), np.uint8)
    for name, (top, bottom) in HEIGHTS.items():
        label = instead.get(name.replace("/", "_"), name)
        labels[:, top:bottom, 3:10] = NAMES.index(label) + 1 if label else 0
    labels[:, :, 12:14] = NAMES.index("SC") + 1
    return labels


def logits_of(labels: NDArray[np.uint8], second: NDArray[np.uint8] | None = None) -> NDArray[np.float32]:
    """Certain of `labels`, with `second` as the next best guess."""
    classes = np.arange(len(NAMES) + 1)[None, :, None, None]
    logits = 4.0 * (labels[:, None] == classes)
    if second is not None:
        logits = np.maximum(logits, 2.0 * (second[:, None] == classes))
    return logits.astype(np.float32)


def test_what_is_in_order_is_left_as_it_is() -> None:
    logits = logits_of(spine())
    ordered, changes = order_levels(logits, ATLAS)
    assert np.array_equal(ordered, logits)
    assert changes == []


def test_a_duplicate_gets_the_name_that_is_missing() -> None:
    ordered, changes = order_levels(logits_of(spine(L3="L4"), spine()), ATLAS)
    assert np.array_equal(ordered.argmax(1), spine())
    assert changes == ["105 voxels of L4 became L3"]


def test_two_that_are_exchanged_are_exchanged_back() -> None:
    ordered, _ = order_levels(logits_of(spine(L3="L4", L4="L3"), spine()), ATLAS)
    assert np.array_equal(ordered.argmax(1), spine())


def test_a_fragment_takes_the_name_of_the_piece_that_it_lies_on() -> None:
    labels = spine()
    labels[1, 10:12, 3:5] = NAMES.index("L5") + 1  # inside L4
    ordered, changes = order_levels(logits_of(labels), ATLAS)
    assert np.array_equal(ordered.argmax(1), spine())
    assert changes == ["4 voxels of L5 became L4"]


def test_what_lies_behind_the_row_goes_by_the_name_of_its_body() -> None:
    labels, expected = spine(L3="L4"), spine()
    for array, name in ((labels, "L4"), (expected, "L3")):
        array[:, 11:15, 16:19] = NAMES.index("L4") + 1  # the posterior elements of L4, as large as a body
        array[0, 18:20, 17:19] = NAMES.index("L5") + 1
        array[:, 2:7, 3:10] = NAMES.index(name) + 1
    ordered, changes = order_levels(logits_of(labels, spine()), ATLAS)
    assert np.array_equal(ordered.argmax(1), expected)
    assert changes == ["105 voxels of L4 became L3"]


def test_a_piece_too_many_becomes_background() -> None:
    labels = spine()
    labels[:, 21:24, 3:10] = NAMES.index("L5") + 1
    labels[:, 21:22, 3:10] = 0
    ordered, changes = order_levels(logits_of(labels), ATLAS)
    assert np.array_equal(ordered.argmax(1), spine())
    assert changes == ["42 voxels of L5 became background"]


def test_a_level_that_is_not_there_is_not_invented() -> None:
    labels = spine(L4="", L4_L5="")
    ordered, changes = order_levels(logits_of(labels), ATLAS)
    assert np.array_equal(ordered.argmax(1), labels)
    assert changes == []
    nothing = np.zeros_like(labels)
    assert not order_levels(logits_of(nothing), ATLAS)[0].argmax(1).any()


def test_an_atlas_without_an_order_is_left_alone() -> None:
    logits = logits_of(spine(L3="L4"))
    ordered, changes = order_levels(logits, Atlas("loose", ATLAS.structures, groups=ATLAS.groups))
    assert np.array_equal(ordered, logits)
    assert changes == []


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    names = dict(enumerate(NAMES, start=1))
    group_of = {name: group for group, members in ATLAS.groups.items() for name in members}
    row = []
    for height in range(4):
        label = int(generator.integers(1, 6))
        places = (np.zeros(int(generator.integers(1, 9)), int),) * 3
        row.append(_Piece(label, places, float(height), 0.0, 1.0, generator.random(len(NAMES) + 1)))
    usual = {"vertebrae": 5.0, "discs": 3.0, "canal": 1.0}
    levels = [ATLAS[name].index for name in ATLAS.sequence]

    def worth(choice: tuple[int | None, ...]) -> float:
        named = [(piece, level) for piece, level in zip(row, choice, strict=True) if level is not None]
        if any(group_of[names[p.label]] != group_of[ATLAS.sequence[level]] for p, level in named):
            return -np.inf
        gaps = [after - before for (_, before), (_, after) in itertools.pairwise(named)]
        if any(gap < 1 for gap in gaps):
            return -np.inf
        gained = sum(min(1.0, p.size / usual[group_of[names[p.label]]]) * p.evidence[levels[lv]] for p, lv in named)
        return float(gained) - SKIPPED * sum(gap - 1 for gap in gaps)

    best = max(itertools.product([None, *range(5)], repeat=4), key=worth)
    groups = {index: group_of.get(name, name) for index, name in names.items()}
    result = _assign(row, ATLAS, groups, usual)
    assert worth(tuple(levels.index(index) if index else None for index in result)) == pytest.approx(worth(best))


def test_slices_that_are_not_sagittal_are_refused() -> None:
    axial = Atlas("axial", (Structure("a", "part", 1),), sequence=("a",), plane="axial")
    with pytest.raises(DataError, match="atlas 'axial' has axial ones. Leave out --ordered"):
        order_levels(np.zeros((1, 2, 4, 4), np.float32), axial)
