from __future__ import annotations

import math

import numpy as np
import pytest

from textseg.comparison.significance import differences, ranking
from textseg.metrics.aggregation import intervals
from textseg.metrics.scores import Score
from textseg.metrics.statistics import macro_mean_interval

GENERATOR = np.random.default_rng(4)
FIRST = GENERATOR.uniform(0.5, 0.9, 12)


def test_pairs_are_tested_on_what_both_have() -> None:
    second = np.where(np.arange(12) == 3, math.nan, FIRST - 0.1)
    result = differences({"a": FIRST, "b": second, "c": np.full(12, 0.7)}, "dsc", lower_is_better=False)
    assert [(d.first, d.second) for d in result] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert result[0].mean == pytest.approx(0.1)
    assert result[0].test.patients == 11
    assert result[0].test.effect == 1
    assert all(d.adjusted >= d.test.p for d in result)
    assert differences({"a": FIRST}, "dsc", lower_is_better=False) == []


def test_the_effect_says_who_is_better_whatever_the_metric() -> None:
    (result,) = differences({"near": FIRST, "far": FIRST + 5}, "hd95", lower_is_better=True)
    assert result.mean == pytest.approx(-5)
    assert result.test.effect == 1


def test_methods_without_a_patient_in_common() -> None:
    first, second = np.array([0.5, math.nan]), np.array([math.nan, 0.5])
    (result,) = differences({"a": first, "b": second}, "dsc", lower_is_better=False)
    assert math.isnan(result.mean)
    assert math.isnan(result.adjusted)


def test_ranks_three_ways_and_how_sure_they_are() -> None:
    values = np.stack([FIRST, FIRST - 0.1, FIRST - 0.3])
    sums = {name: (row[:, None], np.ones((12, 1))) for name, row in zip("abc", values, strict=True)}
    result = ranking("dsc", sums, list(values), lower_is_better=False)
    assert result.methods == ("a", "b", "c")
    assert set(result.schemes.values()) == {(1.0, 2.0, 3.0)}
    assert set(result.tau.values()) == {1.0}
    assert result.stability == 1
    assert [result.likely(index) for index in range(3)] == [(1, 1), (2, 2), (3, 3)]
    reverse = ranking("hd95", sums, list(values), lower_is_better=True)
    assert reverse.schemes["mean_then_rank"] == (3.0, 2.0, 1.0)


def test_methods_that_are_equal_share_ranks_and_have_no_tau() -> None:
    sums = {name: (FIRST[:, None], np.ones((12, 1))) for name in "ab"}
    result = ranking("dsc", sums, [FIRST, FIRST], lower_is_better=False)
    assert set(result.schemes.values()) == {(1.5, 1.5)}
    assert all(math.isnan(tau) for tau in result.tau.values())
    assert math.isnan(result.stability)


def test_ranks_that_nobody_knows_spread_over_the_draws() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, (2, 30))
    sums = {name: (row[:, None], np.ones((30, 1))) for name, row in zip("ab", values, strict=True)}
    result = ranking("dsc", sums, list(values), lower_is_better=False)
    assert result.likely(0) == result.likely(1) == (1, 2)
    assert -1 < result.stability < 1


def test_the_intervals_of_one_run_are_over_its_patients() -> None:
    rows = [
        Score(f"{series}_{p}", f"p{p}", None, "L4", "dsc", "", "native", value, 0.0, "ok", "none")
        for p, value in enumerate(FIRST)
        for series in "ab"
    ]
    result = intervals(rows, ["L4"])["dsc"]
    assert result.patients == 12
    expected = macro_mean_interval(FIRST[:, None] * 2, np.full((12, 1), 2.0))
    # Patients in the order of their names
    assert (result.value, result.patients) == (pytest.approx(expected.value), expected.patients)
    assert result.low < result.value < result.high
