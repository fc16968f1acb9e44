from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import textseg
from textseg.cli.entry import app
from textseg.contracts import SegmenterOutput, Task, TextFeatures
from textseg.errors import RunError
from textseg.export import onnx as onnx_exporting
from textseg.export.bundle import export_bundle
from textseg.export.onnx import Agreement, write_graph
from textseg.inference.loading import load_model
from textseg.inference.onnx_networks import OnnxNetwork
from textseg.models.cost import usual_task
from textseg.models.segmenter import Segmenter, TextGuidedNetwork
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

SIZE = (64, 48)  # no multiple of 32, so the graph must pad
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"channels": [4, 6]},
    "nnunet_v2": {"features": 4, "max_features": 16},
    "u_bisenet": {"channels": 4},
    "swin_unetr": {"feature_size": 12},
}


@pytest.fixture(scope="module")
def scan(finished_run: Path, stranger: None) -> Path:
    return build(load_recipe(RunFolder(finished_run).recipe)).cases["test"][0].case.image


@pytest.fixture(scope="module")
def bundle(finished_run: Path, stranger: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    result = CliRunner().invoke(
        app, ["export", str(finished_run), "--to", "onnx", "--output", str(folder)], catch_exceptions=False
    )
    assert result.stdout.startswith(f"{folder}\n")
    assert re.search(r"On \d+ slices of \d scans, 100\.0000 % of the labels are those of torch", result.stdout)
    return folder


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("visible", [None, "T12:L3"])
def test_a_graph_predicts_what_its_run_predicts(
    bundle: Path, finished_run: Path, scan: Path, engine: Any, visible: str | None
) -> None:
    pytest.importorskip(engine)
    ours, theirs = textseg.load(bundle, engine=engine), load_model(finished_run)
    mask, expected = ours(scan, visible=visible), theirs(scan, visible=visible)
    assert mask.array.any()
    assert (mask.array == expected.array).mean() >= 0.9999
    assert mask.visibility == expected.visibility
    assert mask.confidence == pytest.approx(expected.confidence, abs=1e-4)


def test_the_bundle_holds_the_graph_in_place_of_weights_and_says_how_it_was_checked(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert "network.onnx" in manifest["files"]
    assert "weights.safetensors" not in manifest["files"]
    assert manifest["fingerprint"] == manifest["files"]["network.onnx"]
    card = (bundle / "README.md").read_text()
    assert "100.0000 % of the labels are those of torch" in card
    assert "| `tokens` | S x" in card


def test_the_command_takes_an_engine_where_there_is_a_graph(
    bundle: Path, finished_run: Path, scan: Path, tmp_path: Path
) -> None:
    arguments = ["predict", str(bundle), str(scan), "--output", str(tmp_path), "--engine"]
    result = CliRunner().invoke(app, [*arguments, "onnxruntime"], catch_exceptions=False)
    assert "1 mask written" in result.stdout
    with pytest.raises(RunError, match="no engine 'onnxruntme'. Did you mean 'onnxruntime'"):
        CliRunner().invoke(app, [*arguments, "onnxruntme"], catch_exceptions=False)
    with pytest.raises(RunError, match="holds no ONNX network for onnxruntime. Make one: textseg export"):
        CliRunner().invoke(app, ["predict", str(finished_run), *arguments[2:], "onnxruntime"], catch_exceptions=False)


def test_a_package_that_is_missing_is_named_with_what_brings_it(
    bundle: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "openvino", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunError, match=r"'onnxruntime' is not installed. Run `pip install 'textseg\[onnx\]'"):
        textseg.load(bundle)
    with pytest.raises(RunError, match=r"'openvino' is not installed. Run `pip install 'textseg\[openvino\]'"):
        textseg.load(bundle, engine="openvino")
    with pytest.raises(RunError, match="'onnxscript' is not installed"):
        export_bundle(RunFolder(finished_run), load_model(finished_run), tmp_path / "b", onnx=True)
    assert not (tmp_path / "b").exists()


def test_a_graph_that_gives_other_labels_is_not_written(
    finished_run: Path, tmp_path: Path, stranger: None, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    def write_another(segmenter: Segmenter, task: Task, path: Path, name: str) -> None:
        import onnx

        graph = onnx.load(bundle / "network.onnx")
        for weights in graph.graph.initializer:
            if weights.name.endswith("head.bias"):
                values = onnx.numpy_helper.to_array(weights).copy()
                values[3] += 100
                weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        onnx.save(graph, path)

    monkeypatch.setattr(onnx_exporting, "write_graph", write_another)
    with pytest.raises(RunError, match="is not the model: On .* slices .*% of the labels .* Use --to bundle"):
        export_bundle(RunFolder(finished_run), load_model(finished_run), tmp_path / "b", onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_what_was_only_seen_on_noise_says_so() -> None:
    assert str(Agreement(0, 8, 1e-6, 1.0)).startswith("On 8 slices of noise, for want of the run's scans, 100.0000 %")


def _random_segmenter(name: str, task: Task) -> Segmenter:
    registry = installed_registry()
    torch.manual_seed(0)
    if name == "atmnet":
        encoder = registry.build("vision_encoder", "swin_unetr", task, settings={"feature_size": 12})
        fusion = registry.build("fusion", "hasf", task, encoder.features, settings={"heads": 4, "text_tokens": 4})
        segmenter = Segmenter(TextGuidedNetwork(task, encoder, fusion))
    else:
        segmenter = Segmenter(registry.build("network", name, task, settings=NETWORKS[name]))
    for module in segmenter.modules():  # as trained ones, which are not at their initial values
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 10
            module.running_var = torch.rand(module.num_features) + 0.5
    return segmenter.eval()


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        "nnunet_v2",
        "u_bisenet",
        pytest.param("swin_unetr", marks=pytest.mark.slow),
        # The encoder is that of swin_unetr; the graph of a run, above, has the fusion.
        pytest.param("atmnet", marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_a_network_as_a_graph_gives_the_same_labels_at_any_number_of_slices(name: str, tmp_path: Path) -> None:
    task = usual_task(SIZE)
    segmenter = _random_segmenter(name, task)
    path = tmp_path / "network.onnx"
    write_graph(segmenter, task, path, name)
    engines = [engine for engine in ("onnxruntime", "openvino") if pytest.importorskip(engine)]
    for engine in engines:
        exported = Segmenter(OnnxNetwork(path, uses_text=segmenter.uses_text, engine=engine))  # type: ignore[arg-type]
        for slices in (1, 2, 5):
            image, text = torch.rand(slices, 1, *SIZE), _text(task, slices) if segmenter.uses_text else None
            with torch.no_grad():
                expected, result = segmenter(image, text).logits, exported(image, text).logits
            assert result.shape == expected.shape
            assert (result - expected).abs().max() < 1e-3
            highest = expected.topk(2, dim=1).values
            tied = highest[:, 0] - highest[:, 1] < 1e-4  # by chance in random weights: there, either label is right
            assert ((result.argmax(1) == expected.argmax(1)) | tied).double().mean() >= 0.9999
            assert tied.double().mean() < 0.01


def _text(task: Task, slices: int) -> TextFeatures:
    assert task.text_length is not None
    assert task.text_size is not None
    mask = torch.arange(task.text_length)[None] < torch.randint(3, task.text_length, (slices, 1))
    structures = task.class_count - 1
    return TextFeatures(
        tokens=torch.randn(slices, task.text_length, task.text_size) * mask[..., None],
        mask=mask,
        classwise=torch.randn(slices, structures, task.text_size),
        present=torch.rand(slices, structures) > 0.5,
    )


class OneSlice(nn.Module):
    """Its graph would hold for the number of slices that it was written with."""

    uses_text = False
    size_multiple = 1

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        return SegmenterOutput(torch.cat([image] * len(list(image)), dim=1))


class Volumes(OneSlice):
    batching = "volume"


class Thick(OneSlice):
    context_slices = 3


class Placed(OneSlice):
    reads_geometry = True


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (OneSlice(), "'x' can't be written as ONNX: .*Use --to bundle"),
        (Volumes(), "'x' reads whole volumes.*--to bundle"),
        (Thick(), "'x' reads the neighbours of each slice, .*--to bundle"),
        (Placed(), "'x' reads the spacing and the position of each slice, .*--to bundle"),
    ],
)
def test_what_has_no_graph_for_any_number_of_slices_is_refused(network: OneSlice, message: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=message):
        write_graph(Segmenter(network), usual_task((8, 8)), tmp_path / "n.onnx", "x")
