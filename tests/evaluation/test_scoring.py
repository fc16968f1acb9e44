from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medpy.metric import binary

from textseg.errors import RecipeError
from textseg.evaluation.scoring import score_case
from textseg.inference.slices import CasePrediction
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build

pytestmark = pytest.mark.usefixtures("stranger")


def test_groups_are_merged_before_they_are_scored(tiny_recipe: Path) -> None:
    experiment = build(load_recipe(tiny_recipe, ["evaluation={metrics: [dsc, hd95], space: prepared, unit: mm}"]))
    prepared = experiment.cases["test"][0]
    found = np.roll(np.asarray(prepared.mask), 2, axis=1)
    found = np.where(
        found == experiment.atlas["L4"].index, experiment.atlas["L3"].index, found
    )  # misnamed, rightly placed
    rows, merged = score_case(experiment, prepared, CasePrediction(found, None), "template", ("dsc", "hd95"))
    assert {row.structure for row in rows} == set(experiment.atlas.names)
    assert {row.structure for row in merged} == set(experiment.atlas.groups)
    for group, names in experiment.atlas.groups.items():
        indices = [experiment.atlas[name].index for name in names]
        one, other = np.isin(found, indices), np.isin(np.asarray(prepared.mask), indices)
        values = {row.metric: row.value for row in merged if row.structure == group}
        assert values["dsc"] == pytest.approx(binary.dc(one, other))
        assert values["hd95"] == pytest.approx(binary.hd95(one, other, voxelspacing=prepared.spacing_mm))
    worst = {row.metric: row.worst for row in merged}
    assert worst["dsc"] == 0
    assert worst["hd95"] == pytest.approx(
        float(np.linalg.norm((np.array(found.shape) - 1) * np.array(prepared.spacing_mm)))
    )


def test_a_surface_dice_has_the_tolerance_of_the_recipe(tiny_recipe: Path) -> None:
    experiment = build(
        load_recipe(tiny_recipe, ["evaluation={metrics: [nsd, asd_reverse], space: prepared, tolerance: 0.01}"])
    )
    prepared = experiment.cases["test"][0]
    found = np.roll(np.asarray(prepared.mask), 1, axis=1)
    prediction = CasePrediction(found, None)
    strict, _ = score_case(experiment, prepared, prediction, None, ("nsd",))
    wide = replace(
        experiment, recipe=load_recipe(tiny_recipe, ["evaluation={metrics: [nsd], space: prepared, tolerance: 500}"])
    )
    loose, _ = score_case(wide, prepared, prediction, None, ("nsd",))
    values = [(a.value, b.value) for a, b in zip(strict, loose, strict=True) if a.status == "ok"]
    assert all(narrow < 1 and broad == 1 for narrow, broad in values)
    assert values


@pytest.mark.parametrize("settings", ["{metrics: [nsd]}", "{tolerance: 1.0}"])
def test_a_surface_dice_and_its_tolerance_go_together(tiny_recipe: Path, settings: str) -> None:
    with pytest.raises(RecipeError, match="'nsd' among the metrics and 'tolerance'"):
        load_recipe(tiny_recipe, [f"evaluation={settings}"])
