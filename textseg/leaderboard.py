"""A leaderboard: the means of the runs in a table, who may be ranked, and the table as text, Markdown and CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

from textseg.certainty import Difference, differences, intervals
from textseg.errors import RunError
from textseg.metrics import POLICY
from textseg.reporting import format_value, markdown_table, metric_title, text_table
from textseg.scores import Mean, Score, Summary, csv_text, summarise
from textseg.statistics import Interval, small_sample_warning

Aggregate = Literal["found", "common", "penalised"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)


@dataclass(frozen=True)
class Run:
    """A run that was read: its record and its scores."""

    folder: Path
    facts: Mapping[str, Any]  # run.json
    scores: Sequence[Score]

    @property
    def label(self) -> str:
        """Name, seed and fold; the name alone of what another tool made."""
        if self.facts.get("predictions"):
            return str(self.facts.get("name"))
        fold = self.facts.get("fold")
        details = f"seed {self.facts.get('seed')}" + ("" if fold is None else f", fold {fold}")
        return f"{self.facts.get('name', self.folder.name)} ({details})"

    @property
    def sources(self) -> tuple[str, ...]:
        """What the prompts of its scores knew."""
        return tuple(sorted({row.prompt_source for row in self.scores}))

    @property
    def oracle(self) -> bool:
        """Whether the prompts were read off the annotation."""
        return "ground_truth" in self.sources or self.value("evaluation", "prompts") == "ground_truth"

    def value(self, *keys: str) -> Any:
        """What run.json says under `keys`, or None."""
        found: Any = self.facts
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return sorted(found) if keys[-1] == "metrics" and isinstance(found, list) else found

    def found(self) -> set[tuple[str, int | None, str]]:
        """Where it found a structure that is there: case, slice, structure."""
        return {row.place for row in self.scores if row.status == "ok"}


@dataclass(frozen=True)
class Row:
    """A run in a table, its means by aggregate and metric."""

    run: Run
    label: str
    aggregates: Mapping[Aggregate, Mapping[str, Mean]]
    intervals: Mapping[str, Interval]  # of the means over all that it found

    @property
    def means(self) -> Mapping[str, Mean]:
        """Those over all that it found."""
        return self.aggregates["found"]


@dataclass(frozen=True)
class Table:
    """Runs that are ranked with each other, or oracles, which are not."""

    title: str
    rows: Sequence[Row]
    ranked: bool
    common_pairs: int
    all_pairs: int
    differences: Sequence[Difference]  # of ranked runs, by DSC


def make_table(title: str, runs: Sequence[Run], structures: Sequence[str], *, ranked: bool) -> Table:
    """Macro means over `structures`, sorted by mean DSC. Raises RunError for scores that contradict themselves."""
    wanted = set(structures)
    found: set[tuple[str, int | None, str]] = reduce(set.intersection, (run.found() for run in runs))
    common = {place for place in found if place[2] in wanted}
    shown = {
        row.place for run in runs for row in run.scores if row.structure in wanted and row.status in ("ok", "missed")
    }
    rows = []
    for run, label in zip(runs, _labels(runs), strict=True):
        chosen: dict[Aggregate, Sequence[Score]] = {
            "found": run.scores,
            "common": [row for row in run.scores if row.place in common],
            "penalised": [_penalised(row) for row in run.scores],
        }
        means = {aggregate: _summary(run, scores, structures).overall for aggregate, scores in chosen.items()}
        rows.append(Row(run, label, means, intervals(run.scores, structures)))
    rows.sort(key=lambda row: -_or_worst(row.means.get("dsc")))
    by_dsc = {row.label: row.run.scores for row in rows if ranked and "dsc" in row.means}
    return Table(title, rows, ranked, len(common), len(shown), differences(by_dsc, "dsc", structures))


def _penalised(row: Score) -> Score:
    """The same, with the worst value where a structure is missed or spurious."""
    return replace(row, value=row.worst) if row.status in ("missed", "spurious") else row


def _labels(runs: Sequence[Run]) -> list[str]:
    """Names that tell the runs of a table apart: by their prompts where that does it, else by their folders."""
    labels = [run.label for run in runs]
    for details in ([f"{_prompts(run)} prompts" for run in runs], [str(run.folder) for run in runs]):
        pairs = zip(labels, details, strict=True)
        labels = [label if labels.count(label) == 1 else f"{label} [{detail}]" for label, detail in pairs]
    return labels


def _prompts(run: Run) -> str:
    return "+".join(run.sources).replace("_", " ")


def _summary(run: Run, scores: Sequence[Score], structures: Sequence[str]) -> Summary:
    try:
        return summarise(scores, structures=structures)
    except RunError as error:
        raise RunError(f"Run '{run.folder}': {error}") from None


def _or_worst(mean: Mean | None) -> float:
    return -math.inf if mean is None or math.isnan(mean.value) else mean.value


def _columns(table: Table) -> Iterator[tuple[str, str, Aggregate]]:
    """Metric, unit, aggregate: a ratio once (a miss is 0 in it anyway), a distance by each aggregate."""
    for metric, mean in table.rows[0].means.items():
        for aggregate in AGGREGATES if mean.unit else AGGREGATES[:1]:
            yield metric, mean.unit, aggregate


def _value(row: Row, metric: str, aggregate: Aggregate) -> float:
    mean = row.aggregates[aggregate].get(metric)
    return math.nan if mean is None else mean.value


def _suffix(aggregate: Aggregate) -> str:
    return "" if aggregate == "found" else aggregate


def _cells(table: Table) -> tuple[list[str], list[list[str]]]:
    columns = list(_columns(table))
    header = ["run", *(f"{metric_title(m, unit)} {_suffix(aggregate)}".strip() for m, unit, aggregate in columns)]
    header += ["missed", "spurious", "prompts", "M parameters", "ms per slice"]
    rows = []
    for row in table.rows:
        cells = [row.label, *(format_value(_value(row, m, aggregate), unit) for m, unit, aggregate in columns)]
        cells += [str(n) for n in _counts(row)]
        cells.append(_prompts(row.run))
        parameters, speed = row.run.value("parameters"), row.run.value("milliseconds_per_slice")
        cells.append("–" if parameters is None else f"{parameters / 1e6:.2f}")
        cells.append("–" if speed is None else f"{speed:.1f}")
        rows.append(cells)
    return header, rows


def _counts(row: Row) -> tuple[int, int]:
    first = next(iter(row.means.values()))
    return first.missed, first.spurious


def _notes(table: Table, structures: Sequence[str]) -> list[str]:
    run = table.rows[0].run
    per, space, unit = (run.value("evaluation", key) for key in ("per", "space", "unit"))
    means = (
        f"Means over the {len(structures)} structures that occur in the training data of every run; "
        f"{len({row.patient for row in run.scores})} test patients; scores per {per} in {space} space; "
        f"distances in {unit}."
    )
    common = (
        f"common: over the {table.common_pairs} of {table.all_pairs} structures in their cases that every run of this "
        "table found."
    )
    penalised = "penalised: a structure that is missed or spurious counts with the image's diagonal."
    warning = _rank_warning(table) if table.ranked else ""
    return [*filter(None, [warning]), means, common, penalised, POLICY]


def _rank_warning(table: Table) -> str:
    """One line that names the runs whose order by a distance depends on how misses are counted; empty if none does."""
    changes = []
    for metric, unit, aggregate in _columns(table):
        if aggregate == "found":
            continue
        swapped = [
            row
            for pair in combinations(table.rows, 2)
            for row in pair
            if (_value(pair[0], metric, "found") - _value(pair[1], metric, "found"))
            * (_value(pair[0], metric, aggregate) - _value(pair[1], metric, aggregate))
            < 0
        ]
        if swapped:
            names = dict.fromkeys(row.label for row in sorted(swapped, key=lambda r: _value(r, metric, "found")))
            changes.append(f"by {metric_title(metric, unit)} {aggregate} between {', '.join(names)}")
    if not changes:
        return ""
    return (
        f"Warning: the ranking changes {' and '.join(changes)}: a mean distance over what a run found leaves out what "
        "it missed."
    )


def _interval_cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """The 95 % interval of each mean."""
    metrics = [(metric, mean.unit) for metric, mean in table.rows[0].means.items()]
    rows = []
    for row in table.rows:
        bounds = [(row.intervals[metric], unit) for metric, unit in metrics]
        rows.append([row.label, *(f"{format_value(i.low, u)} to {format_value(i.high, u)}" for i, u in bounds)])
    return ["95 % interval", *(metric_title(metric, unit) for metric, unit in metrics)], rows


def _difference_cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Every pair of ranked runs."""
    rows = [
        [f"{d.first} - {d.second}", f"{d.mean:+.4f}", f"{d.test.effect:+.2f}", f"{d.test.p:.3g}", f"{d.adjusted:.3g}"]
        for d in table.differences
    ]
    return ["difference in DSC", "mean", "effect", "p", "p (Holm)"], rows


