from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from textseg.metrics.statistics import (
    bootstrap_macro_means,
    holm,
    kendall_taus,
    macro_mean,
    macro_mean_interval,
    paired_test,
    rank_by_tests,
    rank_distribution,
    rank_then_mean,
    ranks,
    small_sample_warning,
)


def column(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values[:, None], np.ones((len(values), 1))


def test_a_macro_mean_weighs_structures_alike_and_leaves_out_what_nobody_shows() -> None:
    sums = np.array([[1.0, 4.0, 0.0], [2.0, 0.0, 0.0]])
    counts = np.array([[2.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert macro_mean(sums, counts) == pytest.approx((3 / 3 + 4 / 1) / 2)


@pytest.mark.parametrize("skewed", [False, True])
def test_an_interval_is_that_of_scipy(skewed: bool) -> None:
    generator = np.random.default_rng(3)
    values = generator.exponential(size=60) if skewed else generator.normal(0.8, 0.1, 60)
    ours = macro_mean_interval(*column(values), draws=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)
    assert ours.value == pytest.approx(values.mean())
    assert ours.patients == 60


@pytest.mark.parametrize("trials", [400, pytest.param(1500, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("distribution", ["normal", "beta"])
def test_95_of_100_intervals_hold_the_truth(distribution: str, trials: int) -> None:
    """Patients with one to three series each, whose scores are alike within a patient; five structures."""
    generator = np.random.default_rng(7)
    held, patients, structures = 0, 100, 5
    level = np.linspace(0.6, 0.9, structures)
    for trial in range(trials):
        series = np.broadcast_to(generator.integers(1, 4, (patients, 1)), (patients, structures))
        own = (
            generator.normal(0, 0.06, (patients, 1))
            if distribution == "normal"
            else generator.beta(8, 2, (patients, 1)) - 0.8
        )
        noise = generator.normal(0, 0.05, (patients, structures)) / np.sqrt(series)
        interval = macro_mean_interval((level + own + noise) * series, series.astype(float), draws=600, seed=trial)
        held += interval.low <= level.mean() <= interval.high
    assert 0.93 <= held / trials <= 0.97


def test_the_same_seed_gives_the_same_interval_and_a_patient_without_a_value_does_not_count() -> None:
    values = np.random.default_rng(0).random((20, 3))
    counts = np.ones((20, 3))
    first = macro_mean_interval(values, counts)
    assert macro_mean_interval(np.vstack([values, np.zeros((1, 3))]), np.vstack([counts, np.zeros((1, 3))])) == first
    assert first.low < first.value < first.high


def test_intervals_of_nothing_of_one_and_of_equal_patients() -> None:
    empty = macro_mean_interval(np.zeros((2, 1)), np.zeros((2, 1)))
    assert math.isnan(empty.value)
    assert empty.patients == 0
    single = macro_mean_interval(*column(np.array([0.7])))
    assert (single.value, single.patients) == (0.7, 1)
    assert math.isnan(single.low)
    same = macro_mean_interval(*column(np.full(9, 0.5)))
    assert (same.low, same.high) == (0.5, 0.5)


def test_methods_are_resampled_together() -> None:
    values = np.random.default_rng(0).random((30, 4))
    counts = np.ones((2, 30, 4))
    means = bootstrap_macro_means(np.stack([values, values + 0.1]), counts, draws=50)
    assert means.shape == (50, 2)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.1)


def test_a_paired_test_is_that_of_scipy() -> None:
    generator = np.random.default_rng(5)
    for count in (8, 20, 60):
        first, second = generator.random(count), generator.random(count)
        result = paired_test(first, second)
        assert result.p == pytest.approx(stats.wilcoxon(first, second).pvalue, rel=1e-6)
        assert paired_test(second, first).effect == pytest.approx(-result.effect)
        assert result.patients == count


def test_the_effect_is_wilcoxons_own_sums_over_all_ranks() -> None:
    # Nine ranks sum to 45; seven and eight are against
    differences = np.array([1, 2, 3, 4, 5, 6, -7, -8, 9.0])
    assert paired_test(differences, np.zeros(9)).effect == pytest.approx((30 - 15) / 45)
    assert paired_test(np.ones(5), np.zeros(5)).effect == 1
    same = paired_test(np.ones(5), np.ones(5))
    assert (same.p, same.effect) == (1, 0)
    ties = paired_test(np.array([1.0, 1.0, 2.0, 3.0, 5.0, 8.0]), np.array([1.0, 2.0, 1.0, 1.0, 1.0, 1.0]))
    assert 0 < ties.p < 1
    assert paired_test(np.array([math.nan, 2.0]), np.array([1.0, 1.0])).patients == 1
    assert math.isnan(paired_test(np.array([math.nan]), np.array([1.0])).p)


def test_holm_as_published() -> None:
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, math.nan, 0.9]), [1.0, math.nan, 1.0])
    assert holm([]).size == 0


def test_ranks_share_and_nan_is_last() -> None:
    assert ranks(np.array([0.9, 0.7, 0.9, math.nan]), lower_is_better=False).tolist() == [1.5, 3, 1.5, 4]
    assert ranks(np.array([9.0, 7.0, 8.0]), lower_is_better=True).tolist() == [3, 1, 2]
    np.testing.assert_array_equal(ranks(np.array([[1.0, 2], [4, 3]]), lower_is_better=True), [[1, 2], [2, 1]])


def test_a_rank_distribution_sums_to_one_and_knows_the_sure_winner() -> None:
    generator = np.random.default_rng(0)
    means = np.column_stack(
        [generator.normal(0.9, 0.01, 500), generator.normal(0.5, 0.1, 500), generator.normal(0.5, 0.1, 500)]
    )
    distribution = rank_distribution(means, lower_is_better=False)
    np.testing.assert_allclose(distribution.sum(axis=1), 1)
    assert distribution[0, 0] > 0.99
    assert 0.4 < distribution[1, 1] < 0.6


def test_three_ways_to_rank() -> None:
    # The first wins seven of eight patients by a little and loses one by far
    values = np.array(
        [[0.82, 0.83, 0.84, 0.85, 0.86, 0.87, 0.88, 0.05], [0.80, 0.80, 0.80, 0.80, 0.80, 0.80, 0.80, 0.80]]
    )
    assert ranks(values.mean(axis=1), lower_is_better=False).tolist() == [2, 1]
    assert rank_then_mean(values, lower_is_better=False).tolist() == [1, 2]
    assert rank_by_tests(values, lower_is_better=False).tolist() == [1.5, 1.5]
    clear = np.stack([np.linspace(0.5, 0.9, 12), np.linspace(0.5, 0.9, 12) - 0.1 - 0.001 * np.arange(12)])
    assert rank_by_tests(clear, lower_is_better=False).tolist() == [1, 2]
    assert rank_by_tests(clear, lower_is_better=True).tolist() == [2, 1]


def test_kendalls_tau() -> None:
    assert kendall_taus(np.array([1, 2, 3]), np.array([[1, 2, 3], [3, 2, 1]])) == pytest.approx([1, -1])


def test_few_patients_are_warned_of() -> None:
    assert "3 patients" in small_sample_warning(3)
    assert small_sample_warning(50) == ""
