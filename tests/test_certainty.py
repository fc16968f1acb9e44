from __future__ import annotations

import math

import pytest

from textseg.certainty import differences, intervals
from textseg.scores import Score


def score(case: str, patient: str, structure: str, value: float, metric: str = "dsc") -> Score:
    status = "missed" if math.isnan(value) else "ok"
    return Score(case, patient, None, structure, metric, "", "native", value, 0.0, status, "template")


def table(values: dict[tuple[str, str], float]) -> list[Score]:
    return [score(f"case_{patient}", patient, structure, value) for (patient, structure), value in values.items()]


FIRST = {(f"p{n}", name): 0.5 + 0.02 * n for n in range(10) for name in ("L4", "L5")}


def test_series_of_one_patient_are_one_draw() -> None:
    alone = table(FIRST)
    repeated = [*alone, *(score(f"again_{row.case}", row.patient, row.structure, row.value) for row in alone)]
    assert intervals(repeated, ["L4", "L5"]) == intervals(alone, ["L4", "L5"])
    assert intervals(alone, ["L4", "L5"])["dsc"].patients == 10


def test_only_the_structures_asked_for_count_and_nan_is_left_out() -> None:
    rows = [*table(FIRST), score("x", "p0", "T9", 0.0), score("y", "p0", "L4", math.nan)]
    assert intervals(rows, ["L4", "L5"]) == intervals(table(FIRST), ["L4", "L5"])


def test_pairs_are_tested_on_what_both_have() -> None:
    second = {key: value - 0.1 for key, value in FIRST.items() if key[0] != "p9"}
    third = dict.fromkeys(FIRST, 0.55)
    runs = {"a": table(FIRST), "b": table(second), "c": table(third)}
    found = differences(runs, "dsc", ["L4", "L5"])
    assert [(d.first, d.second) for d in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found[0].mean == pytest.approx(0.1)
    assert found[0].test.patients == 9
    assert found[0].test.effect == 1
    assert all(d.adjusted >= d.test.p for d in found)
    assert differences({"a": table(FIRST)}, "dsc", ["L4"]) == []
    assert differences({}, "dsc", ["L4"]) == []


def test_runs_without_a_patient_in_common() -> None:
    other = {(f"q{n}", "L4"): 0.5 for n in range(3)}
    (found,) = differences({"a": table(FIRST), "b": table(other)}, "dsc", ["L4"])
    assert math.isnan(found.mean)
    assert math.isnan(found.adjusted)
