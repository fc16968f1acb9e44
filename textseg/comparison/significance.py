"""Tests of each pair of methods on a leaderboard, and ranks by three schemes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from textseg.metrics.statistics import (
    Floats,
    PairedTest,
    bootstrap_macro_means,
    holm,
    kendall_taus,
    macro_mean,
    paired_test,
    rank_by_tests,
    rank_distribution,
    rank_then_mean,
    ranks,
)

ALPHA = 0.05  # below it a difference is called significant, after Holm's adjustment
SCHEMES = {
    "mean_then_rank": "methods are ranked by their means",
    "rank_then_mean": "methods are ranked on each patient, then by the means of these ranks",
    "test_then_rank": "methods are ranked by how many others they beat, p (Holm) below 0.05 on patients' means",
}


@dataclass(frozen=True)
class Difference:
    """A comparison of two methods on the same patients by one metric: mean difference of patient means, test, Holm's p.

    The effect is the matched-pairs rank-biserial correlation: 1 where `first` is better in every patient, -1 where
    `second` is.
    """

    metric: str
    first: str
    second: str
    mean: float
    test: PairedTest
    adjusted: float


@dataclass(frozen=True)
class Ranking:
    """The ranks of M methods by one metric.

    `schemes` contains the ranks by each of SCHEMES. `distribution` [M, M] is the share of bootstrap draws of patients
    in which method m had rank r + 1. `tau` is Kendall's tau between each two schemes. `stability` is the mean tau
    between the ranking by means and the rankings of the draws. Values are NaN if all ranks are equal.
    """

    metric: str
    methods: tuple[str, ...]
    schemes: Mapping[str, tuple[float, ...]]
    distribution: Floats
    tau: Mapping[tuple[str, str], float]
    stability: float

    def likely(self, method: int, level: float = 0.95) -> tuple[int, int]:
        """Return the lowest and highest rank of a method in the share `level` of the draws."""
        beyond = (1 - level) / 2
        cumulated = np.cumsum(self.distribution[method])
        low = int(np.searchsorted(cumulated, beyond, side="right"))
        high = int(np.searchsorted(cumulated, 1 - beyond - 1e-12))
        return low + 1, min(high, len(self.methods) - 1) + 1


def differences(means: Mapping[str, Floats], metric: str, *, lower_is_better: bool) -> list[Difference]:
    """Compare every pair of methods on the patients' means [P] of each; p is adjusted for the number of pairs."""
    pairs = list(combinations(means, 2))
    tests = [paired_test(means[first], means[second]) for first, second in pairs]
    sign = -1.0 if lower_is_better else 1.0
    pairwise = []
    for (first, second), test, p in zip(pairs, tests, holm([test.p for test in tests]), strict=True):
        apart = float(np.nanmean(means[first] - means[second])) if test.patients else math.nan
        better = PairedTest(test.p, sign * test.effect, test.patients)
        pairwise.append(Difference(metric, first, second, apart, better, float(p)))
    return pairwise


def ranking(
    metric: str, sums: Mapping[str, tuple[Floats, Floats]], patient_means: Sequence[Floats], *, lower_is_better: bool
) -> Ranking:
    """Rank methods from sums and counts [P, S] of each, and its patients' means [P]."""
    stacked = np.stack([total for total, _ in sums.values()]), np.stack([count for _, count in sums.values()])
    means = np.array([macro_mean(total, count) for total, count in sums.values()])
    draws = bootstrap_macro_means(*stacked)
    values = np.stack(list(patient_means))
    values = values[:, ~np.isnan(values).all(axis=0)]
    schemes = {
        "mean_then_rank": ranks(means.round(12), lower_is_better=lower_is_better),
        "rank_then_mean": rank_then_mean(values.round(12), lower_is_better=lower_is_better),
        "test_then_rank": rank_by_tests(values, lower_is_better=lower_is_better),
    }
    first = schemes["mean_then_rank"]
    by_draw = ranks(draws.round(12), lower_is_better=lower_is_better)
    taus = kendall_taus(first, by_draw)
    return Ranking(
        metric,
        tuple(sums),
        {name: tuple(float(rank) for rank in values) for name, values in schemes.items()},
        rank_distribution(draws.round(12), lower_is_better=lower_is_better),
        {(a, b): float(kendall_taus(schemes[a], schemes[b][None])[0]) for a, b in combinations(schemes, 2)},
        float(np.nanmean(taus)) if not np.isnan(taus).all() else math.nan,
    )
