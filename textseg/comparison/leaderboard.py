"""A leaderboard as data: tables of methods with means, ranks and tests; other files write it as text or page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from textseg.comparison.comparability import Mismatch
from textseg.comparison.finished_runs import FinishedRuns, readable
from textseg.comparison.published import PublishedRow
from textseg.comparison.significance import Difference, Ranking, differences, ranking
from textseg.drawing.tables import metric_title
from textseg.errors import RunError
from textseg.levels.obedience import patient_interval
from textseg.metrics.aggregation import (
    AGGREGATES,
    Aggregate,
    Scope,
    ScoreArrays,
    aggregated,
    arrays,
    case_means,
    common_places,
    counts_of,
    frequencies,
    patient_means,
    patient_sums,
    shown_places,
    spread,
    structure_means,
)
from textseg.metrics.named import DICE, MetricFacts
from textseg.metrics.scores import Mean
from textseg.metrics.statistics import Floats, Interval, macro_mean, macro_mean_interval
from textseg.metrics.window_scores import WindowMeans, summarise_windows
from textseg.runs.folder import measured_obedience

Kind = Literal["ranked", "report", "simulated", "oracle"]
TITLES: Mapping[Kind, str] = {
    "ranked": "Leaderboard",
    "report": "With reports (words that came with the cases, by authors who may have seen the labels), not ranked",
    "simulated": "Simulated interaction (first and last structure read off the annotation), not ranked",
    "oracle": "Oracle runs (prompts from the ground truth), not ranked",
}
NumberKey = tuple[str, Aggregate, str]  # name of a scope, aggregate, metric
WINDOW_SHARE = 0.5  # of the rows; the windows that get columns
STRUCTURES, CASES, WITHOUT_RARE = "structures", "cases", "without_rare"


@dataclass(frozen=True)
class Number:
    """A mean with the counts behind it.

    `structures` is the number of structures with a value, `used` the number of values. `missed` and `spurious` count
    structures in cases. All counts are over all runs. The interval is over `patients`; the standard deviations are
    between seeds and between folds.
    """

    value: float
    unit: str
    structures: int
    used: int
    missed: int
    spurious: int
    low: float
    high: float
    patients: int
    seed_sd: float
    fold_sd: float


@dataclass(frozen=True)
class Row:
    """A method: one run, or several seeds and folds of one recipe."""

    label: str
    finished: FinishedRuns
    rank: int | None  # by the first of `Leaderboard.metrics`, penalised; None in tables that are not ranked
    means: Mapping[NumberKey, Number]
    ranks: Mapping[Aggregate, Mapping[str, int]]  # by metric, over structures; shared ones at their lower end
    by_structure: Mapping[Aggregate, Mapping[str, Mapping[str, Mean]]]  # by metric and structure
    by_case: Mapping[Aggregate, Mapping[str, Floats]]  # by metric: [C], means of `Leaderboard.cases`
    by_patient: Mapping[Aggregate, Mapping[str, Floats]]  # by metric: [P], means of `Leaderboard.patients`
    cost: Mapping[str, float | None]
    level_naming: Mapping[str, float] | None
    windows: Sequence[WindowMeans]  # of fields_of_view.csv, over `Leaderboard.structures`
    obedience: Interval | None  # mean over all pictures of a probe; None if a run was not probed

    @property
    def window_dsc(self) -> tuple[Interval | None, Interval | None]:
        """The DSC in windows of `WINDOW_SHARE` without a person, and under the right text; None if not measured."""
        by_author = {m.stated_by: m.dsc for m in self.windows if (m.share, m.landmark) == (WINDOW_SHARE, "all")}
        return by_author.get("template", by_author.get("none")), by_author.get("simulated")

    def further(self, shown: Table | Leaderboard) -> tuple[Interval | None, ...]:
        """Return the means of the columns that follow the metrics: those that a method of `shown` has, and no rank."""
        return (*self.window_dsc * shown.has_windows, *(self.obedience,) * shown.has_obedience)

    def number(self, metric: str, aggregate: Aggregate, scope: str = STRUCTURES) -> Number:
        """Return one mean."""
        return self.means[scope, aggregate, metric]


@dataclass(frozen=True)
class Table:
    """Methods that are ranked with each other, or methods whose prompts come from annotations or reports."""

    kind: Kind
    title: str
    rows: Sequence[Row]
    common_places: Mapping[str, int]  # by metric: structures in their cases that every run of the table found
    all_places: int
    differences: Mapping[str, Sequence[Difference]]  # by metric, penalised; empty where not ranked
    rankings: Mapping[str, Ranking]  # by metric, penalised, methods in the order of `rows`; empty for oracles
    warnings: Sequence[str]

    @property
    def ranked(self) -> bool:
        """Return False for methods whose prompts come from annotations or reports."""
        return self.kind == "ranked"

    @property
    def has_windows(self) -> bool:
        """Return True if a method was tested in windows of `WINDOW_SHARE`."""
        return any(mean.share == WINDOW_SHARE for row in self.rows for mean in row.windows)

    @property
    def has_obedience(self) -> bool:
        """Return True if a method was probed."""
        return any(row.obedience for row in self.rows)

    @property
    def badge(self) -> str:
        """Return the mark beside the label of each row; empty for ranked rows."""
        return "" if self.ranked else self.kind.upper()


@dataclass(frozen=True)
class Leaderboard:
    """All tables of a comparison, and the settings that they share."""

    tables: Sequence[Table]
    metrics: Sequence[str]  # the first is what rows are sorted by
    facts: Mapping[str, MetricFacts]  # of each metric, from the first run
    scopes: Mapping[str, Scope]
    structures: Sequence[str]
    rare: Mapping[str, tuple[int, int]]  # structures seldom shown: in how many cases of how many
    rare_share: float
    groups_missing: bool  # the runs do not say which structures make a group
    patients: Sequence[str]
    cases: Sequence[str]
    settings: Mapping[str, Any]  # dataset, and what run.json says under evaluation, of the first run
    mismatches: Sequence[Mismatch]  # what a forced comparison passes over
    published: Sequence[PublishedRow]

    @property
    def has_windows(self) -> bool:
        """Return True if a method of any table was tested in windows of `WINDOW_SHARE`."""
        return any(table.has_windows for table in self.tables)

    @property
    def has_obedience(self) -> bool:
        """Return True if a method of any table was probed."""
        return any(table.has_obedience for table in self.tables)

    def lower(self, metric: str) -> bool:
        """Return True if a low value of a metric is better."""
        return not self.facts[metric].higher_is_better

    @property
    def unit(self) -> Mapping[str, str]:
        """Return the unit of each metric in the first row."""
        row = self.tables[0].rows[0]
        return {metric: row.number(metric, "as_published").unit for metric in self.metrics}


def make_leaderboard(
    compared: Sequence[FinishedRuns],
    *,
    rare_share: float,
    mismatches: Sequence[Mismatch] = (),
    published: Sequence[PublishedRow] = (),
) -> Leaderboard:
    """Return means over the structures in the training data of every run; raises RunError where there is none."""
    structures = _structures(compared)
    runs = [run for finished in compared for run in finished.runs]
    facts = _metrics(compared)
    metrics = list(facts)
    scores = arrays([(str(run.folder), run.scores) for run in runs], structures, metrics)
    shown = frequencies(scores)
    rare = {name: counts for name, counts in shown.items() if counts[0] < rare_share * counts[1]}
    groups = _groups(compared, structures)
    scopes = _scopes(structures, groups, rare)
    position = {id(run): number for number, run in enumerate(runs)}
    tables = []
    for kind in TITLES:
        members = [finished for finished in compared if (finished.mark or "ranked") == kind]
        if members:
            indices = [[position[id(run)] for run in finished.runs] for finished in members]
            tables.append(_table(kind, members, indices, scores, scopes, facts))
    first = runs[0]
    return Leaderboard(
        tables=tables,
        metrics=metrics,
        facts=facts,
        scopes=scopes,
        structures=structures,
        rare=rare,
        rare_share=rare_share,
        groups_missing=not groups,
        patients=scores.patients,
        cases=scores.cases,
        settings={"dataset": first.value("dataset"), **(first.value("evaluation") or {})},
        mismatches=mismatches,
        published=published,
    )


def _structures(compared: Sequence[FinishedRuns]) -> list[str]:
    common = [name for name in compared[0].trained_on if all(name in finished.trained_on for finished in compared)]
    if not common:
        listed = "\n  ".join(f"{finished.first.folder}: {readable(finished.trained_on)}" for finished in compared)
        raise RunError(f"No structure occurs in the training data of all these runs (run.json):\n  {listed}")
    return common


def _metrics(compared: Sequence[FinishedRuns]) -> dict[str, MetricFacts]:
    """Return the metrics that every run has, DSC first, then those of which a high value is better.

    Apart from that they are in the order of the first run. Raises RunError without any.
    """
    each = [dict.fromkeys(row.metric for row in run.scores) for finished in compared for run in finished.runs]
    shared = [metric for metric in each[0] if all(metric in metrics for metrics in each)]
    if not shared:
        raise RunError(f"These runs share no metric; the first has {', '.join(each[0])}.")
    facts = {metric: compared[0].first.metric(metric) for metric in shared}
    order = sorted(facts, key=lambda metric: (metric != DICE.name, not facts[metric].higher_is_better))
    return {metric: facts[metric] for metric in order}


def _groups(compared: Sequence[FinishedRuns], structures: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The groups of the atlas, as the first run that says them has them, without structures that no mean is over."""
    recorded = (run.value("groups") for finished in compared for run in finished.runs)
    groups = next((groups for groups in recorded if isinstance(groups, Mapping)), {})
    members = {str(name): tuple(n for n in structures if n in group) for name, group in groups.items()}
    return {name: group for name, group in members.items() if group}


