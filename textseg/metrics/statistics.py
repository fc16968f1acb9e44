"""Confidence intervals, tests and ranks, resampled over patients, since scores of one patient are not independent.

A score table becomes two arrays [P, S] (P patients, S structures): `sums` of a metric's values and `counts` of how many
there are, because a patient may have several series, and not every series shows every structure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from textseg.system.messages import counted

Floats = NDArray[np.float64]

DRAWS = 2000
LEVEL = 0.95  # of every interval
SEED = 2025
MINIMUM_PATIENTS = 50  # below it an interval is too narrow more often than its level says


@dataclass(frozen=True)
class Interval:
    """A mean with its bounds and its number of patients; bounds are NaN for a single patient."""

    value: float
    low: float
    high: float
    patients: int


@dataclass(frozen=True)
class PairedTest:
    """Wilcoxon's signed-rank test of two methods on the same patients.

    `effect` is the matched-pairs rank-biserial correlation: 1 where the first is higher in every patient, -1 where the
    second is.
    """

    p: float
    effect: float
    patients: int


def macro_mean(sums: Floats, counts: Floats) -> float:
    """The mean over structures of their means over patients [P, S]; structures without a value are left out."""
    return float(_macro_means(np.ones((1, len(sums))), sums, counts)[0])


def macro_mean_interval(sums: Floats, counts: Floats, *, draws: int = DRAWS, seed: int = SEED) -> Interval:
    """The macro mean of [P, S] with an interval: bias-corrected, accelerated bootstrap over patients (Efron, 1987)."""
    used = np.asarray(counts).sum(axis=1) > 0
    sums, counts = np.asarray(sums, dtype=np.float64)[used], np.asarray(counts, dtype=np.float64)[used]
    patients = len(sums)
    if not patients:
        return Interval(math.nan, math.nan, math.nan, 0)
    value = macro_mean(sums, counts)
    if patients == 1:
        return Interval(value, math.nan, math.nan, 1)
    means = np.sort(_known(_macro_means(_weights(patients, draws, seed), sums, counts)))
    if means[-1] - means[0] < 1e-12 * max(1.0, abs(value)):
        return Interval(value, value, value, patients)
    below = (np.mean(means < value) + np.mean(means <= value)) / 2
    bias = stats.norm.ppf(np.clip(below, 1 / (2 * len(means)), 1 - 1 / (2 * len(means))))
    left_out = _known(_macro_means(1 - np.eye(patients), sums, counts))
    apart = left_out.mean() - left_out
    spread = (apart**2).sum()
    acceleration = (apart**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    z = bias + stats.norm.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = np.quantile(means, stats.norm.cdf(bias + z / (1 - acceleration * z))).tolist()
    return Interval(value, low, high, patients)


def bootstrap_macro_means(sums: Floats, counts: Floats, *, draws: int = DRAWS, seed: int = SEED) -> Floats:
    """Macro means [draws, M] of M methods [M, P, S], all from the same resampled patients."""
    weights = _weights(sums.shape[1], draws, seed)
    return np.stack([_macro_means(weights, total, count) for total, count in zip(sums, counts, strict=True)], axis=1)


def paired_test(first: Floats, second: Floats) -> PairedTest:
    """Test the difference of two methods, two-sided, on patients' means [P]; incomplete pairs are left out.

    Equal values count half to each side in the ranks (Pratt); without any difference p is 1.
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return PairedTest(math.nan, math.nan, 0)
    if not differences.any():
        return PairedTest(1.0, 0.0, len(differences))
    ranked = stats.rankdata(np.abs(differences))
    up, down = ranked[differences > 0].sum(), ranked[differences < 0].sum()
    few = len(differences) <= 25 and len(np.unique(np.abs(differences))) == len(differences)
    exact = few and (differences != 0).all()
    result = stats.wilcoxon(differences, zero_method="pratt", method="exact" if exact else "approx")
    return PairedTest(float(result.pvalue), float((up - down) / (up + down)), len(differences))


