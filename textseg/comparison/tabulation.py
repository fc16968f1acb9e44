"""From runs to a leaderboard: which structures and metrics, every mean, and who has which rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from textseg.comparison.comparability import Mismatch
from textseg.comparison.finished_runs import Repeats, said
from textseg.comparison.leaderboard import (
    CASES,
    STRUCTURES,
    TITLES,
    WITHOUT_RARE,
    Kind,
    Leaderboard,
    Number,
    Row,
    Table,
)
from textseg.comparison.published import PublishedRow
from textseg.comparison.significance import differences, ranking
from textseg.drawing.tables import metric_title
from textseg.errors import RunError
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
from textseg.metrics.definitions import lower_is_better
from textseg.metrics.statistics import Floats, macro_mean, macro_mean_interval


def make_leaderboard(
    compared: Sequence[Repeats],
    *,
    rare_share: float,
    mismatches: Sequence[Mismatch] = (),
    published: Sequence[PublishedRow] = (),
) -> Leaderboard:
    """Means over the structures that the training data of every run show. Raises RunError where there is none."""
    structures = _structures(compared)
    runs = [run for repeats in compared for run in repeats.runs]
    metrics = _metrics(compared)
    scores = arrays([(str(run.folder), run.scores) for run in runs], structures, metrics)
    shown = frequencies(scores)
    rare = {name: found for name, found in shown.items() if found[0] < rare_share * found[1]}
    groups = _groups(compared, structures)
    scopes = _scopes(structures, groups, rare)
    position = {id(run): number for number, run in enumerate(runs)}
    tables = []
    for kind in TITLES:
        members = [repeats for repeats in compared if (repeats.mark or "ranked") == kind]
        if members:
            indices = [[position[id(run)] for run in repeats.runs] for repeats in members]
            tables.append(_table(kind, members, indices, scores, scopes))
    first = runs[0]
    return Leaderboard(
        tables=tables,
        metrics=metrics,
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


def _structures(compared: Sequence[Repeats]) -> list[str]:
    common = [name for name in compared[0].trained_on if all(name in repeats.trained_on for repeats in compared)]
    if not common:
        listed = "\n  ".join(f"{repeats.first.folder}: {said(repeats.trained_on)}" for repeats in compared)
        raise RunError(f"No structure occurs in the training data of all these runs (run.json):\n  {listed}")
    return common


def _metrics(compared: Sequence[Repeats]) -> list[str]:
    """Those that every run has, DSC first, in the order of the first run. Raises RunError where they share none."""
    each = [dict.fromkeys(row.metric for row in run.scores) for repeats in compared for run in repeats.runs]
    shared = [metric for metric in each[0] if all(metric in found for found in each)]
    if not shared:
        raise RunError(f"These runs share no metric; the first has {', '.join(each[0])}.")
    return sorted(shared, key=lambda metric: (metric != "dsc", lower_is_better(metric)))


def _groups(compared: Sequence[Repeats], structures: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The groups of the atlas, as the first run that says them has them, without structures that no mean is over."""
    said_by = (run.value("groups") for repeats in compared for run in repeats.runs)
    groups = next((found for found in said_by if isinstance(found, Mapping)), {})
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
    compared: Sequence[Repeats],
    indices: Sequence[Sequence[int]],
    scores: ScoreArrays,
    scopes: Mapping[str, Scope],
) -> Table:
    values = aggregated(scores, indices)
    labels = labels_of(compared)
    means = [
        {
            name: {
                a: {m: _number(scores, m, values[a][m], repeats, runs, scope) for m in scores.metrics}
                for a in AGGREGATES
            }
            for name, scope in scopes.items()
        }
        for repeats, runs in zip(compared, indices, strict=True)
    ]
    ranks = _ranks([found[STRUCTURES] for found in means])
    main = scores.metrics[0]
    rows = []
    for place, (repeats, runs) in enumerate(zip(compared, indices, strict=True)):
        own = {a: {m: values[a][m][list(runs)] for m in scores.metrics} for a in AGGREGATES}
        over = scopes[STRUCTURES]
        rows.append(
            Row(
                label=labels[place],
                repeats=repeats,
                rank=ranks["penalised"][main][place] if kind == "ranked" else None,
                means=means[place],
                ranks={a: {m: found[place] for m, found in ranks[a].items()} for a in AGGREGATES},
                by_structure={
                    a: {m: structure_means(scores, m, runs, values[a][m]) for m in scores.metrics} for a in AGGREGATES
                },
                by_case={a: {m: case_means(scores, v) for m, v in own[a].items()} for a in AGGREGATES},
                by_patient={
                    a: {m: patient_means(*patient_sums(scores, v, over)) for m, v in own[a].items()} for a in AGGREGATES
                },
                cost=_cost(repeats),
                enumeration=_enumeration(repeats),
            )
        )
    order = sorted(range(len(rows)), key=lambda place: (ranks["penalised"][main][place], place))
    rows = [rows[place] for place in order]
    tested, ranked = {}, {}
    if kind == "ranked" and len(rows) > 1:
        for m in scores.metrics:
            lower = lower_is_better(m)
            by_patient = {row.label: row.by_patient["penalised"][m] for row in rows}
            sums = {rows[i].label: patient_sums(scores, values["penalised"][m][list(indices[place])],
                    scopes[STRUCTURES]) for i, place in enumerate(order)}  # fmt: skip
            tested[m] = differences(by_patient, m, lower_is_better=lower)
            ranked[m] = ranking(m, sums, list(by_patient.values()), lower_is_better=lower)
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