def _scopes(structures: Sequence[str], groups: Mapping[str, tuple[str, ...]], rare: Iterable[str]) -> dict[str, Scope]:
    everything = tuple(structures)
    often = tuple(name for name in structures if name not in set(rare))
    scopes = [Scope(STRUCTURES, everything), Scope(CASES, everything, macro="cases")]
    scopes += [Scope(name, members) for name, members in groups.items()]
    if often and often != everything:
        scopes.append(Scope(WITHOUT_RARE, often))
    return {scope.name: scope for scope in scopes}


def _table(
    kind: Kind,
    compared: Sequence[FinishedRuns],
    indices: Sequence[Sequence[int]],
    scores: ScoreArrays,
    scopes: Mapping[str, Scope],
    facts: Mapping[str, MetricFacts],
) -> Table:
    values = aggregated(scores, indices)
    labels = labels_of(compared)
    means: list[dict[NumberKey, Number]] = [
        {
            (scope, a, m): _number(scores, m, values[a][m], finished, runs, scopes[scope])
            for scope in scopes
            for a in AGGREGATES
            for m in scores.metrics
        }
        for finished, runs in zip(compared, indices, strict=True)
    ]
    ranks = {a: {m: _ranks([numbers[STRUCTURES, a, m] for numbers in means], facts[m]) for m in scores.metrics}
             for a in AGGREGATES}  # fmt: skip
    main = scores.metrics[0]
    rows, sums = [], []
    for index in np.argsort(ranks["penalised"][main], kind="stable").tolist():
        finished, runs = compared[index], list(indices[index])
        own = {a: {m: values[a][m][runs] for m in scores.metrics} for a in AGGREGATES}
        own_sums = {a: {m: patient_sums(scores, v, scopes[STRUCTURES]) for m, v in own[a].items()} for a in AGGREGATES}
        sums.append(own_sums["penalised"])
        by_structure = {a: {m: structure_means(scores, m, runs, v) for m, v in values[a].items()} for a in AGGREGATES}
        rows.append(
            Row(
                label=labels[index],
                finished=finished,
                rank=ranks["penalised"][main][index] if kind == "ranked" else None,
                means=means[index],
                ranks={a: {m: by_row[index] for m, by_row in ranks[a].items()} for a in AGGREGATES},
                by_structure=by_structure,
                by_case={a: {m: case_means(scores, v) for m, v in own[a].items()} for a in AGGREGATES},
                by_patient={a: {m: patient_means(*pair) for m, pair in own_sums[a].items()} for a in AGGREGATES},
                cost=_cost(finished),
                level_naming=_level_naming(finished),
                windows=summarise_windows(finished.windows, scores.structures),
                obedience=_obedience(finished),
            )
        )
    tested, ranked = {}, {}
    if kind == "ranked" and len(rows) > 1:
        for m in scores.metrics:
            lower = not facts[m].higher_is_better
            by_patient = {row.label: row.by_patient["penalised"][m] for row in rows}
            tested[m] = differences(by_patient, m, lower_is_better=lower)
            by_label = {row.label: of_row[m] for row, of_row in zip(rows, sums, strict=True)}
            ranked[m] = ranking(m, by_label, list(by_patient.values()), lower_is_better=lower)
    return Table(
        kind=kind,
        title=TITLES[kind],
        rows=rows,
        common_places={m: int(common_places(scores, m, indices).sum()) for m in scores.metrics},
        all_places=int(shown_places(scores, main).sum()),
        differences=tested,
        rankings=ranked,
        warnings=_rank_warnings(rows, scores.metrics) if kind == "ranked" else [],
    )


