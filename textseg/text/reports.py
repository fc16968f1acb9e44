"""Reports: words that come with a case, from its facts or from a file.

What a report says is visible goes through the reader of typed text, and its facts are written by the prompt generator.
Only sentences reach a model as they are, and only a model that was trained on sentences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from textseg.contracts import Atlas, Case, PromptGenerator, Visibility
from textseg.errors import DataError, PromptError, RecipeError, shortened, suggestion
from textseg.recipe.schema import ReportSettings
from textseg.system.messages import counted
from textseg.system.user_files import TABLE_SUFFIXES, Row, read_json_lines, read_table
from textseg.text.prompts import generate
from textseg.text.reading import interactive_visibility
from textseg.text.visibility import report_visibility, template_visibility

LISTED = 5  # cases that a message names
FEW_WORDS = 6  # from this number of words on, a fact is a sentence
TRIED = 20  # values of a fact that are tried on a prompt generator


@dataclass(frozen=True)
class Report:
    """The words of one case, as they were read."""

    visible: tuple[str, ...] = ()  # empty where they name no structure
    facts: Mapping[str, str] = field(default_factory=dict)
    sentence: str = ""

    def visibility(self, atlas: Atlas, facts: Mapping[str, str] = {}) -> Visibility:
        """Return what the report states about a volume of which these facts are known."""
        return report_visibility(atlas, self.visible, {**facts, **self.facts}, self.sentence)


def read_report(atlas: Atlas, settings: ReportSettings, cells: Mapping[str, str]) -> Report | None:
    """Return the report in the cells of a case, by column; None where all of its columns are empty.

    Raises PromptError for words on what is visible that can't be read.
    """
    words = {column: cells[column].strip() for column in settings.columns if cells.get(column, "").strip()}
    if not words:
        return None
    stated = words.get(settings.visible or "")
    visible = interactive_visibility(atlas, stated).visible if stated else ()
    facts = {column: words[column] for column in settings.facts if column in words}
    return Report(visible, facts, " ".join(words.get(settings.sentences or "", "").split()))


@dataclass(frozen=True)
class ReadReports:
    """The reports of cases by id, the reason for each that can't be read, and rows of a file that belong to no case."""

    reports: Mapping[str, Report]
    faults: Mapping[str, str]
    foreign: tuple[str, ...] = ()


def scan_reports(atlas: Atlas, settings: ReportSettings, cases: Sequence[Case]) -> ReadReports:
    """Read the report of each case; a case whose columns are empty has none.

    Raises RecipeError for a column that no case has, and DataError for a file that can't be read or fits no case.
    """
    table: dict[str, Mapping[str, str]] = {
        case.id: {name.casefold(): value for name, value in case.facts.items()} for case in cases
    }
    where, foreign = "the facts of the data set", tuple[str, ...]()
    if settings.file is not None:
        where, rows = f"'{settings.file}'", _rows(settings)
        foreign = tuple(case_id for case_id in rows if case_id not in table)
        if len(foreign) == len(rows):
            possible = suggestion(next(iter(rows), ""), table)
            raise DataError(f"prompts.report.file: {where} has no row of a case.{possible}")
        table = {case_id: row.cells for case_id, row in rows.items()}
    columns = dict.fromkeys(column for cells in table.values() for column in cells if column != "case")
    if unknown := [column for column in settings.columns if column not in columns]:
        raise RecipeError(f"prompts.report: no column '{unknown[0]}' in {where}.{suggestion(unknown[0], columns)}")
    reports, faults = dict[str, Report](), dict[str, str]()
    for case in cases:
        try:
            report = read_report(atlas, settings, table.get(case.id, {}))
        except PromptError as error:
            faults[case.id] = str(error)
            continue
        if report is not None:
            reports[case.id] = report
    if not reports and not faults:
        raise DataError(f"prompts.report: no case has words under {', '.join(settings.columns)} in {where}.")
    return ReadReports(reports, faults, foreign)


