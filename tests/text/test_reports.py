from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from textseg.contracts import Atlas, Case
from textseg.errors import DataError, PromptError, RecipeError
from textseg.recipe.schema import ReportSettings
from textseg.text.prompts import RegionPrompts, SequencePrompts, generate
from textseg.text.reports import (
    Report,
    names_structure,
    read_report,
    read_reports,
    require_plain_facts,
    require_stated,
    scan_reports,
    stated_facts,
)

READ = ReportSettings(visible="levels", facts=("history",))


def case(name: str, **facts: str) -> Case:
    return Case(name, name, Path(f"{name}.mha"), facts=facts)


def test_a_report_is_read_like_typed_text_and_written_by_the_generator(small_atlas: Atlas) -> None:
    report = read_report(small_atlas, READ, {"levels": "L1 to L2, no canal", "history": " back  pain ", "age": "50"})
    assert report == Report(("L2", "L1", "L1/L2"), {"history": "back  pain"})
    visibility = report.visibility(small_atlas, {"sequence": "T2"})
    assert (visibility.source, visibility.counted) == ("report", True)
    prompts = SequencePrompts(small_atlas, granularity=2, facts=("sequence", "history"))(visibility)
    assert prompts.holistic.endswith("lumbar vertebra L2. The sequence is T2. The history is back  pain.")


def test_a_report_without_levels_says_that_nobody_has_named_them(small_atlas: Atlas) -> None:
    report = read_report(small_atlas, READ, {"levels": "", "history": "trauma"})
    assert report is not None
    assert not report.visibility(small_atlas).counted
    assert read_report(small_atlas, READ, {"levels": " ", "age": "50"}) is None
    with pytest.raises(PromptError, match="no structure 'L9'"):
        read_report(small_atlas, READ, {"levels": "L9"})


def test_a_sentence_takes_the_place_of_the_text_for_the_slice(small_atlas: Atlas) -> None:
    report = read_report(small_atlas, ReportSettings(sentences="Findings"), {"findings": "A disc\n bulges."})
    assert report is not None
    visibility = report.visibility(small_atlas).at(0, 3)
    generator = RegionPrompts(small_atlas)
    prompts = generate(generator, small_atlas, visibility)
    assert prompts.holistic == "A disc bulges."
    assert prompts.classwise == generator(replace(visibility, sentence="")).classwise


def test_columns_of_a_report_are_no_facts_of_other_prompts(small_atlas: Atlas) -> None:
    cases = [case("a", Levels="L1", history="trauma", sequence="T2"), case("b", sequence="T1")]
    plain, reports = read_reports(small_atlas, READ, cases)
    assert [c.facts for c in plain] == [{"sequence": "T2"}, {"sequence": "T1"}]
    assert reports == {"a": Report(("L1",), {"history": "trauma"})}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_reports_come_from_a_file(small_atlas: Atlas, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"reports{suffix}"
    if suffix == ".csv":
        path.write_text("case;levels;history\na;L1, L2;trauma\nz;L1;\n")
    else:
        lines = [{"case": "a", "Levels": "L1, L2", "history": ["trauma"]}, {"case": "z", "levels": "L1"}]
        path.write_text("\n".join(map(json.dumps, lines)))
    read = scan_reports(small_atlas, READ.model_copy(update={"file": path}), [case("a", sequence="T2"), case("b")])
    assert read.reports == {"a": Report(("L2", "L1"), {"history": "trauma"})}
    assert read.foreign == ("z",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"case": "a"', "1: this line is no JSON"),
        ("[1]", "1: this line is no object"),
        ('{"levels": "L1"}', "1: there is no 'case'"),
        ('{"case": "a", "levels": {}}', "'levels' must be a text, a number or a list of texts"),
        ('{"case": "a"}\n\n{"case": "a"}', "3: 'a' has a line already, 1"),
        ('{"case": "a", "case": "b"}', "the key 'case' stands twice"),
        ('{"case": "c", "levels": "L1"}', "has no row of a case. Possible: a"),
        ('{"case": "a", "level": "L1"}', "no column 'levels' in .*. Did you mean 'level'"),
        ('{"case": "a", "levels": "", "history": ""}', "no case has words under levels, history in"),
        (
            '{"case": "a", "levels": "L9", "history": ""}',
            "'levels' of 1 case can't be read:\n  case 'a': .*no structure",
        ),
    ],
)
def test_a_wrong_file_is_one_message(small_atlas: Atlas, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "reports.jsonl"
    path.write_text(content)
    with pytest.raises((DataError, RecipeError), match=message):
        read_reports(small_atlas, READ.model_copy(update={"file": path}), [case("a")])


def test_facts_are_those_that_change_a_text(small_atlas: Atlas) -> None:
    generator = SequencePrompts(small_atlas, facts=("sequence", "sex"))
    known = [{"sequence": "T2", "scanner": "A"}, {"sequence": "T1"}, {"sequence": "T2", "scanner": "B"}, {}]
    assert stated_facts(generator, small_atlas, known) == [{"sequence": "T2"}, {"sequence": "T1"}, {}]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"note": "there is a fracture of the body"}, "'note' of case 'a' is a sentence"),
        ({"note": "l1"}, "'note' of case 'a' names L1"),
    ],
)
def test_words_on_the_image_are_no_facts_of_a_template(small_atlas: Atlas, facts: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        require_plain_facts(SequencePrompts(small_atlas, facts=("note",)), small_atlas, [case("a", **facts)])
    require_plain_facts(SequencePrompts(small_atlas), small_atlas, [case("a", **facts)])  # they stand in no prompt


def test_a_sequence_may_have_the_name_of_a_vertebra(small_atlas: Atlas) -> None:
    generator = SequencePrompts(small_atlas, facts=("sequence",))
    require_plain_facts(generator, small_atlas, [case("a", sequence="L1")])


def test_a_fact_that_no_text_states_is_refused(small_atlas: Atlas) -> None:
    reports = {"a": Report((), {"history": "trauma"})}
    require_stated(SequencePrompts(small_atlas, facts=("history",)), small_atlas, reports, READ, "speak")
    with pytest.raises(RecipeError, match="the texts of 'speak' do not change with the fact 'history'"):
        require_stated(SequencePrompts(small_atlas), small_atlas, reports, READ, "speak")


def test_a_sentence_that_names_a_structure_is_told_from_another(small_atlas: Atlas) -> None:
    assert names_structure(small_atlas, "Bulging at l1-L2.")
    assert not names_structure(small_atlas, "A patient of 12 years with pain in leg L11.")
