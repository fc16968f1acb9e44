from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import textseg
from textseg.cli.entry import app
from textseg.contracts import Source
from textseg.errors import DataError, PromptError, RunError
from textseg.evaluation.evaluate import load_segmenter
from textseg.export.bundle import export_bundle
from textseg.export.onnx import export_onnx
from textseg.inference.averaging import views
from textseg.inference.loading import load_model
from textseg.inference.slices import predict_case
from textseg.inference.structure_finder import prompted_slices
from textseg.inference.trained_model import TrainedModel
from textseg.recipe.loading import load_recipe
from textseg.recipe.schema import ReportSettings
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.text.visibility import template_visibility
from textseg.training.run import run
from textseg.volumes.files import Volume, read_volume
from textseg.volumes.geometry import Geometry
from textseg.volumes.scan import read_scan

CPU = torch.device("cpu")
Scans = dict[str, list[Path]]


@pytest.mark.parametrize("source", ["template", "predicted"])
def test_a_file_gives_what_evaluation_predicts_for_its_case(
    model: TrainedModel, finished_run: Path, source: Source
) -> None:
    folder = RunFolder(finished_run)
    experiment = build(load_recipe(folder.recipe), also=[source])
    segmenter = load_segmenter(experiment, folder)
    prepared = experiment.cases["test"][0]
    stack, visibility = prompted_slices(experiment, segmenter, prepared, source, CPU)
    expected = predict_case(segmenter, prepared, stack, device=CPU, batch_size=1)
    mask = model(prepared.case.image, prompts=source)  # type: ignore[arg-type]
    assert np.array_equal(mask.array, expected.native)
    assert mask.array.any()
    assert mask.visibility is not None
    assert visibility is not None
    assert (mask.visibility.visible, mask.visibility.source) == (visibility.visible, source)
    assert mask.remarks == ()


def test_what_a_person_names_reaches_the_model(model: TrainedModel, scans: Scans) -> None:
    path = scans["test"][0]
    by_ends, by_text = model(path, visible=("L3", "L5")), model(path, visible="L3:L5")
    assert by_ends.visibility == by_text.visibility
    assert by_ends.visibility is not None
    assert "T12" not in by_ends.visibility.visible
    assert np.array_equal(by_ends.array, by_text.array)
    with pytest.raises(PromptError, match="'L3:L9': no 'L9' in the sequence. Possible: L1"):
        model(path, visible="L3:L9")


def test_facts_reach_the_text(knowing: TrainedModel, scans: Scans) -> None:
    scan = scans["test"][0]
    assert knowing.checked_facts({"sequence": 2}) == {"sequence": "2"}  # a number, as in JSON lines
    mask = knowing(scan, visible="T12:L3", facts={"Sequence": " T2 "})
    assert mask.visibility is not None
    assert (mask.visibility.source, mask.visibility.facts) == ("interactive", {"sequence": "T2"})
    prepared = knowing.prepare(read_scan(scan))
    text = knowing.slices(prepared, mask.visibility).text
    assert text is not None
    assert text.holistic("interactive", 0).endswith(" The sequence is T2.")
    assert any(
        "sequence FLAIR is new to this model" in line
        for line in knowing(scan, visible="T12:L3", facts={"sequence": "FLAIR"}).remarks
    )
    with pytest.raises(PromptError, match=r"state no fact 'sequense'. Did you mean 'sequence'"):
        knowing(scan, facts={"sequense": "T2"})
    with pytest.raises(PromptError, match=r"has \d+ tokens, and this run was built for texts of at most \d+"):
        knowing(scan, facts={"sequence": "T2 " * 40})


def test_facts_of_a_report_make_a_report(knowing: TrainedModel) -> None:
    def trained_on(**columns: Any) -> TrainedModel:
        prompts = knowing.recipe.prompts
        assert prompts is not None
        changes = {"report": ReportSettings(**columns), "training": {"report": 0.5, "template": 0.5}}
        return replace(
            knowing, recipe=knowing.recipe.model_copy(update={"prompts": prompts.model_copy(update=changes)})
        )

    read = trained_on(visible="levels", facts=("history",))
    assert read.known_facts == {"sequence": ["T1", "T2"], "history": []}
    stated = read.visibility_of("T12:L3", facts={"history": "trauma", "sequence": "T2"})
    assert stated is not None
    assert (stated.source, stated.counted, stated.visible) == ("report", True, knowing.atlas.between("T12", "L3"))
    nothing = read.visibility_of(None, facts={"history": "trauma"})
    assert nothing is not None
    assert (nothing.source, nothing.counted) == ("report", False)
    assert read.visibility_of(None, facts={"sequence": "T2"}) is None  # the template, with a fact

    spoken = trained_on(sentences="findings")
    stated = spoken.visibility_of(None, facts={"findings": "A  disc bulges.", "sequence": "T2"})
    assert stated is not None
    assert (stated.sentence, stated.facts) == ("A disc bulges.", {"sequence": "T2"})
    with pytest.raises(PromptError, match="The sentences under 'findings' are the whole text of a slice"):
        spoken.visibility_of("T12:L3", facts={"findings": "A disc bulges."})
    assert "findings" not in knowing.known_facts  # a model that was trained on no report
    lines = spoken.doubtful_facts(template_visibility(knowing.atlas, {"sequence": "T2"}))
    assert [line for line in lines if "add --fact findings=SENTENCE" in line] == lines
    assert (len(lines), spoken.doubtful_facts(stated)) == (1, [])
    for model in (read, spoken):
        prompts = model.recipe.prompts
        assert prompts is not None
        changed = model.recipe.model_copy(update={"prompts": prompts.model_copy(update={"evaluation": "report"})})
        assert replace(model, recipe=changed).default_prompts == "template"