def read_reports(
    atlas: Atlas, settings: ReportSettings, cases: Sequence[Case]
) -> tuple[list[Case], Mapping[str, Report]]:
    """Return the cases without the columns of a report among their facts, and the report of each case by its id.

    Raises DataError for words that can't be read, with the first cases, and errors as `scan_reports`.
    """
    read = scan_reports(atlas, settings, cases)
    if read.faults:
        lines = [f"  case '{case_id}': {fault}" for case_id, fault in list(read.faults.items())[:LISTED]]
        lines += [f"  and {len(read.faults) - LISTED} more"] if len(read.faults) > LISTED else []
        raise DataError(
            f"prompts.report.visible: '{settings.visible}' of {counted(len(read.faults), 'case')} can't be read:\n"
            + "\n".join(lines)
            + "\nCorrect these words, or empty the cells. A column of sentences goes to prompts.report.sentences."
        )
    own = set(settings.columns)
    kept = [{name: text for name, text in case.facts.items() if name.casefold() not in own} for case in cases]
    return [replace(case, facts=facts) for case, facts in zip(cases, kept, strict=True)], read.reports


def _rows(settings: ReportSettings) -> dict[str, Row]:
    assert settings.file is not None
    if settings.file.suffix.lower() in TABLE_SUFFIXES:
        return read_table(settings.file, "case", optional=settings.columns)
    return read_json_lines(settings.file, "case")


def stated_facts(generator: PromptGenerator, atlas: Atlas, known: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return each different set of facts, with those alone that change a text of the generator."""
    values: dict[str, dict[str, None]] = {}
    for facts in known:
        for name, value in facts.items():
            values.setdefault(name, {})[value] = None
    plain = template_visibility(atlas).at(0, 3)
    without = generate(generator, atlas, plain)
    stated = {
        name
        for name, given in values.items()
        if any(generate(generator, atlas, replace(plain, facts={name: v})) != without for v in list(given)[:TRIED])
    }
    sets = ({name: value for name, value in facts.items() if name in stated} for facts in known)
    return [json.loads(text) for text in dict.fromkeys(json.dumps(facts, sort_keys=True) for facts in sets)]


def require_plain_facts(generator: PromptGenerator, atlas: Atlas, cases: Sequence[Case]) -> None:
    """Raise RecipeError for a fact in every prompt that is a sentence, or that names a level.

    Facts are what is known without looking at the image. Prompts with a report would otherwise count as the template.
    """
    for case in cases:
        for name, value in case.facts.items():
            level = atlas.find(value)
            # T1 and T2 are sequences before they are vertebrae.
            names_level = level is not None and level.name in atlas.sequence and name != "sequence"
            if not names_level and len(value.split()) < FEW_WORDS:
                continue
            if stated_facts(generator, atlas, [{name: value}]) == [{name: value}]:
                what = f"names {level.name}" if level is not None and names_level else "is a sentence"
                raise RecipeError(
                    f"prompts.generator.facts: '{name}' of case '{case.id}' {what}: '{shortened(value)}'. Facts are "
                    "what is known without looking at the image, and they stand in every prompt. Words about the "
                    f"image are a source of their own: prompts.report: {{facts: [{name}]}}, with report in "
                    "prompts.training or prompts.evaluation."
                )


def require_stated(
    generator: PromptGenerator, atlas: Atlas, reports: Mapping[str, Report], settings: ReportSettings, name: str
) -> None:
    """Raise RecipeError for a fact of reports that the prompt generator `name` does not state."""
    stated = set().union(*stated_facts(generator, atlas, [report.facts for report in reports.values()]))
    for fact in settings.facts:
        if fact not in stated:
            raise RecipeError(
                f"prompts.report.facts: the texts of '{name}' do not change with the fact '{fact}', so no model would "
                f"read it. Add it to the setting 'facts' of the prompt generator, or remove it here."
            )


def names_structure(atlas: Atlas, sentence: str) -> bool:
    """Return True if a sentence holds the name or a synonym of a structure, so that it belongs to the whole picture."""
    names = (name for structure in atlas.structures for name in (structure.name, *structure.synonyms))
    return any(f" {_words(name)} " in f" {_words(sentence)} " for name in names)


def _words(text: str) -> str:
    """Return the words of a text in small letters, without punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))
