from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from textseg.contracts import Atlas, Structure
from textseg.errors import DataError
from textseg.levels.obedience import (
    MINIMUM_VOXELS,
    TABLE_HEADER,
    ComparedPicture,
    PictureObedience,
    as_json,
    conclusion,
    direction,
    obedience,
    shows_landmark,
    summarise,
    table_rows,
    write_obedience,
)
from textseg.volumes.geometry import Array

VERTEBRAE = ("V1", "V2", "V3", "V4", "V5", "V6")
DISCS = ("V1/V2", "V2/V3", "V3/V4", "V4/V5", "V5/V6")
SEQUENCE = ("V1", "V1/V2", "V2", "V2/V3", "V3", "V3/V4", "V4", "V4/V5", "V5", "V5/V6", "V6")


def spine(*, groups: bool = True, sequence: tuple[str, ...] = SEQUENCE) -> Atlas:
    """Six vertebrae, the discs between them, and a canal outside the sequence; V6 is a landmark."""
    names = (*VERTEBRAE, *DISCS, "SC")
    return Atlas(
        "spine",
        tuple(Structure(name, "part", index) for index, name in enumerate(names, start=1)),
        sequence,
        {"vertebrae": VERTEBRAE, "discs": DISCS, "canal": ("SC",)} if groups else {},
        landmarks=("V6",),
    )


def draw(atlas: Atlas, *names: str | None) -> Array:
    """A stack of boxes from top to bottom with these names; None leaves the position empty."""
    volume = np.zeros((2, 60, 12), dtype=np.uint8)
    for position, name in enumerate(names):
        if name:
            volume[:, 4 * position : 4 * position + 4, 2:8] = atlas[name].index
    volume[:, :, 9:11] = atlas["SC"].index
    return volume


INNER = ("V2", "V2/V3", "V3", "V3/V4", "V4")
UP = ("V1", "V1/V2", "V2", "V2/V3", "V3")
DOWN = ("V3", "V3/V4", "V4", "V4/V5", "V5")


@pytest.mark.parametrize(("names", "levels"), [(UP, -1), (DOWN, 1)])
def test_a_model_that_follows_has_1_and_one_that_ignores_its_text_has_0(names: tuple[str, ...], levels: int) -> None:
    atlas = spine()
    right = draw(atlas, *INNER)
    follows = obedience(right, draw(atlas, *names), atlas, levels)
    assert (follows.value, follows.structures, follows.followed, follows.vanished) == (1.0, 5, 5, 0)
    assert dict(follows.names) == dict(zip(INNER, names, strict=True))
    ignores = obedience(right, right, atlas, levels)
    assert (ignores.value, ignores.structures, ignores.vanished) == (0.0, 5, 0)
    assert obedience(right, draw(atlas, *names), atlas, -levels).value == 0  # the names moved the other way


def test_names_that_move_too_far_do_not_follow() -> None:
    atlas = spine()
    right, moved = draw(atlas, "V2", "V2/V3"), draw(atlas, "V4", "V4/V5")
    assert obedience(right, moved, atlas, 1).value == 0
    assert obedience(right, moved, atlas, 2).value == 1


def test_the_share_of_structures_that_follow() -> None:
    atlas = spine()
    partly = obedience(draw(atlas, *INNER), draw(atlas, "V1", "V1/V2", "V2", "V3/V4", "V4"), atlas, -1)
    assert (partly.value, partly.followed, partly.structures) == (3 / 5, 3, 5)


def test_a_structure_that_vanished_counts_as_0_and_is_counted_apart() -> None:
    atlas = spine()
    moved = draw(atlas, "V1", "V1/V2", None, "V2/V3", "SC")
    result = obedience(draw(atlas, *INNER), moved, atlas, -1)
    assert (result.value, result.followed, result.vanished) == (3 / 5, 3, 2)
    assert dict(result.names)["V3"] is None
    assert dict(result.names)["V4"] is None  # in its place is a structure outside the sequence


def test_a_structure_at_the_end_of_the_atlas_is_left_out() -> None:
    atlas = spine()
    right = draw(atlas, "V4", "V4/V5", "V5", "V5/V6", "V6")
    moved = draw(atlas, "V5", "V5/V6", "V6", None, None)
    result = obedience(right, moved, atlas, 1)
    assert (result.value, result.structures, result.at_end) == (1.0, 3, 2)  # V5/V6 and V6 have no successor
    assert obedience(draw(atlas, "V6"), draw(atlas, "V6"), atlas, 1).structures == 0
    assert math.isnan(obedience(draw(atlas, "V6"), draw(atlas, "V6"), atlas, 1).value)


def test_what_is_smaller_than_the_minimum_does_not_count() -> None:
    atlas = spine()
    right = draw(atlas, *INNER)
    for voxels, structures in ((MINIMUM_VOXELS - 1, 5), (MINIMUM_VOXELS, 6)):
        crumbs = right.copy()
        crumbs[0, 50:].reshape(-1)[:voxels] = atlas["V1"].index
        assert obedience(crumbs, crumbs, atlas, 1).structures == structures


def test_an_outline_that_changes_is_still_the_same_structure() -> None:
    atlas = spine()
    right, moved = draw(atlas, *INNER), np.roll(draw(atlas, *UP), 1, axis=1)
    assert obedience(right, moved, atlas, -1).value == 1.0  # DSC by place is 0.75