def _certainty_notes(table: Table) -> list[str]:
    patients = max((interval.patients for row in table.rows for interval in row.intervals.values()), default=0)
    notes = ["Intervals: bias-corrected and accelerated bootstrap of 2000 draws over patients."]
    if table.differences:
        notes.append(
            "Differences: Wilcoxon's signed-rank test on patients' means; effect is the rank-biserial correlation."
        )
    return [*notes, *filter(None, [small_sample_warning(patients)])]


def as_text(table: Table, structures: Sequence[str]) -> str:
    """For a terminal."""
    parts = [f"{table.title}\n", text_table(*_cells(table)), text_table(*_interval_cells(table))]
    if table.differences:
        parts.append(text_table(*_difference_cells(table)))
    return "\n".join([*parts, *_notes(table, structures), *_certainty_notes(table)]) + "\n"


def as_markdown(table: Table, structures: Sequence[str]) -> str:
    """With the best value of each column bold, where the table is ranked."""
    header, rows = _cells(table)
    if table.ranked:
        for position, (metric, unit, aggregate) in enumerate(_columns(table), start=1):
            values = [_value(row, metric, aggregate) for row in table.rows]
            known = [value for value in values if not math.isnan(value)]
            best = format_value((min if unit else max)(known, default=math.nan), unit)
            for cells in rows:  # as printed: a difference that can't be seen is no victory
                if cells[position] == best != "–":
                    cells[position] = f"**{best}**"
    notes = "\n".join(f"- {note}" for note in [*_notes(table, structures), *_certainty_notes(table)])
    more = [markdown_table(*_interval_cells(table))]
    if table.differences:
        more.append(markdown_table(*_difference_cells(table)))
    return "\n".join([f"## {table.title}\n", markdown_table(header, rows), *more, notes]) + "\n"


