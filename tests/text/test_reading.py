"""Sixty statements, twenty of them refused, and the rules behind them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from textseg.contracts import Atlas, Structure, Visibility
from textseg.errors import PromptError
from textseg.text.reading import interactive_visibility, read_cases, read_statements, readings, summary, unstated
from textseg.text.visibility import statement, template_visibility
from textseg_spine.atlas import lumbar_mrspineseg, lumbar_spider


def heart() -> Atlas:
    """Return an atlas without an order, with synonyms."""
    structures = (
        Structure("right ventricle", "right ventricle", 1, synonyms=("RV",)),
        Structure("myocardium", "myocardium", 2, synonyms=("MYO",)),
        Structure("left ventricle", "left ventricle", 3, synonyms=("LV",)),
    )
    return Atlas("heart", structures, groups={"ventricles": ("right ventricle", "left ventricle")}, plane="short_axis")


ATLASES = {"spider": lumbar_spider(), "mrspineseg": lumbar_mrspineseg(), "heart": heart()}
T11_L3 = "T11:L3, 9 structures and the spinal canal"
WITHOUT_CANAL = "T11:L3, 9 structures without the spinal canal"

READ = [
    # Stretches.
    ("spider", "T11:L3", T11_L3),
    ("spider", "T11 to L3", T11_L3),
    ("spider", "from T11 through L3", T11_L3),
    ("spider", "t11-l3", T11_L3),
    ("spider", "T11 \u2013 L3", T11_L3),
    ("spider", "T11/L3", T11_L3),
    ("spider", "D11 to L3", T11_L3),
    ("spider", "Th. 11 to L 3", T11_L3),
    ("spider", "The image shows the levels from T11 down to L3.", T11_L3),
    ("spider", "vertebrae T11 to L3 are visible", T11_L3),
    ("spider", "T12/L1-L3/L4", "T12/L1:L3/L4, 7 structures and the spinal canal"),
    ("spider", "T11-T12/L1", "T11:T12/L1, 4 structures and the spinal canal"),
    ("spider", "L1 through 5", "L1:L5, 9 structures and the spinal canal"),
    ("spider", "lumbar vertebrae 1 to 5", "L1:L5, 9 structures and the spinal canal"),
    ("spider", "L3 to L3", "L3:L3, 1 structure and the spinal canal"),
    ("spider", "everything", "T9:L5/S, 18 structures and the spinal canal"),
    ("mrspineseg", "T11 to the sacrum", "T11:S, 15 structures"),
    ("mrspineseg", "T11-S1", "T11:S, 15 structures"),
    # Discs.
    ("spider", "L4/L5", "1 structure: L4/L5"),
    ("spider", "L4-L5", "1 structure: L4/L5"),
    ("spider", "T12/L1", "1 structure: T12/L1"),
    ("spider", "the disc L4/5", "1 structure: L4/L5"),
    ("spider", "Th11/12", "1 structure: T11/T12"),
    ("spider", "L5-S1", "1 structure: L5/S"),
    ("mrspineseg", "L5/S1 disk", "1 structure: L5/S"),
    # Lists, which name exactly these structures.
    ("spider", "L4, L5 and the spinal canal", "3 structures: L4, L5, SC"),
    ("spider", "L1, 2 and 3", "3 structures: L1, L2, L3"),
    ("spider", "vertebra L4", "1 structure: L4"),
    ("spider", "lumbar 4", "1 structure: L4"),
    ("spider", "all vertebrae", "9 structures: T9, T10, T11, T12, L1, L2, L3, L4, L5"),
    ("heart", "LV and MYO", "2 structures: myocardium, left ventricle"),
    ("heart", "both ventricles", "2 structures: right ventricle, left ventricle"),
    # Negations.
    ("spider", "T11 to L3, no canal", WITHOUT_CANAL),
    ("spider", "T11:L3 without the spinal canal", WITHOUT_CANAL),
    ("spider", "T11 to L3; SC isn't visible", WITHOUT_CANAL),
    ("spider", "T11 to L3 but not L4 to L5", T11_L3),
    ("spider", "L4 and L5 are not visible. T11 to L3 can be seen.", T11_L3),
    ("spider", "everything except T9, no T9/T10 or L5/S", "T10:L5, 15 structures and the spinal canal"),
    ("heart", "left ventricle, myocardium, no right ventricle", "2 structures: myocardium, left ventricle"),
    ("heart", "all but the RV", "2 structures: myocardium, left ventricle"),
]

REFUSED = [
    # Nothing is named, or nothing that is visible.
    ("spider", "", "No visible structure is named; name at least one of atlas 'lumbar_spider': L5, L4"),
    ("spider", "visible", "'visible': No visible structure is named"),
    ("spider", "without the canal", "only SC is named, as not visible. .* such as 'everything without SC'"),
    ("heart", "no right ventricle", "only right ventricle is named, as not visible"),
    ("heart", "ventricles without ventricles", "No visible structure is named"),
    # Unknown names, and words that the grammar doesn't have.
    ("spider", "L7", "has no structure 'L7'. Possible: L1, L1/L2"),
    ("spider", "T11 to L6", "'T11 to L6': 'T11:L6': no 'L6' in the sequence"),
    ("spider", "C8", "has no structure 'C8'"),
    ("spider", "probably L4 to L5", "no 'probably L4' in the sequence"),
    ("spider", "L4 or L5", "has no structure 'L4 or L5'"),
    ("heart", "left ventrikel", "Did you mean 'left ventricle'"),
    # Contradictory, upwards, or to be read in two ways.
    ("spider", "L5 to T10", "'L5:T10' runs upwards; name the upper structure first: 'T10:L5'"),
    ("spider", "T11 to L3, no L3", "'L3' is named as visible and as not visible"),
    ("spider", "L4 visible, L4 not visible", "'L4' is named as visible and as not visible"),
    ("spider", "T11/T12/L1", "can be read in 2 ways"),
    ("spider", "no L4, L5", "'L5' follows a negation"),
    ("spider", "L3, L4 not visible", "may be the end of a longer list"),
    ("spider", "disc L4", "'disc L4': L4 is a structure of the kind 'lumbar vertebra'"),
    ("spider", "T11 to L3, no", "'no' ends with a negation"),
    ("heart", "LV to RV", "has no order"),
]


def test_these_are_sixty_statements() -> None:
    assert (len(READ), len(REFUSED)) == (40, 20)


@pytest.mark.parametrize(("atlas", "text", "shown"), READ)
def test_a_statement_is_read(atlas: str, text: str, shown: str) -> None:
    visibility = interactive_visibility(ATLASES[atlas], text)
    assert summary(ATLASES[atlas], visibility.visible) == shown
    assert (visibility.source, visibility.scope, visibility.counted) == ("interactive", "volume", True)


@pytest.mark.parametrize(("atlas", "text", "message"), REFUSED)
def test_a_statement_is_refused(atlas: str, text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        interactive_visibility(ATLASES[atlas], text)
    assert f"'{text}'" in str(caught.value) or not text  # the message quotes what was read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L2:L1", "runs upwards"),
        ("L1:L9", "no 'L9' in the sequence"),
        ("L1:", "is no stretch"),
        ("L1:L2:L1", "is no stretch"),
        ("L1:SC", "no 'SC' in the sequence"),
        (",", "No visible structure is named"),
        ([], "No visible structure is named"),
        ("L1,L7", "has no structure 'L7'"),
        (["L1 to L2"], "has no structure 'L1 to L2'"),
        ("5 lumbar vertebrae", "has no structure '5 lumbar vertebrae'"),
        ("lumbar 1 2", "has no structure 'lumbar 1 2'"),
        ("not sure", "has no structure 'sure'"),
        ("L1?", "has no structure 'L1[?]'"),
        ("L1 is not not visible", "has two negations"),
        ("no not L1", "has two negations"),
        ("SC, L1, and L2 are not visible", "may be the end of a longer list"),
        ("L1 without L2 with SC", "has no structure 'L2 with SC'"),
        ("L1 visible L2", "is not clear; write a comma"),
        ("lumbar vertebra", "may be any of L2, L1"),
        ("vertebra 2", "has no structure 'vertebra 2'"),  # the second of those in view, or L2
    ],
)
def test_more_mistakes(small_atlas: Atlas, text: str | list[str], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        interactive_visibility(small_atlas, text)


@pytest.mark.parametrize(
    ("named", "visible"),
    [
        ("L1:L1/L2", ("L1", "L1/L2", "SC")),
        (" L1 : L2 ", ("L2", "L1", "L1/L2", "SC")),
        ("SC, L1", ("L1", "SC")),
        ("disc", ("L1/L2",)),
        (["SC", "l2", "SC"], ("L2", "SC")),
    ],
)
def test_structures_are_in_class_order(small_atlas: Atlas, named: str | list[str], visible: tuple[str, ...]) -> None:
    assert interactive_visibility(small_atlas, named) == Visibility(visible, source="interactive", scope="volume")


def test_interactive_stretches_are_visibilities_of_the_atlas(small_atlas: Atlas) -> None:
    listed = list(small_atlas.visibilities())
    assert template_visibility(small_atlas) in listed
    assert interactive_visibility(small_atlas, "L1/L2:L2") in listed


def test_facts_go_with_what_was_read(small_atlas: Atlas) -> None:
    assert interactive_visibility(small_atlas, "L1", {"sex": "female"}).facts == {"sex": "female"}


def test_names_may_have_words_of_the_grammar_in_them() -> None:
    names = ("white and grey matter", "tumor without necrosis", "non-enhancing tumor", "A", "way to the_eye", "s")
    synonyms = {"s": ("stem and pons",)}
    structures = (Structure(name, name, i, synonyms=synonyms.get(name, ())) for i, name in enumerate(names, start=1))
    atlas = Atlas("head", tuple(structures))
    assert interactive_visibility(atlas, "A; stem and pons").visible == ("A", "s")
    for name in names:
        assert interactive_visibility(atlas, name).visible == (name,)
    text = "white and grey matter, A and the way to the_eye, no tumor without necrosis"
    assert interactive_visibility(atlas, text).visible == ("white and grey matter", "A", "way to the_eye")
    with pytest.raises(PromptError, match="has no structure 'white and grey matter cyst'"):
        interactive_visibility(atlas, "white and grey matter cyst")


def test_a_structure_without_a_family_is_read_by_its_name() -> None:
    assert interactive_visibility(Atlas("bare", (Structure("L1", "", 1),)), "the L1").visible == ("L1",)


def test_names_that_differ_in_case_alone_are_read_exactly() -> None:
    atlas = Atlas("cases", (Structure("s", "part", 1), Structure("S", "part", 2)))
    assert interactive_visibility(atlas, ["s"]).visible == interactive_visibility(atlas, "s").visible == ("s",)
    assert interactive_visibility(atlas, "S").visible == ("S",)


def test_a_name_comes_before_a_synonym_of_another_structure() -> None:
    structures = (Structure("RV", "vein", 1, synonyms=("portal vein", "LV")), Structure("LV", "ventricle", 2))
    atlas = Atlas("mixed", structures)
    assert interactive_visibility(atlas, "lv").visible == ("LV",)
    assert interactive_visibility(atlas, "Portal vein").visible == ("RV",)


@pytest.mark.parametrize("atlas", ATLASES.values(), ids=ATLASES)
def test_a_statement_reads_back_as_what_was_stated(atlas: Atlas) -> None:
    for visibility in atlas.visibilities():
        assert interactive_visibility(atlas, statement(atlas, visibility.visible)).visible == visibility.visible
    for name in atlas.names:
        assert interactive_visibility(atlas, name).visible == (name,)


def test_statement_uses_a_stretch_only_with_everything_outside_the_sequence(small_atlas: Atlas) -> None:
    assert statement(small_atlas, small_atlas.names) == "L1:L2"
    assert statement(small_atlas, ("L2", "L1")) == "L2, L1"  # without the canal, which a stretch would include


def test_statements_in_a_table(tmp_path: Path, small_atlas: Atlas) -> None:
    assert read_statements("L1:L2", ["a", "b"]) == {"a": "L1:L2", "b": "L1:L2"}
    table = tmp_path / "visible.csv"
    table.write_text('case,visible,annotated\na,L1 to L2,\nb,"L2, no canal",L2\nother,L1,\n')
    assert read_statements(str(table), ["b"])["b"] == "L2, no canal"
    cases = read_cases(small_atlas, str(table), ["a", "b"])
    assert [visibility.visible for visibility in cases.values()] == [small_atlas.names, ("L2",)]
    with pytest.raises(PromptError, match="has no row for case 'othr'. Did you mean 'other'"):
        read_statements(str(table), ["othr"])
    table.write_text("case,visible\na,L2:L1\n")
    with pytest.raises(PromptError, match=re.escape("case 'a': 'L2:L1' runs upwards")):
        read_cases(small_atlas, str(table), ["a"])
    table.write_text("case,visible\na,L2:L1\na,L2\n")
    with pytest.raises(PromptError, match="visible.csv:3: 'a' has a row already"):
        read_statements(str(table), ["a"])
    for text in ("case;Visible\na;\n", "case\na\n"):
        table.write_text(text)
        with pytest.raises(PromptError, match="has no words for any case"):
            read_statements(str(table), ["a"])
    table.write_text("case,visble\na,L1\n")
    with pytest.raises(PromptError, match="the column 'visble' may be meant as 'visible'"):
        read_statements(str(table), ["a"])
    table.write_text("case,room\na,7\n")
    assert read_statements(str(table), ["a"]) == {}
    with pytest.raises(PromptError, match="does not say what is visible in any case"):
        read_cases(small_atlas, str(table), ["a"])
    with pytest.raises(PromptError, match=r"missing.csv' does not exist"):
        read_statements(str(tmp_path / "missing.csv"), ["a"])


@pytest.mark.parametrize(
    ("atlas", "visible", "shown"),
    [
        ("spider", ("T12", "T12/L1"), "T12:T12/L1, 2 structures without the spinal canal"),
        ("spider", ("L4", "SC"), "L4:L4, 1 structure and the spinal canal"),
        ("spider", ("L2", "L4", "SC"), "3 structures: L2, L4, SC"),
        ("heart", ("left ventricle",), "1 structure: left ventricle"),
        ("heart", ("right ventricle", "myocardium"), "2 structures: right ventricle, myocardium"),
    ],
)
def test_a_summary_has_the_short_form_for_a_stretch(atlas: str, visible: tuple[str, ...], shown: str) -> None:
    assert summary(ATLASES[atlas], visible) == shown


def test_cases_of_a_table_may_have_no_words(tmp_path: Path, small_atlas: Atlas) -> None:
    table = tmp_path / "visible.csv"
    table.write_text("case,visible\na,L1 to L2\nb,\n")
    ids = ["a", "b", "not in the table"]
    read = read_cases(small_atlas, str(table), ids)
    assert list(read) == ["a"]
    assert unstated(ids, read, "template") == ["no words: 2 cases (b, not in the table); prompts: template"]
    assert unstated(["a"], read, "template") == []


def test_what_was_read_is_shown_once_where_it_is_equal_for_all(small_atlas: Atlas) -> None:
    read = {name: interactive_visibility(small_atlas, "L1 to L2") for name in ("a", "b")}
    assert readings(small_atlas, read) == ["read: L1:L2, 3 structures and the spinal canal"]
    read["b"] = interactive_visibility(small_atlas, "L2")
    assert readings(small_atlas, read) == [
        "a: read: L1:L2, 3 structures and the spinal canal",
        "b: read: 1 structure: L2",
    ]
