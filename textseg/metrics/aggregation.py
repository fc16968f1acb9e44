"""Means of scores: the treatment of a miss, the scope of a mean, and the number of its values.

Scores of R runs at N places (case, slice, structure) are arrays [R, N]; a method is one run or several repeats: rows of
these arrays. All means come from sums and counts [P, S] over patients and structures, as `textseg.metrics.statistics`
has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from textseg.errors import RunError
from textseg.metrics.definitions import Status
from textseg.metrics.scores import Mean, Score, metric_units
from textseg.metrics.statistics import Floats, Interval, macro_mean, macro_mean_interval

Ints = NDArray[np.int64]
Aggregate = Literal["as_published", "common", "penalised"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
DEFINITIONS: Mapping[Aggregate, str] = {
    "as_published": (
        "each method over what it found, as most papers have it: a missed or spurious structure is 0 in a ratio and "
        "left out of a distance, unless its metric says otherwise"
    ),
    "common": "over the structures in their cases that every run of the table found",
    "penalised": (
        "a missed or spurious structure counts with the worst value: 0 for a ratio, the image's diagonal for a "
        "distance, unless its metric says otherwise"
    ),
}

_STATUSES: tuple[Status, ...] = get_args(Status)
_OK, _MISSED, _SPURIOUS = (_STATUSES.index(status) for status in ("ok", "missed", "spurious"))
_UNSCORED = -1


@dataclass(frozen=True)
class ScoreArrays:
    """Scores of R runs at N places, by metric; NaN if a run did not test the place, or missed the structure."""

    patients: tuple[str, ...]
    cases: tuple[str, ...]
    structures: tuple[str, ...]
    patient: Ints  # [N], which of them
    case: Ints  # [N]
    structure: Ints  # [N]
    units: Mapping[str, tuple[str, ...]]  # of each run
    values: Mapping[str, Floats]  # [R, N]
    worst: Mapping[str, Floats]  # [R, N]
    status: Mapping[str, Ints]  # [R, N], a place among _STATUSES, or _UNSCORED

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics in the order of the first run."""
        return tuple(self.values)


@dataclass(frozen=True)
class Scope:
    """The scope of a mean: over `structures`, each counted once, or over cases, each counted once."""

    name: str
    structures: tuple[str, ...]
    macro: Literal["structures", "cases"] = "structures"


def arrays(
    runs: Sequence[tuple[str, Sequence[Score]]], structures: Sequence[str], metrics: Sequence[str]
) -> ScoreArrays:
    """Scores of runs (folder, rows) as arrays, of `structures` and `metrics` only.

    Raises RunError where a run scores a place twice or in two units, or a case is of two patients.
    """
    wanted = set(structures)
    patient_of: dict[str, str] = {}
    seen: set[tuple[str, int | None, str]] = set()
    for folder, rows in runs:
        for row in rows:
            if patient_of.setdefault(row.case, row.patient) != row.patient:
                both = f"is of '{row.patient}', and another time of '{patient_of[row.case]}'"
                raise RunError(f"Run '{folder}': case '{row.case}' {both}.")
            if row.structure in wanted:
                seen.add(row.place)
    places = sorted(seen, key=lambda entry: (entry[0], -1 if entry[1] is None else entry[1], entry[2]))
    index = {entry: number for number, entry in enumerate(places)}
    cases = sorted(patient_of)
    patients = sorted(set(patient_of.values()))
    shape = len(runs), len(places)
    values, worst = ({metric: np.full(shape, np.nan) for metric in metrics} for _ in range(2))
    status = {metric: np.full(shape, _UNSCORED, dtype=np.int64) for metric in metrics}
    units = []
    for r, (folder, rows) in enumerate(runs):
        rows_of_metrics = [row for row in rows if row.metric in values]
        units.append(metric_units(rows_of_metrics, f"The scores of run '{folder}'"))
        for row in rows_of_metrics:
            if row.structure in wanted:
                entry = r, index[row.place]
                values[row.metric][entry], worst[row.metric][entry] = row.value, row.worst
                status[row.metric][entry] = _STATUSES.index(row.status)
    return ScoreArrays(
        patients=tuple(patients),
        cases=tuple(cases),
        structures=tuple(structures),
        patient=_indices((patient_of[case] for case, _, _ in places), patients),
        case=_indices((case for case, _, _ in places), cases),
        structure=_indices((name for _, _, name in places), structures),
        units={metric: tuple(units_of_run.get(metric, "") for units_of_run in units) for metric in metrics},
        values=values,
        worst=worst,
        status=status,
    )


