from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medpy.metric import binary

from textseg.errors import RecipeError
from textseg.evaluation.scoring import score_case
from textseg.inference.slices import CasePrediction
from textseg.metrics.scores import Score
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import Experiment, build

pytestmark = pytest.mark.usefixtures("stranger")


def scored(experiment: Experiment, prediction: np.ndarray, metrics: Sequence[str]) -> tuple[list[Score], list[Score]]:
    """Rows of the first test case, of its structures and of its groups, at the prepared size."""
    prepared = experiment.cases["test"][0]
    reference, _ = prepared.native_mask(experiment.dataset.label_map(prepared.case))
    case = CasePrediction(prediction, None)
    return score_case(experiment, prepared, case, reference, source="template", metrics=metrics)


def test_groups_are_merged_before_they_are_scored(tiny_recipe: Path) -> None:
    experiment = build(load_recipe(tiny_recipe, ["evaluation={metrics: [dsc, hd95], space: prepared, unit: mm}"]))
    prepared = experiment.cases["test"][0]
    prediction = np.roll(np.asarray(prepared.mask), 2, axis=1)
    # The right places under a wrong name.
    atlas = experiment.atlas
    prediction = np.where(prediction == atlas["L4"].index, atlas["L3"].index, prediction)
    rows, merged = scored(experiment, prediction, ("dsc", "hd95"))
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
    experiment = build(
        load_recipe(tiny_recipe, ["evaluation={metrics: [nsd, asd_reverse], space: prepared, tolerance: 0.01}"])
    )
    prepared = experiment.cases["test"][0]
    shifted = np.roll(np.asarray(prepared.mask), 1, axis=1)
    strict, _ = scored(experiment, shifted, ("nsd",))
    wide = replace(
        experiment, recipe=load_recipe(tiny_recipe, ["evaluation={metrics: [nsd], space: prepared, tolerance: 500}"])
    )
    loose, _ = scored(wide, shifted, ("nsd",))
    values = [(a.value, b.value) for a, b in zip(strict, loose, strict=True) if a.status == "ok"]
    assert all(narrow < 1 and broad == 1 for narrow, broad in values)
    assert values


@pytest.mark.parametrize("settings", ["{metrics: [nsd]}", "{tolerance: 1.0}"])
def test_a_surface_dice_and_its_tolerance_go_together(tiny_recipe: Path, settings: str) -> None:
    with pytest.raises(RecipeError, match="'nsd' among the metrics and 'tolerance'"):
        load_recipe(tiny_recipe, [f"evaluation={settings}"])
