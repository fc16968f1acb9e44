from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from textseg.contracts import Atlas, Structure
from textseg.errors import DataError, PromptError
from textseg.levels.level_order import (
    CHANGED,
    SKIPPED,
    Click,
    Stretch,
    _assign,
    _Objective,
    find_contradictions,
    order_levels,
    rename_levels,
    stated_stretch,
)
from textseg_spine.atlas import whole_spine

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
    ordered, naming = order_levels(logits, ATLAS)
    assert np.array_equal(ordered, logits)
    assert naming.changes == ()


def test_a_duplicate_gets_the_name_that_is_missing() -> None:
    ordered, naming = order_levels(logits_of(spine(L3="L4"), spine()), ATLAS)
    assert np.array_equal(ordered.argmax(1), spine())
    assert naming.changes == ("105 voxels of L4 became L3",)


def test_two_that_are_exchanged_are_exchanged_back() -> None:
    ordered, _ = order_levels(logits_of(spine(L3="L4", L4="L3"), spine()), ATLAS)
    assert np.array_equal(ordered.argmax(1), spine())


def test_a_fragment_takes_the_name_of_the_piece_that_it_lies_on() -> None:
    labels = spine()
    labels[1, 10:12, 3:5] = NAMES.index("L5") + 1  # inside L4
    ordered, naming = order_levels(logits_of(labels), ATLAS)
    assert np.array_equal(ordered.argmax(1), spine())
    assert naming.changes == ("4 voxels of L5 became L4",)


def test_what_lies_behind_the_row_goes_by_the_name_of_its_body() -> None:
    labels, expected = spine(L3="L4"), spine()
    for array, name in ((labels, "L4"), (expected, "L3")):
        array[:, 11:15, 16:19] = NAMES.index("L4") + 1  # the posterior elements of L4, as large as a body
        array[0, 18:20, 17:19] = NAMES.index("L5") + 1
        array[:, 2:7, 3:10] = NAMES.index(name) + 1
    ordered, naming = order_levels(logits_of(labels, spine()), ATLAS)
    assert np.array_equal(ordered.argmax(1), expected)
    assert naming.changes == ("105 voxels of L4 became L3",)


def test_a_piece_too_many_becomes_background() -> None:
    labels = spine()
    labels[:, 21:24, 3:10] = NAMES.index("L5") + 1
    labels[:, 21:22, 3:10] = 0
    ordered, naming = order_levels(logits_of(labels), ATLAS)
    assert np.array_equal(ordered.argmax(1), spine())
    assert naming.changes == ("42 voxels of L5 became background",)


def test_a_level_that_is_not_there_is_not_invented() -> None:
    labels = spine(L4="", L4_L5="")
    ordered, naming = order_levels(logits_of(labels), ATLAS)
    assert np.array_equal(ordered.argmax(1), labels)
    assert naming.changes == ()
    nothing = np.zeros_like(labels)
    assert not order_levels(logits_of(nothing), ATLAS)[0].argmax(1).any()


def test_an_atlas_without_an_order_is_left_alone() -> None:
    logits = logits_of(spine(L3="L4"))
    ordered, naming = order_levels(logits, Atlas("loose", ATLAS.structures, groups=ATLAS.groups))
    assert np.array_equal(ordered, logits)
    assert naming.changes == ()


