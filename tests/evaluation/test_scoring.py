from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medpy.metric import binary

from textseg.errors import PluginError
from textseg.evaluation.scoring import score_case, score_maps
from textseg.inference.slices import CasePrediction
from textseg.metrics.named import NamedMetric
from textseg.metrics.scores import Score
from textseg.recipe.loading import load_recipe
from textseg.recipe.schema import EvaluationSettings
from textseg.runs.experiment import Experiment, build

pytestmark = pytest.mark.usefixtures("stranger")


def scored(experiment: Experiment, prediction: np.ndarray) -> tuple[list[Score], list[Score]]:
    """Rows of the first test case, of its structures and of its groups, at the prepared size."""
    prepared = experiment.cases["test"][0]
    reference, _ = prepared.native_mask(experiment.dataset.label_map(prepared.case))
    case = CasePrediction(prediction, None)
    return score_case(experiment, prepared, case, reference, source="template", metrics=experiment.metrics)


def test_groups_are_merged_before_they_are_scored(tiny_recipe: Path) -> None:
    experiment = build(load_recipe(tiny_recipe, ["evaluation={metrics: [dsc, hd95], space: prepared, unit: mm}"]))
    prepared = experiment.cases["test"][0]
    prediction = np.roll(np.asarray(prepared.mask), 2, axis=1)
    # The right places under a wrong name.
    atlas = experiment.atlas
    prediction = np.where(prediction == atlas["L4"].index, atlas["L3"].index, prediction)
    rows, merged = scored(experiment, prediction)
    assert {row.structure for row in rows} == set(experiment.atlas.names)
    assert {row.structure for row in merged} == set(experiment.atlas.groups)
    for group, names in experiment.atlas.groups.items():
        indices = [experiment.atlas[name].index for name in names]
        predicted, annotated = np.isin(prediction, indices), np.isin(np.asarray(prepared.mask), indices)
        values = {row.metric: row.value for row in merged if row.structure == group}
        assert values["dsc"] == pytest.approx(binary.dc(predicted, annotated))
        assert values["hd95"] == pytest.approx(binary.hd95(predicted, annotated, voxelspacing=prepared.spacing_mm))
    worst = {row.metric: row.worst for row in merged}
    assert worst["dsc"] == 0
    assert worst["hd95"] == pytest.approx(
        float(np.linalg.norm((np.array(prediction.shape) - 1) * np.array(prepared.spacing_mm)))
    )


def test_a_surface_dice_has_the_tolerance_of_the_recipe(tiny_recipe: Path) -> None:
    experiment = build(load_recipe(tiny_recipe, ["evaluation={metrics: [nsd], space: prepared, tolerance: 0.01}"]))
    prepared = experiment.cases["test"][0]
    shifted = np.roll(np.asarray(prepared.mask), 1, axis=1)
    strict, _ = scored(experiment, shifted)
    wide = replace(
        experiment, recipe=load_recipe(tiny_recipe, ["evaluation={metrics: [nsd], space: prepared, tolerance: 500}"])
    )
    loose, _ = scored(wide, shifted)
    values = [(a.value, b.value) for a, b in zip(strict, loose, strict=True) if a.status == "ok"]
    assert all(narrow < 1 and broad == 1 for narrow, broad in values)
    assert values


class Failing:
    """Fails; 1 is best."""

    unit, higher_is_better, missed = "", True, 0.0

    def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> float:
        raise OverflowError("too large")


def test_a_metric_that_fails_is_named_with_case_and_structure(tiny_recipe: Path) -> None:
    experiment = build(load_recipe(tiny_recipe, ["evaluation={metrics: [dsc], space: prepared}"]))
    prepared = experiment.cases["test"][0]
    mask = np.asarray(prepared.mask)
    maps = mask, mask
    metrics = [NamedMetric("mine", Failing(), plugin="plug-in 'mine' (textseg-mine 0.2)")]
    for per, of in (("volume", ""), ("slice", r", slice \d+")):
        settings = EvaluationSettings.model_validate({"per": per})
        wanted = rf"it raises OverflowError: too large, for '.*' of case '{prepared.case.id}'{of}\."
        with pytest.raises(PluginError, match=wanted):
            score_maps(settings, experiment.atlas, prepared.case, maps, (3, 1, 1), source="none", metrics=metrics)
