"""How sure the means of a leaderboard are: intervals over patients, and tests of each pair of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from textseg.scores import Score
from textseg.statistics import Floats, Interval, PairedTest, holm, macro_mean_interval, paired_test


@dataclass(frozen=True)
class Difference:
    """Two runs on the same patients: the mean difference of the patients' means, its test, and p after Holm."""

    first: str
    second: str
    mean: float
    test: PairedTest
    adjusted: float


def intervals(scores: Sequence[Score], structures: Sequence[str]) -> dict[str, Interval]:
    """The 95 % interval of each metric's macro mean over `structures`, from the patients that were scored."""
    metrics = dict.fromkeys(row.metric for row in scores)
    return {metric: macro_mean_interval(*_by_patient(scores, metric, structures)[1:]) for metric in metrics}


def differences(runs: Mapping[str, Sequence[Score]], metric: str, structures: Sequence[str]) -> list[Difference]:
    """Every pair of runs, compared on each patient's mean over the structures that it shows."""
    means = {}
    for label, scores in runs.items():
        patients, sums, counts = _by_patient(scores, metric, structures)
        means[label] = dict(zip(patients, _patient_means(sums, counts), strict=True))
    everybody = sorted({patient for found in means.values() for patient in found})
    values = {label: np.array([found.get(p, math.nan) for p in everybody]) for label, found in means.items()}
    pairs = list(combinations(values, 2))
    tests = [paired_test(values[one], values[other]) for one, other in pairs]
    apart = [float(np.nanmean(values[one] - values[other])) if test.patients else math.nan for (one, other), test in
             zip(pairs, tests, strict=True)]  # fmt: skip
    adjusted = holm([test.p for test in tests])
    return [
        Difference(one, other, mean, test, float(p))
        for (one, other), mean, test, p in zip(pairs, apart, tests, adjusted, strict=True)
    ]


def _by_patient(scores: Sequence[Score], metric: str, structures: Sequence[str]) -> tuple[list[str], Floats, Floats]:
    """Patients, and sums and counts [P, S] of what is not NaN."""
    patients = sorted({row.patient for row in scores})
    rows = {patient: index for index, patient in enumerate(patients)}
    columns = {name: index for index, name in enumerate(structures)}
    sums = np.zeros((len(patients), len(structures)))
    counts = np.zeros_like(sums)
    for row in scores:
        if row.metric == metric and row.structure in columns and not math.isnan(row.value):
            place = rows[row.patient], columns[row.structure]
            sums[place] += row.value
            counts[place] += 1
    return patients, sums, counts


def _patient_means(sums: Floats, counts: Floats) -> Floats:
    shown = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=shown)
    number = shown.sum(axis=1)
    found: Floats = np.where(number > 0, means.sum(axis=1) / np.maximum(number, 1), math.nan)
    return found
