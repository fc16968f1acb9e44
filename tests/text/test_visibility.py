from __future__ import annotations

from dataclasses import replace

import pytest

from textseg.contracts import Atlas, Structure, Visibility
from textseg.errors import DataError
from textseg.text.visibility import (
    ground_truth_visibility,
    predicted_visibilities,
    shifted,
    template_visibility,
)


@pytest.fixture
def heart() -> Atlas:
    """An atlas without an order."""
    return Atlas("heart", (Structure("LV", "ventricle", 1), Structure("myocardium", "myocardium", 2)))


def test_template_lists_everything(small_atlas: Atlas) -> None:
    facts = {"sequence": "T1"}
    assert template_visibility(small_atlas, facts) == Visibility(
        ("L2", "L1", "L1/L2", "SC"), source="template", scope="volume", facts=facts
    )


def test_ground_truth_speaks_of_one_slice(small_atlas: Atlas) -> None:
    visibility = ground_truth_visibility(small_atlas, [3, 0, 1, 1])
    assert visibility == Visibility(("L2", "L1/L2"), source="ground_truth", scope="slice")
    with pytest.raises(DataError, match=r"class indices \[5, 25\], and atlas 'small' has 0 to 4"):
        ground_truth_visibility(small_atlas, [25, 1, 5])


def test_a_miscounted_stretch_moves_by_structures_of_one_kind_and_is_never_cut(small_atlas: Atlas) -> None:
    assert shifted(small_atlas, "L1", "L1", 1) == "L2:L2"
    assert shifted(small_atlas, "L2", "L2", -1) == "L1:L1"
    assert shifted(small_atlas, "L1", "L2", 0) == "L1:L2"
    assert shifted(small_atlas, "L2", "L2", 1) is None
    assert shifted(small_atlas, "L1", "L2", 1) is None  # L1 could move, L2 could not
    assert shifted(small_atlas, "L1", "L1/L2", -1) is None
    ungrouped = Atlas("bare", small_atlas.structures, small_atlas.sequence)
    assert shifted(ungrouped, "L1", "L1/L2", 1) == "L1/L2:L2"
    # Each structure between the ends needs a successor, too: here the disc has none.
    discs = replace(small_atlas, sequence=("L1/L2", "L1", "L2"))
    assert shifted(discs, "L1", "L1", 1) == "L2:L2"
    assert shifted(discs, "L1/L2", "L1", 1) is None


def test_what_a_first_pass_may_predict(small_atlas: Atlas, heart: Atlas) -> None:
    predicted = [visibility.visible for visibility in predicted_visibilities(small_atlas, {"sex": "male"})]
    stretches = [visibility.visible for visibility in small_atlas.visibilities()]
    assert predicted == list(dict.fromkeys(stretches))
    assert len(set(predicted)) == len(predicted) == 6  # three structures in a row; the whole row is the template, too
    sets = [visibility.visible for visibility in predicted_visibilities(heart)]
    assert len(set(sets)) == len(sets) == 2 ** len(heart.names) - 1
    crowd = Atlas("crowd", tuple(Structure(f"s{i}", "part", i) for i in range(1, 9)))
    assert [visibility.visible for visibility in predicted_visibilities(crowd)] == [crowd.names]
    assert {visibility.source for visibility in predicted_visibilities(crowd)} == {"predicted"}
