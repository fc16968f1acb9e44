"""The model of the finished run, and the scans that it was trained and tested on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from textseg.inference.loading import load_model
from textseg.inference.trained_model import TrainedModel
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg_atmnet.atpg_lumbar import ATPGLumbar


@pytest.fixture(scope="module")
def model(finished_run: Path, stranger: None) -> TrainedModel:
    """The model of the finished run."""
    return load_model(finished_run)


@pytest.fixture(scope="module")
def knowing(model: TrainedModel) -> TrainedModel:
    """The same model as if the texts of its training had stated the sequence of each case."""
    generator = ATPGLumbar(model.atlas, facts=("sequence", "history"))
    facts: tuple[dict[str, str], ...] = ({"sequence": "T1"}, {"sequence": "T2"})
    return replace(model, generator=generator, record=replace(model.record, facts=facts))


@pytest.fixture(scope="module")
def scans(finished_run: Path, stranger: None) -> dict[str, list[Path]]:
    """The image files of the finished run, by part of its split."""
    experiment = build(load_recipe(RunFolder(finished_run).recipe))
    return {part: [prepared.case.image for prepared in cases] for part, cases in experiment.cases.items()}
