"""Windows of a volume, and the structures that a person names in them."""

from __future__ import annotations

import numpy as np
import pytest

from textseg.data.field_of_view import Window, fixed_windows, named_structures
from textseg_spine.atlas import lumbar_mrspineseg, lumbar_spider


def test_the_fixed_windows_are_upper_end_middle_and_lower_end():
    assert fixed_windows(0.5, (100, 40)) == (Window(0, 0, 50, 40), Window(25, 0, 50, 40), Window(50, 0, 50, 40))
    assert fixed_windows(1.0, (100, 40)) == (Window(0, 0, 100, 40),)
    volume = np.arange(2 * 100 * 40).reshape(2, 100, 40)
    np.testing.assert_array_equal(volume[fixed_windows(0.5, (100, 40))[2].slices], volume[:, 50:])


def test_a_person_names_the_first_and_the_last_structure_with_a_third_of_its_size_and_all_between():
    atlas = lumbar_spider()
    size = {structure.index: 100.0 for structure in atlas.structures}
    seen = {atlas["T12"].index: 29.0, atlas["L1"].index: 30.0, atlas["L3"].index: 80.0, atlas["SC"].index: 50.0}
    assert named_structures(atlas, size, seen) == ("L3", "L2", "L1", "L2/L3", "L1/L2", "SC")
    assert named_structures(atlas, size, {}) == ()


@pytest.mark.parametrize(
    ("name", "levels", "neighbour"),
    [("L4", 1, "L5"), ("L4/L5", 1, "L5/S"), ("L5", 1, None), ("L4", -2, "L2"), ("T9", -1, None), ("SC", 1, None)],
)
def test_a_level_is_the_next_structure_of_the_same_group(name, levels, neighbour):
    assert lumbar_spider().neighbour(name, levels) == neighbour


def test_the_sacrum_is_the_vertebra_below_l5():
    assert lumbar_mrspineseg().neighbour("L5", 1) == "S"
    assert lumbar_mrspineseg().landmarks == ("S", "L5/S")
