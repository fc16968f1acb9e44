from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import textseg
from textseg.contracts import Source
from textseg.errors import PromptError, RunError
from textseg.evaluation.evaluate import load_segmenter
from textseg.inference.averaging import views
from textseg.inference.loading import ensemble
from textseg.inference.slices import predict_case
from textseg.inference.structure_finder import told_slices
from textseg.inference.trained_model import TrainedModel
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.volumes.files import Geometry, Volume, read_volume

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(finished_run: Path, stranger: None) -> TrainedModel:
    return textseg.load(finished_run)


@pytest.mark.parametrize("source", ["template", "predicted"])
def test_a_file_gives_what_evaluation_predicts_for_its_case(
    model: TrainedModel, finished_run: Path, source: Source
) -> None:
    folder = RunFolder(finished_run)
    experiment = build(load_recipe(folder.recipe), also=[source])
    segmenter = load_segmenter(experiment, folder)
    prepared = experiment.cases["test"][0]
    slices, said = told_slices(experiment, segmenter, prepared, source, CPU)
    expected = predict_case(segmenter, prepared, slices, device=CPU, batch_size=1)
    mask = model(prepared.case.image_path, prompts=source)  # type: ignore[arg-type]
    assert np.array_equal(mask.array, expected.native)
    assert mask.array.any()
    assert mask.said is not None
    assert said is not None
    assert (mask.said.visible, mask.said.source) == (said.visible, source)
    assert mask.remarks == ()


def test_what_a_person_names_reaches_the_model(model: TrainedModel, finished_run: Path) -> None:
    path = next(iter(_images(model, finished_run, "test")))
    by_ends, by_text = model(path, visible=("L3", "L5")), model(path, visible="L3:L5")
    assert by_ends.said == by_text.said
    assert by_ends.said is not None
    assert "T12" not in by_ends.said.visible
    assert np.array_equal(by_ends.array, by_text.array)
    with pytest.raises(PromptError, match="'L3:L9': 'L9' stands in no row. Possible: L1"):
        model(path, visible="L3:L9")


def test_a_volume_in_memory_and_its_file_give_the_same_mask(model: TrainedModel, finished_run: Path) -> None:
    path = next(iter(_images(model, finished_run, "test")))
    assert np.array_equal(model(read_volume(path)).array, model(path).array)


def other_weights(model: TrainedModel) -> TrainedModel:
    """The same model after a training that went otherwise."""
    segmenter = copy.deepcopy(model.segmenter)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter.add_(0.2 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    return replace(model, segmenter=segmenter, fingerprint="other", record=replace(model.record, seen={"b": "case b"}))


def test_an_ensemble_is_the_mean_of_its_members_posteriors(model: TrainedModel, finished_run: Path) -> None:
    other = other_weights(model)
    both = ensemble([("one", model), ("other", other)])
    path = next(iter(_images(model, finished_run, "test")))
    volume = read_volume(path)
    prepared = model.prepare(volume)
    said = model.visibility(prepared, "T12:L5", None)
    one, two = (torch.cat(list(part.logits(prepared, said))).softmax(1) for part in (model, other))
    found = torch.cat(list(both.logits(prepared, said)))
    assert (one.argmax(1) != two.argmax(1)).any()
    torch.testing.assert_close(found.exp(), (one + two) / 2)
    finder = {name: both(path, visible="T12:L5").confidence[name] for name in ("L5", "SC")}
    expected = both.segment(prepared, volume.geometry, said)
    assert finder == {name: expected.confidence[name] for name in finder}
    assert (both.name, both.engine) == ("tiny x 2", "torch")
    assert both.fingerprint not in (model.fingerprint, other.fingerprint)
    assert both.record.seen == {**model.record.seen, "b": "case b"}
    assert both(path, prompts="predicted").said is not None


def test_an_ensemble_of_one_is_that_one(model: TrainedModel, finished_run: Path) -> None:
    assert ensemble([("one", model)]) is model
    twin = ensemble([("one", model), ("two", replace(model, fingerprint="twin"))])
    path = next(iter(_images(model, finished_run, "test")))
    assert np.array_equal(twin(path).array, model(path).array)


def test_models_that_do_not_fit_are_no_ensemble(model: TrainedModel, finished_run: Path) -> None:
    with pytest.raises(RunError, match=f"'{finished_run}' and '{finished_run}' hold the same weights"):
        textseg.load(finished_run, finished_run)
    other = replace(model, fingerprint="other")
    size = model.recipe.preparation.model_copy(update={"size": (64, 40)})
    larger = replace(other, recipe=model.recipe.model_copy(update={"preparation": size}))
    with pytest.raises(
        RunError, match=r"'b' can't be in one ensemble with 'a': preparation.size is \[48, 40\] against"
    ):
        ensemble([("a", model), ("b", larger)])
    fewer = replace(model.atlas, name="fewer", groups={}, adjacent=(), structures=model.atlas.structures[:-1])
    named = replace(other, record=replace(model.record, task=replace(model.task, atlas=fewer)))
    with pytest.raises(
        RunError, match=r"the name of their atlases differs \('lumbar.*' against 'fewer'\); the structures"
    ):
        ensemble([("a", model), ("b", named)])
    uncoded = replace(model.atlas, structures=tuple(replace(some, snomed=None) for some in model.atlas.structures))
    older = replace(other, record=replace(model.record, task=replace(model.task, atlas=uncoded)))
    assert len(ensemble([("a", model), ("b", older)]).members) == 2  # codes have no part in a posterior
    assert model.recipe.prompts is not None
    prompts = model.recipe.prompts.model_copy(update={"evaluation": "predicted"})
    undecided = ensemble(
        [("a", model), ("b", replace(other, recipe=model.recipe.model_copy(update={"prompts": prompts})))]
    )
    with pytest.raises(PromptError, match="'tiny' by template, 'tiny' by predicted.: say which"):
        _ = undecided.default_prompts


def test_views_are_averaged_and_nothing_is_mirrored(model: TrainedModel, finished_run: Path) -> None:
    path = next(iter(_images(model, finished_run, "test")))
    prepared = model.prepare(read_volume(path))
    said = model.visibility(prepared, None, "template")
    dark = views(["gamma"], model.task.image_size)
    assert len(dark) == 3
    by_hand = [
        torch.cat(list(model.logits(replace(prepared, image=view.show(prepared.image)), said))).softmax(1)
        for view in dark
    ]
    found = torch.cat(list(model.logits(prepared, said, test_time_augmentation=["gamma"])))
    torch.testing.assert_close(found.exp(), torch.stack(by_hand).mean(0))
    plain, all_views = model(path), model(path, test_time_augmentation=("shift", "scale", "gamma"))
    assert 0 < (plain.array != all_views.array).mean() < 0.2


def test_a_scan_of_the_training_is_recognised(model: TrainedModel, finished_run: Path) -> None:
    path = next(iter(_images(model, finished_run, "train")))
    assert any("training case" in remark for remark in model(path).remarks)


def test_no_data_set_is_needed(finished_run: Path, tmp_path: Path, stranger: None) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.replace("/data", "/nowhere"))
    geometry = Geometry((50, 60, 3), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), (0, 0, -1, 1, 0, 0, 0, -1, 0))
    volume = Volume(np.random.default_rng(1).random((3, 60, 50), dtype=np.float32), (4.0, 1.0, 1.0), geometry)
    assert textseg.load(tmp_path / "run")(volume).array.shape == (3, 60, 50)