def _indices(names: Iterable[str], among: Sequence[str]) -> Ints:
    numbers = {name: number for number, name in enumerate(among)}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def common_places(scores: ScoreArrays, metric: str, methods: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """Return [N]: True at places where every run that tested the place found the structure."""
    common = np.ones(len(scores.case), dtype=bool)
    for method in methods:
        status = scores.status[metric][list(method)]
        tested = status != _UNSCORED
        common &= ((status == _OK) | ~tested).all(axis=0) & tested.any(axis=0)
    return common


def shown_places(scores: ScoreArrays, metric: str) -> NDArray[np.bool_]:
    """Return [N]: True at places where the reference shows the structure."""
    return np.asarray(np.logical_or.reduce(np.isin(scores.status[metric], (_OK, _MISSED)), axis=0))


def aggregated(scores: ScoreArrays, methods: Sequence[Sequence[int]]) -> dict[Aggregate, dict[str, Floats]]:
    """The values [R, N] of each metric by each aggregate, `common` being common to `methods`; NaN is left out."""
    values = scores.values.items()
    missing = {metric: np.isin(status, (_MISSED, _SPURIOUS)) for metric, status in scores.status.items()}
    return {
        "as_published": dict(values),
        "common": {name: np.where(common_places(scores, name, methods), array, np.nan) for name, array in values},
        "penalised": {name: np.where(missing[name], scores.worst[name], array) for name, array in values},
    }


def patient_sums(scores: ScoreArrays, values: Floats, scope: Scope) -> tuple[Floats, Floats]:
    """Sums and counts [P, S] of a method's values [r, N]; with a macro mean over cases S is 1 and cases are counted."""
    patients, structures = len(scores.patients), len(scores.structures)
    columns = [scores.structures.index(name) for name in scope.structures]
    inside = np.where(np.isin(scores.structure, columns), values, np.nan)
    if scope.macro == "cases":
        owner = np.zeros(len(scores.cases), dtype=np.int64)
        owner[scores.case] = scores.patient
        sums, counts = np.zeros((2, patients, 1))
        for run in inside:
            means = case_means(scores, run[None])
            sums[:, 0] += np.bincount(owner, weights=np.nan_to_num(means), minlength=patients)
            counts[:, 0] += np.bincount(owner, weights=~np.isnan(means), minlength=patients)
        return sums, counts
    cells = scores.patient * structures + scores.structure

    def total(of: Floats) -> Floats:
        flat = np.bincount(cells, weights=of.sum(axis=0), minlength=patients * structures).astype(np.float64)
        return flat.reshape(patients, structures)[:, columns]

    return total(np.where(np.isnan(inside), 0.0, inside)), total((~np.isnan(inside)).astype(np.float64))


def case_means(scores: ScoreArrays, values: Floats) -> Floats:
    """[C]: the mean of a method's values [r, N] in each case, over structures, slices and repeats; NaN without any."""
    known = ~np.isnan(values)
    size = len(scores.cases)
    sums = np.bincount(scores.case, weights=np.where(known, values, 0.0).sum(axis=0), minlength=size)
    counts = np.bincount(scores.case, weights=known.sum(axis=0), minlength=size)
    return np.asarray(np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0))


def patient_means(sums: Floats, counts: Floats) -> Floats:
    """[P]: the mean of each patient over the structures [P, S] that it shows; NaN without any."""
    shown = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=shown)
    number = shown.sum(axis=1)
    return np.asarray(np.divide(means.sum(axis=1), number, out=np.full(len(sums), np.nan), where=number > 0))


def counts_of(scores: ScoreArrays, metric: str, runs: Sequence[int], scope: Scope) -> tuple[int, int]:
    """Missed and spurious places of a method, summed over its repeats."""
    inside = np.isin(scores.structure, [scores.structures.index(name) for name in scope.structures])
    status = scores.status[metric][list(runs)][:, inside]
    return int((status == _MISSED).sum()), int((status == _SPURIOUS).sum())


def structure_means(scores: ScoreArrays, metric: str, runs: Sequence[int], values: Floats) -> dict[str, Mean]:
    """The mean of a method's values [R, N] for each structure."""
    per_structure = {}
    unit = scores.units[metric][runs[0]]
    for name in scores.structures:
        scope = Scope(name, (name,))
        sums, counts = patient_sums(scores, values[list(runs)], scope)
        missed, spurious = counts_of(scores, metric, runs, scope)
        per_structure[name] = Mean(name, metric, unit, macro_mean(sums, counts), int(counts.sum()), missed, spurious)
    return per_structure


def frequencies(scores: ScoreArrays) -> dict[str, tuple[int, int]]:
    """Return, for each structure, the number of test cases whose reference shows it, and of all test cases."""
    shown = shown_places(scores, scores.metrics[0])
    return {
        name: (len(np.unique(scores.case[shown & (scores.structure == number)])), len(scores.cases))
        for number, name in enumerate(scores.structures)
    }


def spread(values: Sequence[float]) -> float:
    """The standard deviation between repeats, of a sample; NaN for fewer than two."""
    known: NDArray[Any] = np.array([value for value in values if not np.isnan(value)])
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def intervals(scores: Sequence[Score], structures: Sequence[str]) -> dict[str, Interval]:
    """The 95 % interval of each metric's macro mean over `structures` of one run, from the patients scored."""
    score_arrays = arrays([("", scores)], structures, list(dict.fromkeys(row.metric for row in scores)))
    scope = Scope("structures", tuple(structures))
    return {
        metric: macro_mean_interval(*patient_sums(score_arrays, values, scope))
        for metric, values in score_arrays.values.items()
    }
