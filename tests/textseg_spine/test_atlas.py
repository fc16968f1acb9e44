from __future__ import annotations

import pytest

from textseg.contracts import Atlas
from textseg_spine.atlas import lumbar_mrspineseg, lumbar_spider, whole_spine

# The order of the columns of the paper's tables.
VERTEBRAE = ["L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9"]
DISCS = ["L5/S", "L4/L5", "L3/L4", "L2/L3", "L1/L2", "T12/L1", "T11/T12", "T10/T11", "T9/T10"]
UPPER = ["T9", "T9/T10", "T10", "T10/T11", "T11", "T11/T12", "T12", "T12/L1"]
LOWER = ["L1", "L1/L2", "L2", "L2/L3", "L3", "L3/L4", "L4", "L4/L5", "L5", "L5/S"]


def test_classes_stand_in_the_papers_order() -> None:
    assert list(lumbar_spider().names) == [*VERTEBRAE, *DISCS, "SC"]
    assert list(lumbar_mrspineseg().names) == ["S", *VERTEBRAE, *DISCS]
    assert lumbar_spider().class_count == lumbar_mrspineseg().class_count == 20


def test_sequences_run_downwards() -> None:
    assert list(lumbar_spider().sequence) == [*UPPER, *LOWER]
    assert list(lumbar_mrspineseg().sequence) == [*UPPER, *LOWER, "S"]


@pytest.mark.parametrize("atlas", [lumbar_spider(), lumbar_mrspineseg(), whole_spine()], ids=lambda atlas: atlas.name)
def test_groups_share_out_all_structures(atlas: Atlas) -> None:
    grouped = [name for group in atlas.groups.values() for name in group]
    assert sorted(grouped) == sorted(atlas.names)


@pytest.mark.parametrize("atlas", [lumbar_spider(), lumbar_mrspineseg(), whole_spine()], ids=lambda atlas: atlas.name)
def test_neighbours_in_the_sequence_are_adjacent(atlas: Atlas) -> None:
    pairs = set(atlas.adjacent)
    assert len(pairs) == len(atlas.adjacent)
    assert {("L4", "L4/L5"), ("L4/L5", "L5"), ("T9", "T9/T10")} <= pairs
    assert ("L4", "L5") not in pairs
    assert (("L5/S", "S") in pairs) == ("S" in atlas.names)
    assert (("L5", "SC") in pairs) == ("SC" in atlas.names)


def test_families_are_anatomically_right() -> None:
    atlas = lumbar_mrspineseg()
    assert atlas["L1"].family == "lumbar vertebra"
    assert atlas["T12"].family == "thoracic vertebra"
    assert atlas["T12/L1"].family == "intervertebral disc"
    assert atlas["S"].family == "sacrum"
    assert lumbar_spider()["SC"].family == "spinal canal"


def test_a_stretch_keeps_the_canal() -> None:
    assert lumbar_spider().between("L4", "L5") == ("L5", "L4", "L4/L5", "SC")


def test_groups_collapse_the_structures() -> None:
    atlas, classes = lumbar_spider().collapsed()
    assert atlas.names == ("vertebrae", "discs", "canal")
    full = lumbar_spider()
    assert [classes[full[name].index] for name in ("L5", "T9", "L5/S", "SC")] == [1, 1, 2, 3]
    assert sorted(classes) == list(range(full.class_count))


def test_the_whole_spine_has_a_level_for_each_value_of_the_tools() -> None:
    atlas = whole_spine()
    assert list(atlas.sequence[:6]) == ["C1", "C2", "C2/C3", "C3", "C3/C4", "C4"]
    assert list(atlas.sequence[-19:]) == [*UPPER, *LOWER, "S"]
    assert set(lumbar_spider().names) <= set(atlas.names)
    for scheme, others in (("totalspineseg", {"spinal cord"}), ("totalsegmentator", {"spinal cord", "S1"})):
        assert set(atlas.label_schemes[scheme].values()) - set(atlas.names) == others
    assert atlas.neighbour("T12", 1) == "L1"
    assert atlas.neighbour("C7/T1", 1) == "T1/T2"