def test_a_volume_in_memory_and_its_file_give_the_same_mask(model: TrainedModel, scans: Scans) -> None:
    path = scans["test"][0]
    assert np.array_equal(model(read_volume(path)).array, model(path).array)


def test_views_are_averaged_and_nothing_is_mirrored(model: TrainedModel, scans: Scans) -> None:
    path = scans["test"][0]
    prepared = model.prepare(read_scan(path))
    visibility = model.visibility(prepared, None, "template")
    dark = views(["gamma"], model.task.image_size)
    assert len(dark) == 3
    by_hand = [
        torch.cat(list(model.logits(replace(prepared, image=view.show(prepared.image)), visibility))).softmax(1)
        for view in dark
    ]
    averaged = torch.cat(list(model.logits(prepared, visibility, test_time_augmentation=["gamma"])))
    torch.testing.assert_close(averaged.exp(), torch.stack(by_hand).mean(0))
    plain, all_views = model(path), model(path, test_time_augmentation=("shift", "scale", "gamma"))
    assert 0 < (plain.array != all_views.array).mean() < 0.2


def test_a_scan_of_the_training_is_recognised(model: TrainedModel, scans: Scans) -> None:
    path = scans["train"][0]
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


def test_an_inverted_scan_is_called_unlike_those_of_the_training(model: TrainedModel, scans: Scans) -> None:
    scan = read_volume(scans["test"][0])
    inverted = replace(scan, array=scan.array.max() - scan.array)
    remarks, plain = (" ".join(model(volume).remarks) for volume in (inverted, scan))
    assert "of its range of intensities, of the training cases below" in remarks
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
def test_slices_together_are_labelled_as_one_by_one_on_a_gpu(finished_run: Path, scans: Scans) -> None:
    model = load_model(finished_run, device="cuda")
    assert model.slices_at_once > 1
    prepared = model.prepare(read_scan(scans["test"][0]))
    visibility = model.visibility(prepared, None, None)
    together, alone = (torch.cat(list(model.logits(prepared, visibility, batch_size=size))) for size in (None, 1))
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


@pytest.fixture(scope="module")
def pair(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory, stranger: None) -> tuple[Path, TrainedModel]:
    """A run that reads T1 and T2, and its model."""
    recipe = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    recipe.write_text(tiny_recipe.read_text())
    changes = ["dataset.channels=[T1,T2]", "dataset.cases=5", "dataset.slices=3", "training.epochs=1"]
    folder = run(load_recipe(recipe, changes), output=recipe.parent / "runs")
    return folder, load_model(folder)


def test_a_model_of_two_channels_reads_both_in_their_order(pair: tuple[Path, TrainedModel], tmp_path: Path) -> None:
    folder, model = pair
    experiment = build(load_recipe(RunFolder(folder).recipe))
    assert (model.task.image_channels, model.task.channel_names) == (2, ("T1", "T2"))
    prepared = experiment.cases["test"][0]
    segmenter = load_segmenter(experiment, RunFolder(folder))
    stack, _ = prompted_slices(experiment, segmenter, prepared, "template", CPU)
    expected = predict_case(segmenter, prepared, stack, device=CPU, batch_size=1).native
    t1, t2 = prepared.case.channels.values()
    swapped = model([t2, t1]).array
    for image in ([t1, t2], {"T2": t2, "T1": t1}):
        assert np.array_equal(model(image).array, expected)
    assert not np.array_equal(swapped, expected)
    for wrong, message in (
        (t1, r"reads 2 channels \(T1, T2\), and .* has 1"),
        ([t1], "reads the channels T1, T2, and was given 1 file"),
        ({"T1": t1, "FLAIR": t2}, "was given T1, FLAIR"),
        ([t1, t1], "is given for two channels of 'tiny': T1, T2"),
    ):
        with pytest.raises(DataError, match=message):
            model(wrong)
    export_bundle(RunFolder(folder), model, tmp_path / "bundle")
    assert np.array_equal(load_model(tmp_path / "bundle")([t1, t2]).array, expected)
    command = shlex.split((tmp_path / "bundle" / "README.md").read_text().split("```bash\n")[1].split("\n")[0])
    assert command[:3] == ["textseg", "predict", "tiny"]
    scans = [tmp_path / name for name in command[3:5]]
    for path, scan in zip((t1, t2), scans, strict=True):
        shutil.copy(path, scan)
    output = tmp_path / command[-1]
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "bundle"), *map(str, scans), "--output", str(output)])
    assert result.exit_code == 0, result.output
    sidecar = json.loads((output / "scan.json").read_text())
    assert sidecar["made"]["channels"] == {"T1": "scan_0000.mha", "T2": "scan_0001.mha"}
    seen = next(case for case in experiment.cases["train"]).case
    assert "it is the training case" in model(seen.channels).remarks[0]


def test_a_model_of_two_channels_may_be_a_graph(pair: tuple[Path, TrainedModel], tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder, model = pair
    assert export_onnx(RunFolder(folder), model, tmp_path / "network.onnx").equal > 0.9999


def test_an_array_gives_the_mask_of_its_file(model: TrainedModel, scans: Scans) -> None:
    scan = read_volume(scans["test"][0])
    expected = model(scans["test"][0], visible="L1:L5").array
    for array in (scan.array, torch.from_numpy(scan.array), scan.array[None]):
        assert np.array_equal(model(array, spacing_mm=scan.spacing_mm, visible="L1:L5").array, expected)
    with pytest.raises(DataError, match="Give them in mm: spacing_mm="):
        model(scan.array)
    with pytest.raises(DataError, match="spacing_mm belongs to an array"):
        model(scans["test"][0], spacing_mm=(1, 1, 1))