def test_weights_of_another_model_are_refused(finished_run: Path, tmp_path: Path, stranger: None) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("- 4\n    - 8", "- 4\n    - 12"))
    with pytest.raises(RunError, match="does not fit the model of"):
        textseg.load(tmp_path / "run")


def test_a_path_without_a_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run"):
        textseg.load(tmp_path)


def test_an_inverted_scan_is_called_unlike_those_of_the_training(model: TrainedModel, finished_run: Path) -> None:
    scan = read_volume(next(_images(model, finished_run, "test")))
    inverted = replace(scan, array=scan.array.max() - scan.array)
    found, plain = (" ".join(model(volume).remarks) for volume in (inverted, scan))
    assert "of its range of intensities, of the training cases below" in found
    assert "range of intensities" not in plain


def test_a_cpu_takes_one_slice_at_a_time_and_a_gpu_what_fits_into_half_of_its_memory(
    model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.slices_at_once == 1
    monkeypatch.setattr("textseg.inference.trained_model.memory_of_a_slice", lambda *_: 100)
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(
            torch.cuda, name, lambda device, kept={"memory_reserved": 500, "memory_allocated": 300}[name]: kept
        )
    on_gpu = replace(model, device=torch.device("cuda"))
    for free, expected in ((0, 1), (1800, 10), (10**9, 16)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        assert replace(on_gpu).slices_at_once == expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_slices_together_are_labelled_as_one_by_one_on_a_gpu(finished_run: Path, stranger: None) -> None:
    model = textseg.load(finished_run, device="cuda")
    assert model.slices_at_once > 1
    prepared = model.prepare(read_volume(next(_images(model, finished_run, "test"))))
    said = model.visibility(prepared, None, None)
    together, alone = (torch.cat(list(model.logits(prepared, said, batch_size=size))) for size in (None, 1))
    assert (together.argmax(1) == alone.argmax(1)).float().mean() > 0.9999


def test_importing_textseg_imports_no_torch_and_loading_no_lightning(finished_run: Path, stranger: None) -> None:
    code = (
        "import sys, textseg\n"
        "assert 'torch' not in sys.modules\n"
        f"textseg.load({str(finished_run)!r})\n"
        "print(sorted({'lightning', 'transformers'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def _images(model: TrainedModel, finished_run: Path, part: str) -> Iterator[Path]:
    experiment = build(load_recipe(RunFolder(finished_run).recipe))
    yield from (case.case.image_path for case in experiment.cases[part])
