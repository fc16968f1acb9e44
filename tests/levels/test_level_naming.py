from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from textseg.contracts import Atlas, Structure
from textseg.levels.level_naming import Array, as_json, compare_names, totals

LEVELS = 6


@pytest.fixture
def spine() -> Atlas:
    """Six vertebrae from V1 (upper) to V6, the discs between them, and a canal."""
    vertebrae = [f"V{i}" for i in range(1, LEVELS + 1)]
    discs = [f"V{i}/V{i + 1}" for i in range(1, LEVELS)]
    names = [*vertebrae, *discs, "SC"]
    row = tuple(name for pair in zip(vertebrae, [*discs, ""], strict=True) for name in pair if name)
    return Atlas(
        "spine",
        tuple(Structure(name, "part", i) for i, name in enumerate(names, 1)),
        row,
        {"vertebrae": tuple(vertebrae), "discs": tuple(discs), "canal": ("SC",)},
    )


def draw(atlas: Atlas, names: list[str | None]) -> Array:
    """A stack of boxes from top to bottom, named so; vertebrae are 6 rows, discs 2; None leaves its place empty."""
    volume = np.zeros((3, 60, 20), dtype=np.uint8)
    row = 2
    for position, name in enumerate(names):
        height = 2 if position % 2 else 6
        if name is not None:
            volume[:, row : row + height, 4:10] = atlas[name].index
        row += height
    volume[:, 2:row, 12:14] = atlas["SC"].index
    return volume


def test_a_perfect_prediction(spine: Atlas) -> None:
    volume = draw(spine, list(spine.sequence))
    result = compare_names(volume, volume, spine)
    assert (result.matched, result.misnamed, result.shift, result.order_violations, result.duplicates) == (
        12,
        0,
        0,
        0,
        0,
    )
    assert result.dsc == result.dsc_without_names == 1.0


@pytest.mark.parametrize("levels", [1, -1, 2])
def test_everything_one_level_off_is_a_shift_and_right_but_for_the_names(spine: Atlas, levels: int) -> None:
    inner = ["V3", "V3/V4", "V4"]
    reference = draw(spine, [None] * 4 + inner)
    moved = [spine.sequence[spine.sequence.index(name) + 2 * levels] for name in inner]
    result = compare_names(draw(spine, [None] * 4 + moved), reference, spine)
    assert (result.matched, result.misnamed, result.shift) == (4, 3, levels)  # the canal can't be misnamed
    assert result.dsc == pytest.approx(1 / 4)
    assert result.dsc_without_names == 1.0
    assert result.order_violations == 0


def test_two_neighbours_swapped_are_no_shift_but_break_the_order(spine: Atlas) -> None:
    names = list(spine.sequence)
    names[2], names[4] = names[4], names[2]  # V2 and V3
    result = compare_names(draw(spine, names), draw(spine, list(spine.sequence)), spine)
    assert (result.misnamed, result.shift) == (2, 0)
    assert result.order_violations == 2  # V2/V3 lies above V2, and V3 above V2/V3
    assert set(result.names) >= {("V2", "V3"), ("V3", "V2")}
    assert result.dsc == pytest.approx(10 / 12)
    assert result.dsc_without_names == 1.0


def test_a_missed_structure_is_not_misnamed(spine: Atlas) -> None:
    names = [None if name == "V4" else name for name in spine.sequence]
    result = compare_names(draw(spine, names), draw(spine, list(spine.sequence)), spine)
    assert (result.matched, result.misnamed) == (11, 0)
    assert result.dsc == result.dsc_without_names == pytest.approx(11 / 12)


def test_what_hardly_overlaps_is_not_the_same_thing(spine: Atlas) -> None:
    reference, prediction = np.zeros((1, 20, 10), np.uint8), np.zeros((1, 20, 10), np.uint8)
    reference[0, :10] = spine["V1"].index
    prediction[0, 8:18] = spine["V2"].index  # DSC 0.2 by place
    result = compare_names(prediction, reference, spine)
    assert (result.matched, result.misnamed, result.dsc_without_names) == (0, 0, 0.0)
    prediction[0, 5:15] = spine["V2"].index
    assert compare_names(prediction, reference, spine).misnamed == 1