def labels_of(compared: Sequence[FinishedRuns]) -> list[str]:
    """Return distinct labels for the rows of a table: equal names get their prompts, or else their folders."""
    labels = [finished.label for finished in compared]
    prompts = [f"{prompts_of(finished)} prompts" for finished in compared]
    for details in (prompts, [str(finished.first.folder) for finished in compared]):
        pairs = zip(labels, details, strict=True)
        labels = [label if labels.count(label) == 1 else f"{label} [{detail}]" for label, detail in pairs]
    return labels


def prompts_of(finished: FinishedRuns) -> str:
    """Return the prompt sources of a row as text."""
    return "+".join(finished.sources).replace("_", " ")


def _number(
    scores: ScoreArrays, metric: str, values: Floats, finished: FinishedRuns, runs: Sequence[int], scope: Scope
) -> Number:
    """The mean of one metric over one scope, from values [R, N]."""
    sums, counts = patient_sums(scores, values[list(runs)], scope)
    interval = macro_mean_interval(sums, counts)
    missed, spurious = counts_of(scores, metric, runs, scope)

    def sd(key: str) -> float:
        """Return the standard deviation between runs that differ in `key`, the others put together."""
        of = [run.facts.get(key) for run in finished.runs]
        parts = [[r for r, own in zip(runs, of, strict=True) if own == value] for value in dict.fromkeys(of)]
        if len(parts) < 2:
            return float("nan")
        return spread([macro_mean(*patient_sums(scores, values[part], scope)) for part in parts])

    inside = np.isin(scores.structure, [scores.structures.index(name) for name in scope.structures])
    known = ~np.isnan(values[list(runs)]) & inside
    return Number(
        value=interval.value,
        unit=scores.units[metric][runs[0]],
        structures=len(np.unique(scores.structure[known.any(axis=0)])),
        used=int(known.sum()),
        missed=missed,
        spurious=spurious,
        low=interval.low,
        high=interval.high,
        patients=interval.patients,
        seed_sd=sd("seed"),
        fold_sd=sd("fold"),
    )


