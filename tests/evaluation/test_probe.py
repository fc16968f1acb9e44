from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from textseg.data.slices import SliceStack
from textseg.evaluation import probe as module
from textseg.evaluation.fields_of_view import CutCase, WindowText
from textseg.evaluation.probe import expected_scores, measure_drops, probe
from textseg.evaluation.probe_texts import MOVED
from textseg.inference.slices import CasePrediction
from textseg.levels.obedience import as_json
from textseg.metrics.scores import Score
from textseg.metrics.window_scores import MOVED as MOVED_BY
from textseg.metrics.window_scores import PERSON_ERRS
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import Experiment, build

if TYPE_CHECKING:
    from textseg.data.preparation import PreparedCase


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


def test_what_to_expect_of_a_person_who_errs() -> None:
    scores = {
        "interactive": [row(p, "L5", value, "interactive") for p, value in (("a", 0.9), ("b", 0.8), ("c", 0.7))],
        "one_level_up": [row("a", "L5", 0.1, "one_level_up"), row("b", "L5", 0.2, "one_level_up")],
        "one_level_down": [row("a", "L5", 0.3, "one_level_down")],
    }
    expected = {score.patient: score.value for score in expected_scores(scores)}
    assert PERSON_ERRS == 0.14
    # In both directions, only upwards, and in none: such a case is left out.
    assert expected == {"a": pytest.approx(0.86 * 0.9 + 0.14 * 0.2), "b": pytest.approx(0.86 * 0.8 + 0.14 * 0.2)}


@pytest.fixture(scope="module")
def experiment(finished_run: Path, stranger: None) -> Experiment:
    return build(load_recipe(finished_run / "recipe.yaml"), also=["interactive", "ground_truth"])


@pytest.mark.parametrize(("follows", "value"), [(True, 1.0), (False, 0.0)])
def test_a_model_whose_names_follow_its_text_and_one_that_ignores_it(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, follows: bool, value: float
) -> None:
    atlas = experiment.atlas

    def predict(segmenter: Any, prepared: PreparedCase, slices: SliceStack, **settings: Any) -> CasePrediction:
        """Return the annotation; a model that follows moves its names as the text does."""
        reference, _ = prepared.native_mask(experiment.dataset.label_map(prepared.case))
        condition = next(iter(slices.text.rows)) if slices.text else ""
        return CasePrediction(reference, renamed(reference, MOVED.get(condition, 0)))

    def predict_window(e: Any, s: Any, cut: CutCase, text: WindowText, *rest: Any) -> NDArray[np.uint8]:
        return renamed(cut.reference, MOVED_BY.get(text.author, 0))

    def renamed(reference: NDArray[np.uint8], levels: int) -> NDArray[np.uint8]:
        moves = levels if follows else 0
        new = [0, *(atlas[atlas.neighbour(s.name, moves) or s.name].index for s in atlas.structures)]
        return np.array(new, np.uint8)[reference]

    monkeypatch.setattr(module, "predict_case", predict)
    monkeypatch.setattr(module, "predict_window", predict_window)
    monkeypatch.setattr(module, "prompted_slices", lambda e, s, prepared, *rest: (SliceStack(prepared.image), None))
    result = probe(experiment, None, torch.device("cpu"))  # type: ignore[arg-type]
    whole, *windows = sorted(result.obedience, key=lambda picture: picture.picture != "whole")
    # The one scan whose list can be moved, and upwards only, since it shows L5/S.
    assert (whole.case, whole.picture, whole.obedience.levels, whole.landmark) == ("3_t2", "whole", -1, True)
    assert whole.obedience.structures >= 10
    # The upper half of a scan shows no landmark, so its text can be moved in both directions.
    assert {picture.obedience.levels for picture in windows if not picture.landmark} == {-1, 1}
    assert {picture.picture for picture in windows} <= {"upper 50 %", "middle 50 %", "lower 50 %"}
    assert {picture.obedience.value for picture in result.obedience} == {value}
    record = as_json(result.obedience)
    assert record["conclusion"].startswith("without a landmark, obedience")
    assert set(record["by_patient"].values()) == {value}
    cases = {name: len({score.case for score in rows}) for name, rows in result.scores.items()}
    assert (cases["interactive"], cases["one_level_up"], cases["one_level_down"]) == (3, 1, 0)
