from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from textseg.contracts import Atlas, Structure, Visibility
from textseg.errors import DataError, PromptError
from textseg.text.visibility import (
    ground_truth_visibility,
    interactive_visibility,
    predicted_visibilities,
    read_statements,
    shifted,
    statement,
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


@pytest.mark.parametrize(
    ("named", "visible"),
    [
        ("L1:L1/L2", ("L1", "L1/L2", "SC")),
        (" L1 : L2 ", ("L2", "L1", "L1/L2", "SC")),
        ("SC, L1", ("L1", "SC")),
        ("L2", ("L2",)),
        (["SC", "L2", "SC"], ("L2", "SC")),
    ],
)
def test_interactive_names_in_class_order(small_atlas: Atlas, named: str | list[str], visible: tuple[str, ...]) -> None:
    assert interactive_visibility(small_atlas, named) == Visibility(visible, source="interactive", scope="volume")


def test_interactive_stretches_are_visibilities_of_the_atlas(small_atlas: Atlas) -> None:
    listed = list(small_atlas.visibilities())
    assert template_visibility(small_atlas) in listed
    assert interactive_visibility(small_atlas, "L1/L2:L2") in listed


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("L2:L1", "runs upwards"),
        ("L1:L9", "no 'L9' in the sequence"),
        ("L1:", "is no stretch"),
        ("L1:L2:L1", "is no stretch"),
        ("L1:SC", "no 'SC' in the sequence"),
        ("", "No visible structure is named"),
        ([], "No visible structure is named"),
        ("L1,L7", "has no structure 'L7'"),
    ],
)
def test_interactive_mistakes(small_atlas: Atlas, named: str | list[str], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        interactive_visibility(small_atlas, named)


def test_a_stretch_needs_an_order(heart: Atlas) -> None:
    with pytest.raises(PromptError, match="has no order"):
        interactive_visibility(heart, "LV:myocardium")


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


def test_a_statement_reads_back_as_what_was_stated(small_atlas: Atlas, heart: Atlas) -> None:
    for visibility in small_atlas.visibilities():
        text = statement(small_atlas, visibility.visible)
        assert ":" in text
        assert interactive_visibility(small_atlas, text).visible == visibility.visible
    assert statement(small_atlas, ("L2", "L1")) == "L2, L1"  # without the canal, which a stretch would include
    assert statement(heart, heart.names) == ", ".join(heart.names)


def test_statements_in_a_table(tmp_path: Path) -> None:
    assert read_statements("L1:L2", ["a", "b"]) == {"a": "L1:L2", "b": "L1:L2"}
    table = tmp_path / "visible.csv"
    table.write_text("case,visible,annotated\na,L1:L2,\nb,L2,L2\nother,L1,\n")
    assert read_statements(str(table), ["b"])["b"] == "L2"
    with pytest.raises(PromptError, match="has no row for case 'othr'. Did you mean 'other'"):
        read_statements(str(table), ["othr"])
    table.write_text("case\na\n")
    with pytest.raises(PromptError, match="needs the columns case and visible"):
        read_statements(str(table), ["a"])
    with pytest.raises(PromptError, match=r"missing.csv' can't be read"):
        read_statements(str(tmp_path / "missing.csv"), ["a"])
