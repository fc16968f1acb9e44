from __future__ import annotations

import numpy as np
import pytest

from textseg.evaluation.probe import measure_drops
from textseg.metrics.scores import Score


def row(patient: str, structure: str, value: float, source: str) -> Score:
    return Score(patient, patient, None, structure, "dsc", "", "native", value, 0.0, "ok", source)


def test_a_drop_is_the_mean_over_structures_of_the_patients_differences() -> None:
    generator = np.random.default_rng(0)
    patients, structures = [f"p{i}" for i in range(12)], ["L5", "L4"]
    before = {(p, s): generator.random() for p in patients for s in structures}
    falls = {"L5": 0.2, "L4": 0.0}
    scores = {
        "template": [row(p, s, value, "template") for (p, s), value in before.items()],
        "denied": [row(p, s, value - falls[s], "denied") for (p, s), value in before.items()],
        "empty": [row(p, s, value - generator.normal(0.1, 0.05), "empty") for (p, s), value in before.items()],
    }
    drops = {(drop.condition, drop.structure): drop.interval for drop in measure_drops(scores, structures)}
    assert drops["denied", "L5"].value == pytest.approx(0.2)
    assert drops["denied", None].value == pytest.approx(0.1)
    assert drops["denied", None].low == pytest.approx(0.1)
    noisy = drops["empty", None]
    assert noisy.low < 0.1 < noisy.high
    assert noisy.patients == 12