def labels_of(compared: Sequence[Repeats]) -> list[str]:
    """Names that tell the rows of a table apart: by their prompts where that does it, else by their folders."""
    labels = [repeats.label for repeats in compared]
    prompts = [f"{prompts_of(repeats)} prompts" for repeats in compared]
    for details in (prompts, [str(repeats.first.folder) for repeats in compared]):
        pairs = zip(labels, details, strict=True)
        labels = [label if labels.count(label) == 1 else f"{label} [{detail}]" for label, detail in pairs]
    return labels


def prompts_of(repeats: Repeats) -> str:
    """What the prompts of a row knew, to read."""
    return "+".join(repeats.sources).replace("_", " ")


def _number(
    scores: ScoreArrays, metric: str, values: Floats, repeats: Repeats, runs: Sequence[int], scope: Scope
) -> Number:
    """The mean of one metric over one scope, from values [R, N]."""
    sums, counts = patient_sums(scores, values[list(runs)], scope)
    interval = macro_mean_interval(sums, counts)
    missed, spurious = counts_of(scores, metric, runs, scope)

    def sd(key: str) -> float:
        """Between runs that differ in `key`, each with all of its others."""
        of = [run.facts.get(key) for run in repeats.runs]
        parts = [[r for r, mine in zip(runs, of, strict=True) if mine == value] for value in dict.fromkeys(of)]
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


def _ranks(means: Sequence[Mapping[Aggregate, Mapping[str, Number]]]) -> dict[Aggregate, dict[str, list[int]]]:
    """By aggregate and metric, of each row; shared ranks at their lower end, equal to twelve digits is equal."""
    found: dict[Aggregate, dict[str, list[int]]] = {}
    for aggregate in AGGREGATES:
        found[aggregate] = {}
        for metric in means[0][aggregate]:
            sign = 1 if lower_is_better(metric) else -1
            values = [one[aggregate][metric].value for one in means]
            keys = [np.inf if np.isnan(value) else round(sign * value, 12) for value in values]
            found[aggregate][metric] = [1 + sum(other < key for other in keys) for key in keys]
    return found


def _rank_warnings(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """A line for each metric by which the ranks depend on how misses are counted, with the rows whose ranks do."""
    warnings = []
    for metric in metrics:
        moved = [row for row in rows if len({row.ranks[aggregate][metric] for aggregate in AGGREGATES}) > 1]
        if moved:
            title = metric_title(metric, rows[0].number(metric, "as_published").unit)
            names = "; ".join(
                f"{row.label} {', '.join(str(row.ranks[aggregate][metric]) for aggregate in AGGREGATES)}"
                for row in moved
            )
            warnings.append(f"Warning: ranks by {title} depend on the aggregate ({', '.join(AGGREGATES)}): {names}.")
    return warnings


def _cost(repeats: Repeats) -> dict[str, float | None]:
    """Size and speed of a method: means over repeats, of memory the most."""
    found: dict[str, float | None] = {}
    for key in ("parameters", "multiply_accumulates", "milliseconds_per_slice", "peak_memory_bytes"):
        known = [value for run in repeats.runs if isinstance(value := run.facts.get(key), int | float)]
        total = max if key == "peak_memory_bytes" else lambda values: sum(values) / len(values)
        found[key] = float(total(known)) if known else None
    return found


def _enumeration(repeats: Repeats) -> dict[str, float] | None:
    """How the structures were named, over all volumes of all repeats; None where some run does not say."""
    found = [run.value("enumeration") for run in repeats.runs]
    if not all(isinstance(one, Mapping) and one.get("cases") for one in found):
        return None
    cases = sum(one["cases"] for one in found)

    def total(key: str) -> float:
        return float(sum(one.get(key) or 0 for one in found))

    def mean(key: str) -> float:
        known = [one for one in found if one.get(key) is not None]
        number = sum(one["cases"] for one in known)
        return sum(one[key] * one["cases"] for one in known) / number if number else float("nan")

    return {
        "cases": cases,
        "level_shift_rate": mean("level_shift_rate"),
        "misnamed_rate": total("misnamed") / total("matched") if total("matched") else float("nan"),
        "order_violations_per_case": total("order_violations") / cases,
        "duplicates_per_case": total("duplicates") / cases,
        "dsc": mean("dsc"),
        "dsc_without_names": mean("dsc_without_names"),
    }