def test_a_poor_structure_with_the_right_name_costs_nothing_by_its_name(spine: Atlas) -> None:
    reference, prediction = np.zeros((1, 20, 10), np.uint8), np.zeros((1, 20, 10), np.uint8)
    reference[0, :10] = spine["V1"].index
    prediction[0, 8:18] = spine["V1"].index  # too little to be a match
    result = compare_names(prediction, reference, spine)
    assert (result.matched, result.dsc, result.dsc_without_names) == (0, 0.2, 0.2)


def test_a_disc_is_no_misnamed_vertebra(spine: Atlas) -> None:
    reference, prediction = np.zeros((1, 20, 10), np.uint8), np.zeros((1, 20, 10), np.uint8)
    reference[0, :10] = spine["V1"].index
    prediction[0, :10] = spine["V1/V2"].index
    assert compare_names(prediction, reference, spine).matched == 0


def test_a_second_part_is_a_duplicate_and_a_crumb_is_not(spine: Atlas) -> None:
    volume = draw(spine, list(spine.sequence))
    double, crumb = volume.copy(), volume.copy()
    double[:, 55:59, 15:19] = spine["V1"].index  # 48 of 108 voxels
    crumb[0, 58, 18] = spine["V1"].index
    assert compare_names(double, volume, spine).duplicates == 1
    assert compare_names(crumb, volume, spine).duplicates == 0


def test_nothing_shown_and_nothing_found(spine: Atlas) -> None:
    nothing = np.zeros((2, 10, 10), np.uint8)
    result = compare_names(nothing, nothing, spine)
    assert result.matched == 0
    assert math.isnan(result.dsc)
    json.dumps(as_json({"a": result}), allow_nan=False)


def test_an_atlas_without_an_order_has_neither_shifts_nor_violations() -> None:
    heart = Atlas("heart", tuple(Structure(n, "part", i) for i, n in enumerate(("LV", "RV"), 1)))
    reference = np.zeros((1, 10, 10), np.uint8)
    reference[0, :5], reference[0, 5:] = 1, 2
    result = compare_names(3 - reference, reference, heart)
    assert (result.matched, result.shift, result.order_violations) == (0, 0, 0)
    grouped = Atlas("heart", heart.structures, groups={"chambers": ("LV", "RV")})
    result = compare_names(3 - reference, reference, grouped)
    assert (result.matched, result.misnamed, result.shift, result.dsc, result.dsc_without_names) == (2, 2, 0, 0.0, 1.0)


def test_totals_and_what_is_written(spine: Atlas) -> None:
    reference = draw(spine, [None] * 4 + ["V3", "V3/V4", "V4"])
    right = compare_names(reference, reference, spine)
    shifted = compare_names(draw(spine, [None] * 4 + ["V4", "V4/V5", "V5"]), reference, spine)
    result = totals({"a": right, "b": shifted})
    assert (result["cases"], result["level_shift_rate"], result["misnamed"], result["matched"]) == (2, 0.5, 3, 8)
    assert result["misnamed_rate"] == pytest.approx(3 / 8)
    assert {"reference": "V3", "prediction": "V4", "count": 1} in result["swaps"]
    assert len(result["swaps"]) == 3
    written = json.loads(json.dumps(as_json({"a": right, "b": shifted}), allow_nan=False))
    assert [row["case"] for row in written["cases"]] == ["a", "b"]
    assert written["cases"][1]["shift"] == 1
    assert "names" not in written["cases"][0]


def test_in_axial_slices_the_order_is_that_of_the_slices(spine: Atlas) -> None:
    axial = replace(spine, plane="axial")
    right = np.moveaxis(draw(spine, list(spine.sequence)), 1, 0)
    assert compare_names(right, right, axial).order_violations == 0
    assert compare_names(right[::-1], right, axial).order_violations == len(spine.sequence) - 1
