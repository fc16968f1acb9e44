from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import textseg
from textseg.errors import PromptError, RunError
from textseg.inference.ensemble import Ensemble
from textseg.inference.trained_model import TrainedModel
from textseg.volumes.scan import read_scan

Scans = dict[str, list[Path]]


def other_weights(model: TrainedModel) -> TrainedModel:
    """Return the model with weights of another training."""
    segmenter = copy.deepcopy(model.segmenter)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter.add_(0.2 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    return replace(model, segmenter=segmenter, fingerprint="other", record=replace(model.record, seen={"b": "case b"}))


def test_an_ensemble_is_the_mean_of_its_members_probabilities(model: TrainedModel, scans: Scans) -> None:
    second = other_weights(model)
    both = Ensemble.of([("first", model), ("second", second)])
    path = scans["test"][0]
    scan = read_scan(path)
    prepared = model.prepare(scan)
    visibility = model.visibility(prepared, "T12:L5", None)
    first_probabilities, second_probabilities = (
        torch.cat(list(member.logits(prepared, visibility))).softmax(1) for member in (model, second)
    )
    averaged = torch.cat(list(both.logits(prepared, visibility)))
    assert (first_probabilities.argmax(1) != second_probabilities.argmax(1)).any()
    torch.testing.assert_close(averaged.exp(), (first_probabilities + second_probabilities) / 2)
    confidence = both(path, visible="T12:L5").confidence
    assert confidence == both.segment(prepared, scan.geometry, visibility).confidence
    assert (both.name, both.engine) == ("tiny x 2", "torch")
    assert both.fingerprint not in (model.fingerprint, second.fingerprint)
    assert both.record.seen == {**model.record.seen, "b": "case b"}
    assert both(path, prompts="predicted").visibility is not None


def test_one_path_loads_no_ensemble(finished_run: Path, stranger: None) -> None:
    assert isinstance(textseg.load(finished_run), TrainedModel)


def test_an_ensemble_of_twins_predicts_as_one_of_them(model: TrainedModel, scans: Scans) -> None:
    twin = Ensemble.of([("one", model), ("two", replace(model, fingerprint="twin"))])
    path = scans["test"][0]
    assert np.array_equal(twin(path).array, model(path).array)


def test_each_member_reads_the_template_that_it_was_trained_with(model: TrainedModel, scans: Scans) -> None:
    assert model.recipe.prompts is not None
    prompts = model.recipe.prompts.model_copy(update={"template": "uncounted"})
    second = replace(model, recipe=model.recipe.model_copy(update={"prompts": prompts}), fingerprint="second")
    both = Ensemble.of([("one", model), ("two", second)])
    prepared = both.prepare(read_scan(scans["test"][0]))
    visibility = both.visibility(prepared, None, None)
    for member, says_so in ((model, False), (second, True)):
        text = member.slices(prepared, visibility).text
        assert text is not None
        assert ("nobody has named" in text.holistic("template", 0)) == says_so


def test_models_that_do_not_fit_are_no_ensemble(model: TrainedModel, finished_run: Path) -> None:
    with pytest.raises(RunError, match=f"'{finished_run}' and '{finished_run}' hold the same weights"):
        textseg.load(finished_run, finished_run)
    second = replace(model, fingerprint="second")
    size = model.recipe.preparation.model_copy(update={"size": (64, 40)})
    larger = replace(second, recipe=model.recipe.model_copy(update={"preparation": size}))
    with pytest.raises(
        RunError, match=r"'b' can't be in one ensemble with 'a': preparation.size is \[48, 40\] against"
    ):
        Ensemble.of([("a", model), ("b", larger)])
    fewer = replace(model.atlas, name="fewer", groups={}, adjacent=(), structures=model.atlas.structures[:-1])
    named = replace(second, record=replace(model.record, task=replace(model.task, atlas=fewer)))
    with pytest.raises(
        RunError, match=r"the name of their atlases differs \('lumbar.*' against 'fewer'\); the structures"
    ):
        Ensemble.of([("a", model), ("b", named)])
    structures = tuple(replace(structure, snomed=None) for structure in model.atlas.structures)
    uncoded = replace(model.atlas, structures=structures)
    older = replace(second, record=replace(model.record, task=replace(model.task, atlas=uncoded)))
    assert len(Ensemble.of([("a", model), ("b", older)]).members) == 2  # averaging ignores codes
    assert model.recipe.prompts is not None
    prompts = model.recipe.prompts.model_copy(update={"evaluation": "predicted"})
    undecided = Ensemble.of(
        [("a", model), ("b", replace(second, recipe=model.recipe.model_copy(update={"prompts": prompts})))]
    )
    with pytest.raises(PromptError, match="'tiny' by template, 'tiny' by predicted.: say which"):
        _ = undecided.default_prompts