def _ranks(numbers: Sequence[Number], facts: MetricFacts) -> list[int]:
    """Return the rank of each row by one metric; equal values (to twelve digits) share the better rank."""
    sign = -1 if facts.higher_is_better else 1
    keys = [np.inf if np.isnan(number.value) else round(sign * number.value, 12) for number in numbers]
    return [1 + sum(rival < key for rival in keys) for key in keys]


def _rank_warnings(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """A line for each metric by which the ranks depend on how misses are counted, with the rows whose ranks do."""
    warnings = []
    for metric in metrics:
        moved = [row for row in rows if len({row.ranks[aggregate][metric] for aggregate in AGGREGATES}) > 1]
        if moved:
            title = metric_title(metric, rows[0].number(metric, "as_published").unit)
            ranks = [", ".join(str(row.ranks[aggregate][metric]) for aggregate in AGGREGATES) for row in moved]
            names = "; ".join(f"{row.label} {of_row}" for row, of_row in zip(moved, ranks, strict=True))
            warnings.append(f"Warning: ranks by {title} depend on the aggregate ({', '.join(AGGREGATES)}): {names}.")
    return warnings


def _cost(finished: FinishedRuns) -> dict[str, float | None]:
    """Return size and speed of a method: means over its runs, for memory the maximum."""
    costs: dict[str, float | None] = {}
    for key in ("parameters", "multiply_accumulates", "milliseconds_per_slice", "peak_memory_bytes"):
        known = [value for run in finished.runs if isinstance(value := run.facts.get(key), int | float)]
        total = max if key == "peak_memory_bytes" else lambda values: sum(values) / len(values)
        costs[key] = float(total(known)) if known else None
    return costs


def _obedience(finished: FinishedRuns) -> Interval | None:
    """Return the obedience over patients, each with the mean of its repeats; None if a run was not probed.

    It is also None if no text could be moved.
    """
    records = [measured_obedience(run.facts) for run in finished.runs]
    values: dict[str, list[float]] = {}
    for record in records:
        if record is None:
            return None
        for patient, value in record["by_patient"].items():
            values.setdefault(patient, []).append(value)
    return patient_interval({patient: float(np.mean(own)) for patient, own in values.items()}) if values else None


def _level_naming(finished: FinishedRuns) -> dict[str, float] | None:
    """Return the rates of naming errors over all volumes of all runs; None where a run does not record them."""
    records = [run.value("enumeration") for run in finished.runs]
    if not all(isinstance(record, Mapping) and record.get("cases") for record in records):
        return None
    cases = sum(record["cases"] for record in records)

    def total(key: str) -> float:
        return float(sum(record.get(key) or 0 for record in records))

    def mean(key: str) -> float:
        known = [record for record in records if record.get(key) is not None]
        number = sum(record["cases"] for record in known)
        return sum(record[key] * record["cases"] for record in known) / number if number else float("nan")

    return {
        "cases": cases,
        "level_shift_rate": mean("level_shift_rate"),
        "misnamed_rate": total("misnamed") / total("matched") if total("matched") else float("nan"),
        "order_violations_per_case": total("order_violations") / cases,
        "duplicates_per_case": total("duplicates") / cases,
        "dsc": mean("dsc"),
        "dsc_without_names": mean("dsc_without_names"),
    }