def holm(p_values: Sequence[float]) -> Floats:
    """P values adjusted for their number (Holm, 1979); NaN stays NaN and does not count."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def ranks(values: Floats, *, lower_is_better: bool) -> Floats:
    """Ranks along the last axis, 1 the best; equal values share the mean of their ranks, NaN ranks last."""
    signed = np.asarray(values, dtype=np.float64) * (1 if lower_is_better else -1)
    return stats.rankdata(np.where(np.isnan(signed), np.inf, signed), axis=-1)


def rank_distribution(means: Floats, *, lower_is_better: bool) -> Floats:
    """[M, M]: the share of draws [draws, M] in which method m has rank r + 1; a shared rank counts at its lower end."""
    signed = np.asarray(means, dtype=np.float64) * (1 if lower_is_better else -1)
    ranked = stats.rankdata(np.where(np.isnan(signed), np.inf, signed), method="min", axis=-1).astype(int)
    methods = means.shape[1]
    return np.stack([np.bincount(ranked[:, m] - 1, minlength=methods) / len(means) for m in range(methods)])


def kendall_taus(first: Floats, others: Floats) -> Floats:
    """The agreement of a ranking [M] with each of N others [N, M], from -1 (reversed) to 1 (equal): Kendall's tau-b.

    NaN where all ranks of one are equal.
    """
    i, j = np.triu_indices(len(first), 1)
    signs = np.sign(np.asarray(first)[i] - np.asarray(first)[j])
    other_signs = np.sign(others[:, i] - others[:, j])
    scale = np.sqrt(np.abs(signs).sum() * np.abs(other_signs).sum(axis=1))
    return np.asarray(np.divide(other_signs @ signs, scale, out=np.full(len(others), math.nan), where=scale > 0))


def rank_then_mean(values: Floats, *, lower_is_better: bool) -> Floats:
    """Rank, then mean: methods are ranked on each of N patients or structures [M, N], then by their mean ranks."""
    return ranks(ranks(np.asarray(values).T, lower_is_better=lower_is_better).mean(axis=0), lower_is_better=True)


def rank_by_tests(values: Floats, *, lower_is_better: bool, alpha: float = 0.05) -> Floats:
    """Test, then rank: by the pairs that a method wins on patients' means [M, P], significant after Holm."""
    methods = len(values)
    pairs = [(i, j) for i in range(methods) for j in range(i + 1, methods)]
    tests = [paired_test(values[i], values[j]) for i, j in pairs]
    wins = np.zeros(methods)
    for (i, j), test, p in zip(pairs, tests, holm([test.p for test in tests]), strict=True):
        if p < alpha:
            wins[i if (test.effect > 0) != lower_is_better else j] += 1
    return ranks(wins, lower_is_better=False)


def small_sample_warning(patients: int) -> str:
    """A sentence for tables of few patients; empty where there are enough."""
    if patients >= MINIMUM_PATIENTS:
        return ""
    return (
        f"{counted(patients, 'patient')}: intervals and tests of fewer than {MINIMUM_PATIENTS} are rough; they show "
        "what is not known rather than who is better."
    )


@lru_cache(maxsize=4)  # the same for every mean of a leaderboard
def _weights(patients: int, draws: int, seed: int) -> Floats:
    """Return the count of each patient in each draw, [draws, P]."""
    drawn = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), size=draws)
    return drawn.astype(np.float64)


def _macro_means(weights: Floats, sums: Floats, counts: Floats) -> Floats:
    """For each row of weights [N, P], the macro mean of [P, S]."""
    totals, numbers = weights @ np.nan_to_num(sums), weights @ counts
    with np.errstate(invalid="ignore", divide="ignore"):
        means = totals / numbers
        present = numbers > 0
        macro_means: Floats = np.where(present, means, 0).sum(axis=1) / present.sum(axis=1)
    return macro_means


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]