@pytest.mark.parametrize("seed", range(30))
def test_the_choice_and_the_margins_are_those_of_all_assignments(seed: int) -> None:
    generator = np.random.default_rng(seed)
    moves, pieces, levels = (1 + seed % 3, 4, 5)
    gain = generator.random((moves, pieces, levels))
    gain[generator.random(gain.shape) < 0.3] = -np.inf
    gap = generator.integers(0, 3, (pieces, pieces)) * (seed % 2)
    start, end = -0.5 * generator.random((moves, levels)), -0.5 * generator.random(levels)

    def worth(choice: tuple[int | None, ...]) -> float:
        named = [(piece, level) for piece, level in enumerate(choice) if level is not None]
        if not named:
            return 0.0
        total = max(
            start[along[0], named[0][1]]
            + sum(gain[move, piece, level] for move, (piece, level) in zip(along, named, strict=True))
            - CHANGED * sum(upper != lower for upper, lower in itertools.pairwise(along))
            for along in itertools.product(range(moves), repeat=len(named))
        )
        for (upper, above), (lower, below) in itertools.pairwise(named):
            if below <= above:
                return -np.inf
            total -= SKIPPED * abs(below - above - 1 - gap[upper, lower])
        return float(total + end[named[-1][1]])

    choices = {choice: worth(choice) for choice in itertools.product([None, *range(levels)], repeat=pieces)}
    given, margins = _assign(_Objective(gain, gap, start, end))
    assigned = [pair and pair[1] for pair in given]
    best = max(choices.values())
    assert choices[tuple(assigned)] == pytest.approx(best)
    for piece in (piece for piece, level in enumerate(assigned) if level is not None):
        rival = max(total for choice, total in choices.items() if choice[piece] != assigned[piece])
        assert margins[piece] == pytest.approx(best - rival)


def test_slices_that_are_not_sagittal_are_refused() -> None:
    axial = Atlas("axial", (Structure("a", "part", 1),), sequence=("a",), plane="axial")
    with pytest.raises(DataError, match="atlas 'axial' has axial ones. Leave out --ordered"):
        order_levels(np.zeros((1, 2, 4, 4), np.float32), axial)