def test_atlases_with_a_single_group_without_groups_and_without_order() -> None:
    single = Atlas("discs", tuple(Structure(n, "disc", i) for i, n in enumerate((*DISCS, "SC"), 1)), DISCS)
    single = replace(single, groups={"discs": DISCS})
    result = obedience(draw(single, *DISCS[1:4]), draw(single, *DISCS[2:5]), single, 1)
    assert (result.value, result.structures) == (1.0, 3)
    # Without groups the next level is the next structure of the sequence.
    ungrouped = spine(groups=False)
    right = draw(ungrouped, *INNER)
    result = obedience(right, draw(ungrouped, "V2/V3", "V3", "V3/V4", "V4", "V4/V5"), ungrouped, 1)
    assert (result.value, result.structures) == (1.0, 5)
    assert obedience(right, draw(ungrouped, *DOWN), ungrouped, 1).value == 0
    unordered = spine(sequence=())
    assert obedience(draw(unordered, *INNER), draw(unordered, *DOWN), unordered, 1).structures == 0


def test_two_pictures_of_different_shape_are_refused() -> None:
    atlas = spine()
    with pytest.raises(DataError, match=r"has the shape \(2, 60, 12\), that of the moved text \(1, 60, 12\)"):
        obedience(draw(atlas, *INNER), draw(atlas, *INNER)[:1], atlas, 1)


def test_a_landmark_is_shown_from_the_minimum_size() -> None:
    atlas = spine()
    assert shows_landmark(draw(atlas, "V5", "V5/V6", "V6"), atlas)
    assert not shows_landmark(draw(atlas, *INNER), atlas)
    assert not shows_landmark(draw(atlas, "V6"), replace(atlas, landmarks=()))


def compared(patient: str, value: int, levels: int = -1, *, landmark: bool = True, of: int = 4) -> ComparedPicture:
    return ComparedPicture(f"{patient}_t2", patient, landmark, PictureObedience(levels, of, value, 1 if of else 0, 0))


def test_the_mean_is_over_structures_then_pictures_then_patients() -> None:
    pictures = [compared("a", 4), compared("a", 2), compared("b", 0), compared("b", 0, of=0)]
    total = summarise(pictures)[0]
    assert total.interval.value == pytest.approx((0.75 + 0) / 2)  # not the mean of the three pictures
    assert (total.interval.patients, total.pictures, total.structures, total.vanished) == (2, 3, 12, 3)
    assert total.interval.low < total.interval.value < total.interval.high


def test_directions_and_landmarks_have_rows_of_their_own() -> None:
    pictures = [
        compared("a", 4, -1, landmark=False),
        compared("a", 0, -1, landmark=True),
        compared("a", 2, 1, landmark=False),
        compared("b", 4, -1, landmark=False),
    ]
    rows = {(row.levels, row.landmark): row for row in summarise(pictures)}
    everywhere = [(None, None), (None, True), (None, False)]
    assert list(rows) == [*everywhere, (-1, None), (-1, True), (-1, False), (1, None), (1, False)]
    assert {key: row.interval.value for key, row in rows.items()} == {
        (None, None): pytest.approx(0.75),
        (None, True): 0.0,
        (None, False): pytest.approx(0.875),
        (-1, None): 0.75,
        (-1, True): 0.0,
        (-1, False): 1.0,
        (1, None): 0.5,
        (1, False): 0.5,
    }
    assert math.isnan(rows[1, None].interval.low)  # one patient has no interval
    written = json.loads(json.dumps(as_json(pictures), allow_nan=False))
    without, _, with_landmark = written["conclusion"].partition("; ")
    assert without.startswith("without a landmark, obedience 0.88 [")
    assert with_landmark == "with a landmark, obedience 0.00 (1 patient): the names do not follow the text"
    assert written["by_patient"] == {"a": 0.5, "b": 1.0}
    assert written["summaries"][6] == {
        "levels": 1,
        "landmark": None,
        "obedience": 0.5,
        "low": None,
        "high": None,
        "patients": 1,
        "pictures": 1,
        "structures": 4,
        "vanished": 1,
    }
    cells = table_rows(written)
    assert {len(row) for row in cells} == {len(TABLE_HEADER)}
    assert cells[6] == ["one level down", "with and without a landmark", "0.50", "1", "1", "4", "1"]
    assert cells[5][:3] == ["one level up", "without a landmark", "1.00 (1.00 to 1.00)"]
    assert direction(-2) == "2 levels up"


def test_nothing_to_compare() -> None:
    summaries = summarise([compared("a", 0, of=0)])
    (total,) = summaries
    assert (total.pictures, total.interval.patients) == (0, 0)
    assert conclusion(summaries).startswith("obedience is not known")
    record = as_json([compared("a", 0, of=0)])
    json.dumps(record, allow_nan=False)
    assert record["by_patient"] == {}
    assert table_rows(record)[0][2] == "–"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (4, "obedience 1.00 [1.00, 1.00]: the names follow the text"),
        (2, "obedience 0.50 [0.50, 0.50]: the names follow the text in part"),
        (0, "obedience 0.00 [0.00, 0.00]: the names do not follow the text"),
    ],
)
def test_the_conclusion_has_the_number(value: int, sentence: str) -> None:
    assert conclusion(summarise([compared("a", value), compared("b", value)])) == sentence
    alone = conclusion(summarise([compared("a", value)]))
    assert alone == sentence.replace(f"[{value / 4:.2f}, {value / 4:.2f}]", "(1 patient)")


def test_the_table_has_a_row_for_each_picture(tmp_path: Path) -> None:
    write_obedience(tmp_path / "obedience.csv", [compared("a", 3), compared("b", 0, 1, landmark=False, of=0)])
    with (tmp_path / "obedience.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["obedience"] for row in rows] == ["0.75", ""]
    assert [(row["patient"], row["levels"], row["landmark"]) for row in rows] == [("a", "-1", "yes"), ("b", "1", "no")]
