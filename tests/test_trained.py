from __future__ import annotations

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
from textseg.build import build
from textseg.contracts import Source
from textseg.errors import PromptError, RunError
from textseg.evaluation import load_segmenter
from textseg.first_pass import told_slices
from textseg.prediction import predict_case
from textseg.recipe import load_recipe
from textseg.run_folder import RunFolder
from textseg.trained import TrainedModel, unlike
from textseg.volumes import Geometry, Volume, read_volume

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


def test_a_scan_of_the_training_is_recognised(model: TrainedModel, finished_run: Path) -> None:
    path = next(iter(_images(model, finished_run, "train")))
    assert any("training case" in remark for remark in model(path).remarks)


def test_no_data_set_is_needed(finished_run: Path, tmp_path: Path, stranger: None) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.replace("/data", "/nowhere"))
    volume = Volume(np.random.default_rng(1).random((3, 60, 50), dtype=np.float32), (4.0, 1.0, 1.0), _geometry())
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


def test_what_lies_outside_of_the_training_is_said(model: TrainedModel) -> None:
    spacings = model.task.fingerprint["native_spacings_mm"]
    assert spacings
    size = tuple(int(side) for side in model.task.fingerprint["native_sizes"][0])
    usual = Volume(np.zeros(size, np.float32), tuple(spacings[0]), _geometry())
    assert unlike(model.task, usual) == []
    thick = replace(usual, spacing_mm=(9 * spacings[0][0], *spacings[0][1:]))
    assert [line.partition(" is ")[0] for line in unlike(model.task, thick)] == ["the distance of its slices"]
    small = Volume(usual.array[:, ::4], usual.spacing_mm, _geometry())
    assert [line.partition(" is ")[0] for line in unlike(model.task, small)] == ["the height of its field of view"]


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


def _geometry() -> Geometry:
    return Geometry((50, 60, 3), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), (0, 0, -1, 1, 0, 0, 0, -1, 0))