# A longer spine: five vertebrae, the discs between them and one below; the last disc is a landmark.
VERTEBRAE = ("T11", "T12", "L1", "L2", "L3", "L4", "L5")
DISCS = ("T11/T12", "T12/L1", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S")
ROW = tuple(name for pair in zip(VERTEBRAE, DISCS, strict=True) for name in pair)
LONG = Atlas(
    "long",
    tuple(Structure(name, name, index) for index, name in enumerate((*ROW, "SC"), start=1)),
    sequence=ROW,
    groups={"vertebrae": VERTEBRAE, "discs": DISCS, "canal": ("SC",)},
    landmarks=("L5/S",),
)


def column(*names: str, missing: tuple[int, ...] = (), top: int = 14, bottom: int = 14) -> NDArray[np.uint8]:
    """Vertebrae of 14 rows and discs of 6 with these names, downwards; an empty name leaves its rows empty.

    `missing` are the positions that stay empty, `top` and `bottom` the rows of the first and the last structure.
    """
    heights = [6 if "/" in name else 14 for name in names]
    heights[0], heights[-1] = min(top, heights[0]), min(bottom, heights[-1])
    labels = np.zeros((2, sum(heights), 40), np.uint8)
    ends = np.cumsum(heights)
    for position, (name, end, height) in enumerate(zip(names, ends, heights, strict=True)):
        if position not in missing:
            labels[:, end - height : end, 4:18] = LONG[name].index
    labels[:, :, 22:26] = LONG["SC"].index
    return labels


def stretch(first: str, last: str) -> tuple[str, ...]:
    return ROW[ROW.index(first) : ROW.index(last) + 1]


@pytest.mark.parametrize("levels", [-2, -1, 1])
def test_a_stretch_moves_all_names_to_where_a_person_sees_them(levels: int) -> None:
    expected = column(*stretch("L1", "L4"))
    labelled = [LONG.neighbour(name, levels) or "" for name in stretch("L1", "L4")]
    renamed, naming = rename_levels(column(*labelled), LONG, Stretch("L1", "L4"))
    assert np.array_equal(renamed, expected)
    assert naming.unnamed == ()
    assert set(naming.margins) == set(stretch("L1", "L4"))
    assert min(naming.margins.values()) > 0.5
    assert len(naming.changes) == 7


def test_what_fits_the_statement_is_left_as_it_is() -> None:
    labels = column(*stretch("L1", "L4"))
    renamed, naming = rename_levels(labels, LONG, Stretch("L1", "L4"))
    assert np.array_equal(renamed, labels)
    assert naming.changes == ()


def test_logits_follow_a_statement_and_keep_the_outline() -> None:
    labels = column(*stretch("L1", "L4"))
    classes = np.arange(LONG.class_count)[None, :, None, None]
    logits = (4.0 * (labels[:, None] == classes)).astype(np.float32)
    ordered, naming = order_levels(logits, LONG, Stretch("L2", "L5"))
    assert np.array_equal(ordered.argmax(1), column(*stretch("L2", "L5")))
    assert naming.changes == rename_levels(labels, LONG, Stretch("L2", "L5"))[1].changes
    assert np.array_equal(np.sort(ordered, axis=1), np.sort(logits, axis=1))


def test_the_disc_below_the_last_vertebra_and_a_vertebra_that_is_cut_need_no_statement() -> None:
    # A person says L1 to L3; the picture also shows T12/L1, a fifth of T12, L3/L4 and a fifth of L4.
    names = stretch("T12", "L4")
    moved = column(*(LONG.neighbour(name, 1) or "" for name in names), top=3, bottom=3)
    renamed, naming = rename_levels(moved, LONG, Stretch("L1", "L3"))
    assert np.array_equal(renamed, column(*names, top=3, bottom=3))
    assert naming.unnamed == ()


def test_a_vertebra_that_is_cut_may_be_the_first_one_named() -> None:
    # Two fifths of the first vertebra are in the picture, and the person counted it.
    moved = column(*stretch("L1", "L4"), top=6)
    renamed, _ = rename_levels(moved, LONG, Stretch("T12", "L3"))
    assert np.array_equal(renamed, column(*stretch("T12", "L3"), top=6))


def test_a_whole_vertebra_beyond_the_statement_becomes_background_and_is_listed() -> None:
    labels = column(*stretch("T12", "L4"))
    renamed, naming = rename_levels(labels, LONG, Stretch("L1", "L4"))
    assert naming.unnamed == ("T12 (392 voxels)",)
    assert naming.changes == ("392 voxels of T12 became background",)
    expected = np.where(labels == LONG["T12"].index, 0, labels)
    assert np.array_equal(renamed, expected)


def test_a_piece_too_many_within_the_row_becomes_background() -> None:
    labels = column(*stretch("L1", "L4"))
    labels[:, 6:8, 4:18] = 0  # L1 falls into two pieces, the lower one called T12
    labels[:, 8:14, 4:18] = LONG["T12"].index
    renamed, naming = rename_levels(labels, LONG, Stretch("L1", "L4"))
    assert len(naming.unnamed) == 1
    assert np.array_equal(renamed[:, 14:], column(*stretch("L1", "L4"))[:, 14:])


def test_a_missing_vertebra_is_noticed_by_its_distance_where_names_are_counted() -> None:
    # The tool missed L2 with the disc below it, and counted on: what it calls L2 is L3.
    names = ("L1", "L1/L2", "", "L3/L4", "L2", "L2/L3", "L3", "L3/L4", "L4", "L4/L5")
    counted = column(*names, missing=(2, 3))
    expected = column(*stretch("L1", "L5/S"), missing=(2, 3))
    renamed, _ = rename_levels(counted, LONG, Stretch("L1", "L5"))
    assert np.array_equal(renamed, expected)


def test_two_vertebrae_in_one_piece_do_not_move_the_others() -> None:
    names = stretch("L1", "L5")
    merged = column(*names)
    rows = slice(14 + 6, 14 + 6 + 14 + 6 + 14)  # L2, L2/L3 and L3
    merged[:, rows, 4:18] = LONG["L3"].index
    renamed, _ = rename_levels(merged, LONG, Stretch("L1", "L5"))
    assert np.array_equal(renamed, merged)
    assert np.array_equal(rename_levels(np.where(merged == 0, 0, merged), LONG, Stretch("L1", "L5"))[0], merged)


def test_posterior_elements_follow_their_body_and_the_row_where_the_picture_cuts_it_off() -> None:
    def scene(*names: str, above: str) -> NDArray[np.uint8]:
        labels = column(*names)
        labels[:, 0:3, 32:38] = LONG[above].index  # its body lies above the picture
        labels[:, 18:26, 32:38] = LONG[names[0]].index
        return labels

    shown = stretch("L1/L2", "L4")
    labels = scene("L1/L2", *shown[1:], above="L1")
    labels[:, 18:26, 32:38] = LONG["L2"].index
    expected = np.zeros_like(labels)
    for name in (*shown, "L1"):
        expected[labels == LONG[name].index] = LONG[LONG.neighbour(name, 1) or ""].index
    expected[labels == LONG["SC"].index] = LONG["SC"].index
    renamed, naming = rename_levels(labels, LONG, Stretch("L3", "L5"))
    assert np.array_equal(renamed, expected)
    assert naming.unnamed == ()


def test_a_click_names_one_structure_and_the_others_follow() -> None:
    labels = column(*stretch("L1", "L4"))
    renamed, naming = rename_levels(labels, LONG, Click("L3", (1, 24, 10)))  # on L2
    assert np.array_equal(renamed, column(*stretch("L2", "L5")))
    assert "L3" not in naming.margins
    assert set(naming.margins) == set(stretch("L2", "L5")) - {"L3"}
    unchanged, _ = rename_levels(labels, LONG, Click("L2", (1, 24, 10)))
    assert np.array_equal(unchanged, labels)


def test_a_click_can_push_the_end_of_a_row_out_of_the_atlas() -> None:
    labels = column(*stretch("L3", "L5/S"))
    renamed, naming = rename_levels(labels, LONG, Click("L5", (0, 22, 10)))  # on L4
    assert naming.unnamed == ("L5 (392 voxels)", "L5/S (168 voxels)")
    assert not (renamed == LONG["L3"].index).any()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (Click("L3", (0, 24, 1)), "lies on background; the nearest level is L2, 3 voxels away"),
        (Click("L3", (0, 24, 23)), "lies on SC, which has no place in the row"),
        (Click("L3", (0, 16, 10)), "lies on L1/L2, which belongs to the discs. Click on one of the vertebrae"),
        (Click("L3", (0, 24, 99)), "lies outside the picture"),
        (Click("SC", (0, 24, 10)), "'SC' is no level of atlas 'long'; possible are T11"),
        (Click("L9", (0, 24, 10)), "no structure 'L9'"),
        (Stretch("L4", "L1"), "runs upwards"),
        (Stretch("L4", "S"), "no 'S' in the sequence"),
    ],
)
def test_a_statement_that_does_not_fit_is_refused_with_the_reason(statement: Stretch | Click, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        rename_levels(column(*stretch("L1", "L4")), LONG, statement)


def test_a_landmark_that_contradicts_the_statement_is_reported() -> None:
    labels = column(*stretch("L1", "L5/S"))
    assert rename_levels(labels, LONG, Stretch("L1", "L5"))[1].contradictions == ()
    renamed, naming = rename_levels(labels, LONG, Stretch("T12", "L4"))
    assert np.array_equal(renamed, column(*stretch("T12", "L4/L5")))
    assert naming.contradictions == (
        "the picture contradicts the statement: the picture says L5/S, the statement says L4/L5",
    )
    early = rename_levels(labels, LONG, Stretch("L1", "L3"))[1]
    assert early.contradictions == (
        "the picture contradicts the statement: the picture says L5/S, the statement leaves no room for it",
    )
    beyond = column("L3", "L3/L4", "L4", "L5/S", "L5", "L4/L5")
    assert rename_levels(beyond, LONG, Stretch("L3", "L4"))[1].contradictions


def test_the_stretch_of_a_statement_is_its_first_and_last_level() -> None:
    assert stated_stretch(LONG, ("SC", "L4", "L2", "L3")) == Stretch("L2", "L4")
    assert stated_stretch(LONG, ("SC",)) is None


def test_a_row_of_a_whole_spine_is_named_in_a_fraction_of_a_second() -> None:
    pieces, levels, moves = 50, 50, 13
    generator = np.random.default_rng(0)
    gain = generator.random((moves, pieces, levels))
    started = time.process_time()
    _assign(_Objective(gain, np.zeros((pieces, pieces)), np.zeros((moves, levels)), np.zeros(levels)))
    assert time.process_time() - started < 5


def without_discs(first: str, last: str, *, top: int = 14, bottom: int = 14) -> NDArray[np.uint8]:
    """The vertebrae of a column, as a tool draws them that knows no discs."""
    labels = column(*stretch(first, last), top=top, bottom=bottom)
    return np.where(np.isin(labels, [LONG[name].index for name in DISCS]), 0, labels).astype(np.uint8)


def test_a_list_that_begins_at_a_disc_leaves_no_room_for_a_vertebra_above_it() -> None:
    labels = without_discs("T12", "L5", top=5, bottom=5)
    renamed, _ = rename_levels(labels, LONG, Stretch("L1/L2", "L5/S"))
    for before, after in (("L1", "L2"), ("L2", "L3"), ("L3", "L4"), ("L4", "L5")):
        assert (renamed[labels == LONG[before].index] == LONG[after].index).all()


def test_a_speck_weighs_little_where_its_group_has_nothing_else() -> None:
    labels = without_discs("L1", "L4")
    labels[0, 56, 10] = LONG["L3/L4"].index  # between L3 and L4
    margins = rename_levels(labels, LONG, Stretch("L1", "L4"))[1].margins
    assert margins["L3/L4"] < 0.2
    assert margins["L3"] > 0.8


def test_a_landmark_at_the_upper_end_contradicts_levels_above_it() -> None:
    neck = replace(LONG, landmarks=("T11",))
    labels = column(*stretch("T11", "L2"))
    assert rename_levels(labels, neck, Stretch("T11", "L2"))[1].contradictions == ()
    [moved] = rename_levels(labels, neck, Stretch("T12", "L3"))[1].contradictions
    assert "the picture says T11, the statement says T12" in moved
    above = column("L1", "L1/L2", "T11", "T11/T12", "T12", "T12/L1")
    assert find_contradictions(above, neck, Stretch("T11", "T12")) != ()
    assert find_contradictions(labels, neck, None) == ()


def test_names_that_are_far_off_are_no_reason_to_leave_a_piece_without_one() -> None:
    spine, shown = whole_spine(), column(*stretch("T11", "L2"))
    far, expected = np.zeros_like(shown), np.zeros_like(shown)
    for position, name in enumerate(stretch("T11", "L2")):
        for labels, first in ((far, "C3"), (expected, "L1")):
            level = spine.sequence[spine.sequence.index(first) + position]
            labels[shown == LONG[name].index] = spine[level].index
    renamed, naming = rename_levels(far, spine, Stretch("L1", "L4"))
    assert np.array_equal(renamed, expected)
    assert naming.unnamed == ()


def test_a_vertebra_that_is_cut_may_be_the_last_one_named() -> None:
    labels = column(*stretch("L1", "L4"), bottom=6)
    renamed, _ = rename_levels(labels, LONG, Stretch("T12", "L3"))
    assert np.array_equal(renamed, column(*stretch("T12", "L3"), bottom=6))


def test_posterior_elements_that_touch_the_next_vertebra_keep_their_name() -> None:
    labels = column(*stretch("L1", "L4"))
    labels[:, 46:50, 18:22] = LONG["L2"].index  # at the back of L3
    renamed, naming = rename_levels(labels, LONG, Stretch("L1", "L4"))
    assert np.array_equal(renamed, labels)
    assert naming.changes == ()


def test_two_parts_of_a_disc_at_one_height_are_one_disc() -> None:
    labels = column(*stretch("L1", "L4"))
    labels[:, 34:40, 10] = 0  # L2/L3 in two parts
    for statement in (None, Stretch("L1", "L4")):
        renamed, naming = rename_levels(labels, LONG, statement)
        assert np.array_equal(renamed, labels)
        assert naming.unnamed == ()


def test_the_sacrum_below_the_last_vertebra_needs_no_statement() -> None:
    sacrum = Structure("S", "sacrum", len(LONG.structures) + 1)
    groups = {**LONG.groups, "vertebrae": (*VERTEBRAE, "S")}
    whole = replace(
        LONG, structures=(*LONG.structures, sacrum), sequence=(*ROW, "S"), groups=groups, landmarks=("L5/S", "S")
    )
    lumbar = column(*stretch("L1", "L5/S"))
    labels = np.pad(lumbar, ((0, 0), (0, 14), (0, 0)))
    labels[:, -14:, 4:18] = sacrum.index
    renamed, naming = rename_levels(labels, whole, Stretch("L1", "L5"))
    assert np.array_equal(renamed, labels)
    assert naming.contradictions == ()
