from __future__ import annotations

import math

import numpy as np
import pytest

from textseg.contracts import Atlas, Structure
from textseg.evaluation.mean_dice import MeanDice


def atlas(*names: str) -> Atlas:
    structures = tuple(Structure(name, "bone", index) for index, name in enumerate(names, start=1))
    return Atlas("bones", structures, groups={"all": names, "last": names[-1:]})


def test_each_structure_is_the_mean_over_the_cases_that_show_it() -> None:
    metric = MeanDice(atlas("a", "b", "c"))
    for values in ({1: 0.1, 2: 0.7}, {1: 0.4}, {}):
        metric.update(values)
    mean, groups = metric.compute()
    assert mean == pytest.approx((0.25 + 0.7) / 2, rel=1e-15)
    assert groups == {"all": mean}  # no case shows the last structure
    metric.reset()
    mean, groups = metric.compute()
    assert math.isnan(mean)
    assert groups == {}


def test_one_structure() -> None:
    metric = MeanDice(atlas("a"))
    metric.update({1: 0.5})
    assert metric.compute() == (0.5, {"all": 0.5, "last": 0.5})


def test_the_cases_of_all_processes_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).random((5, 2))
    alone, first, second = (MeanDice(atlas("a", "b")) for _ in range(3))
    for number, row in enumerate(rows):
        for metric in (alone, (first, second)[number % 2]):
            metric.update({1: row[0], 2: row[1]})
    states = [[getattr(metric, name).clone() for metric in (first, second)] for name in ("sums", "counts")]
    monkeypatch.setattr(first, "distributed_available_fn", lambda: True)
    monkeypatch.setattr(first, "dist_sync_fn", lambda tensor, group: states.pop(0))
    mean, groups = first.compute()
    assert mean == pytest.approx(rows.mean(), rel=1e-15)
    assert alone.compute()[0] == pytest.approx(mean, rel=1e-15)
    assert alone.compute()[1] == pytest.approx(groups, rel=1e-15)