def as_csv(tables: Sequence[Table]) -> str:
    """Every table in one, in full precision."""
    columns = list(_columns(tables[0]))
    header = ["table", "rank", "run", "seed", "fold", "folder", "prompts"]
    header += ["_".join(filter(None, (m, unit, _suffix(aggregate)))) for m, unit, aggregate in columns]
    metrics = list(tables[0].rows[0].means)
    header += [f"{metric}_{bound}" for metric in metrics for bound in ("low", "high")]
    header += ["missed", "spurious", "parameters", "milliseconds_per_slice", "per", "space", "test_patients"]
    lines = []
    for table in tables:
        for rank, row in enumerate(table.rows, start=1):
            run = row.run
            line: list[object] = ["ranked" if table.ranked else "oracle", rank if table.ranked else ""]
            line += [run.value("name"), run.value("seed"), run.value("fold"), run.folder, "+".join(run.sources)]
            line += [_value(row, m, aggregate) for m, _, aggregate in columns]
            line += [getattr(row.intervals[m], bound) for m in metrics for bound in ("low", "high")]
            line += [*_counts(row), run.value("parameters"), run.value("milliseconds_per_slice")]
            line += [run.value("evaluation", "per"), run.value("evaluation", "space")]
            lines.append([*line, len({score.patient for score in run.scores})])
    return csv_text(header, lines)
