from __future__ import annotations

import json
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import textseg
from textseg.contracts import Atlas, Prompts, Structure, Visibility
from textseg.errors import PluginError, PromptError, RunError
from textseg.evaluation.evaluate import load_segmenter
from textseg.export.bundle import _possible, export_bundle
from textseg.export.model_card import model_card
from textseg.inference.bundles import _check_plugins, check_bundle, manifest_text
from textseg.inference.loading import load_model
from textseg.inference.trained_model import TrainedModel
from textseg.recipe.loading import load_recipe
from textseg.recipe.schema import ComponentSpec, ModelSettings, ReportSettings
from textseg.registry.component import Plugin
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import build, build_segmenter
from textseg.runs.folder import RunFolder
from textseg.volumes.files import file_hash


@pytest.fixture(scope="module")
def scan(finished_run: Path, stranger: None) -> Path:
    return build(load_recipe(RunFolder(finished_run).recipe)).cases["test"][0].case.image


@pytest.fixture(scope="module")
def bundle(finished_run: Path, stranger: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(RunFolder(finished_run), load_model(finished_run), folder)
    return folder


def test_the_last_checkpoint_and_mirror_images_are_those_of_scores_and_bundles(
    finished_run: Path, stranger: None, scan: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    recipe = folder.recipe.read_text().replace("checkpoint: best", "checkpoint: last")
    folder.recipe.write_text(recipe.replace("mirroring: none", "mirroring: horizontal"))
    state = torch.load(folder.checkpoint("last"), weights_only=False)
    name = next(iter(state["model"]))
    state["model"] = {key: value * 1.5 if key == name else value for key, value in state["model"].items()}
    torch.save(state, folder.checkpoint("last"))
    experiment, model = build(load_recipe(folder.recipe)), load_model(folder.path)
    segmenter = load_segmenter(experiment, folder)
    for loaded in (segmenter, model.segmenter):
        assert torch.equal(loaded.state_dict()[name], state["model"][name])
        assert loaded.mirrors == ((-1,),)
    export_bundle(folder, model, tmp_path / "bundle")
    mask, plain = textseg.load(tmp_path / "bundle")(scan), textseg.load(finished_run)(scan)
    assert np.array_equal(mask.array, model(scan).array)
    assert not np.array_equal(mask.array, plain.array)


@pytest.mark.parametrize("visible", [None, "T12:L3", "T9:L5/S"])
def test_a_bundle_predicts_what_its_run_predicts(
    bundle: Path, finished_run: Path, scan: Path, visible: str | None
) -> None:
    ours, theirs = (textseg.load(path)(scan, visible=visible) for path in (bundle, finished_run))
    assert ours.array.any()
    assert np.array_equal(ours.array, theirs.array)
    assert ours.visibility == theirs.visibility
    assert ours.confidence == theirs.confidence


def test_a_bundle_holds_the_facts_of_the_training_and_no_reports(knowing: TrainedModel, finished_run: Path) -> None:
    prompts = knowing.recipe.prompts
    assert prompts is not None
    report = ReportSettings(visible="levels", facts=("history",))
    changed = prompts.model_copy(update={"report": report, "training": {"report": 0.5, "template": 0.5}})
    model = replace(knowing, recipe=knowing.recipe.model_copy(update={"prompts": changed}))
    texts = set(_possible(model))
    plain = set(_possible(replace(model, record=replace(model.record, facts=()))))
    stated = {text for text in texts if text.endswith((" The sequence is T1.", " The sequence is T2."))}
    assert texts - plain == stated
    assert len(stated) == 2 * len({text.rpartition(" The sequence is ")[0] for text in stated})
    assert not any("history" in text for text in texts)
    card = model_card(RunFolder(finished_run), model)
    assert "reports: levels, history (read, then written by the generator); facts: sequence (give them with" in card


def test_it_needs_no_text_encoder_no_network_and_no_cache(bundle: Path, scan: Path, tmp_path: Path) -> None:
    code = (
        "import socket, sys, torch\n"
        "for name in ('transformers', 'lightning'):\n"
        "    sys.modules[name] = None\n"  # importing it is an error from now on
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "torch.load = refuse\n"
        "import textseg\n"
        f"mask = textseg.load({str(bundle)!r})({str(scan)!r}, prompts='predicted')\n"
        f"mask.save({str(tmp_path / 'mask.nii.gz')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment(tmp_path / "cache"))
    assert (tmp_path / "mask.nii.gz").exists()
    assert not (tmp_path / "cache").exists()


def _environment(cache: Path) -> dict[str, str]:
    import os

    return {**os.environ, "TEXTSEG_CACHE": str(cache)}


@pytest.mark.parametrize("name", ["recipe.yaml", "task.json", "weights.safetensors", "text.safetensors", "README.md"])
def test_a_changed_byte_and_a_missing_file_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    content = bytearray((tmp_path / "b" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "b" / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name}' is not the file that was exported"):
        textseg.load(tmp_path / "b")
    (tmp_path / "b" / name).unlink()
    with pytest.raises(RunError, match=f"lacks '{name}'"):
        textseg.load(tmp_path / "b")


def test_a_byte_flipped_anywhere_in_any_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    draw = random.Random(0)
    for file in sorted((tmp_path / "b").iterdir()):
        content = file.read_bytes()
        for position in {0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(40))}:
            changed = bytearray(content)
            changed[position] ^= draw.randrange(1, 256)
            file.write_bytes(changed)
            with pytest.raises(RunError, match=f"{file.name}' is |is a bundle of format"):
                check_bundle(tmp_path / "b")
        file.write_bytes(content)
    check_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 9, "is a bundle of format 9"),
        ("api", 99, "API 99, and textseg"),
        ("files", None, "is damaged"),
    ],
)
def test_a_bundle_of_another_time_is_refused(
    bundle: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
    (tmp_path / "b" / "bundle.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(RunError, match=message):
        textseg.load(tmp_path / "b")


def sealed(bundle: Path, **changes: object) -> None:
    """Write the manifest anew, with the hashes of the files as they are now: what a hostile person would do."""
    manifest = json.loads((bundle / "bundle.json").read_text()) | changes
    if "files" not in changes:
        manifest["files"] = {name: file_hash(bundle / name) for name in manifest["files"]}
    (bundle / "bundle.json").write_text(manifest_text({k: v for k, v in manifest.items() if v is not None}))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("weights.safetensors", b"", "weights.safetensors' is damaged"),
        ("weights.safetensors", pickle.dumps(print), "weights.safetensors' is damaged"),
        ("text.safetensors", b"", "text.safetensors' is damaged"),
        ("texts.json", b"{}", "texts.json' is damaged"),
        ("texts.json", b'["a"]', "text.safetensors' is damaged .*features of 1 text"),
        ("texts.json", b"[1]", "texts.json' is damaged"),
        ("task.json", b"[]", "task.json' is damaged"),
    ],
)
def test_a_bundle_with_hostile_files_is_one_message(
    bundle: Path, tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "b" / file).write_bytes(content)
    sealed(tmp_path / "b")
    with pytest.raises(RunError, match=message):
        textseg.load(tmp_path / "b")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": None},
        {"name": 3},
        {"plugins": []},
        {"plugins": {"spine": {}}},
        {"files": {"a": 1}},
        {"files": {}},
        {"api": "1"},
    ],
)
def test_a_manifest_of_other_types_is_one_message(bundle: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    sealed(tmp_path / "b", **changes)
    with pytest.raises(RunError, match="bundle.json' is damaged|is not the file that was exported"):
        textseg.load(tmp_path / "b")


@pytest.mark.parametrize(
    "changes",
    [
        {"class_count": [1]},
        {"class_count": 10**9},
        {"text_size": 10**9},
        {"text_length": 70_000},
        {"image_channels": 0},
    ],
)
def test_sizes_of_a_task_have_bounds(bundle: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    record = json.loads((tmp_path / "b" / "task.json").read_text())
    (tmp_path / "b" / "task.json").write_text(json.dumps({**record, "task": {**record["task"], **changes}}))
    sealed(tmp_path / "b")
    with pytest.raises(RunError, match="task.json' is damaged|does not hold the features"):
        textseg.load(tmp_path / "b")


def test_a_plugin_that_is_missing_is_named_with_what_brings_it(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
    manifest["plugins"]["thoracic"] = {"distribution": "textseg-thoracic", "version": "2.1"}
    (tmp_path / "b" / "bundle.json").write_text(manifest_text(manifest))
    with pytest.raises(PluginError, match="needs the plug-in 'thoracic'.*pip install textseg-thoracic==2.1"):
        textseg.load(tmp_path / "b")


def test_a_plugin_that_breaks_is_named_with_the_reason() -> None:
    broken = Plugin("spine", "textseg-spine", "9.0", error="asks for API 7, and textseg has 1")
    manifest = {"plugins": {"spine": {"distribution": "textseg-spine", "version": "1.0"}}}
    with pytest.raises(
        PluginError, match="'b' needs plug-in 'spine'.*9.0.*is broken: asks for API 7, and textseg has 1"
    ):
        _check_plugins(Path("b"), manifest, SimpleNamespace(plugins=[broken]))  # type: ignore[arg-type]


def test_a_text_that_was_not_frozen_says_what_was(bundle: Path, scan: Path) -> None:
    with pytest.raises(PromptError, match="holds no features for .* Name a stretch"):
        textseg.load(bundle)(scan, visible=["L1", "L5"])


def test_words_without_a_frozen_text_are_refused_before_a_volume_is_read(bundle: Path, finished_run: Path) -> None:
    for words in ("T12:L3, no canal", "L1, L5"):
        with pytest.raises(PromptError, match="holds no features for .* Name a stretch"):
            textseg.load(bundle).visibility_of(words)
        assert textseg.load(finished_run).visibility_of(words).source == "interactive"
    assert textseg.load(bundle).visibility_of("T12 to L3").visible[-1] == "SC"


def test_it_holds_every_text_once_and_a_card(bundle: Path, finished_run: Path) -> None:
    texts = json.loads((bundle / "texts.json").read_text())
    assert len(texts) == len(set(texts))
    stretches = 18 * 19 // 2  # of 18 levels in a row; the template is one of them
    structures = 2 * 19 - 1  # there, and not; the canal is not in the sequence and is always there
    assert len(texts) == 4 * stretches + structures  # without a place, left, middle, right
    card = (bundle / "README.md").read_text()
    scores = (finished_run / "scores.csv").read_text()
    assert "DSC" in card
    assert "template" in card
    assert scores.count("\n") > 1
    assert "Not a medical device" in card
    assert installed_registry().component("network", "plain")  # the stranger stands beside it
    assert "by what it sees and by its text" in card
    assert "obedience" not in card


def test_a_bundle_holds_the_template_that_its_model_was_trained_with(finished_run: Path, stranger: None) -> None:
    listed = load_model(finished_run)
    assert listed.recipe.prompts is not None
    prompts = listed.recipe.prompts.model_copy(update={"template": "uncounted"})
    uncounted = replace(listed, recipe=listed.recipe.model_copy(update={"prompts": prompts}))
    texts, further = set(_possible(listed)), set(_possible(uncounted)) - set(_possible(listed))
    assert not any("obody has" in text for text in texts)
    assert all("obody has" in text for text in further)
    assert len(further) == 4 + 19  # holistic without a place, left, middle, right; and one for each structure


def test_the_card_says_whether_the_names_follow_the_text(copied: Path, stranger: None) -> None:
    folder = RunFolder(copied)
    folder.update(obedience={"scored_step": folder.read()["scored_step"], "conclusion": "obedience 0.83: they follow"})
    assert "(`textseg probe`): obedience 0.83: they follow.\n" in model_card(folder, load_model(copied))


class _Telling:
    """A model of which only the prompts matter."""

    name = "telling"
    record = SimpleNamespace(facts=())
    recipe = SimpleNamespace(prompts=SimpleNamespace(template="listed"))

    def __init__(self, atlas: Atlas, places: int) -> None:
        self.atlas, self.places = atlas, places

    def generator(self, visibility: Visibility) -> Prompts:
        position = (visibility.slice_index or 0) % self.places
        return Prompts(f"{', '.join(visibility.visible)} at {position}", self.atlas.names)


def test_of_an_atlas_without_an_order_every_set_of_a_few_structures_is_held() -> None:
    atlas = Atlas("few", tuple(Structure(name, name, index) for index, name in enumerate("abc", start=1)))
    texts = set(_possible(_Telling(atlas, 2)))  # type: ignore[arg-type]
    sets = ["a", "b", "c", "a, b", "a, c", "b, c", "a, b, c"]
    assert texts == {f"{names} at {position}" for names in sets for position in (0, 1)} | {"a", "b", "c"}


def test_texts_without_end_are_refused() -> None:
    atlas = Atlas("one", (Structure("a", "a", 1),))
    with pytest.raises(PromptError, match="another text for each place in a stack"):
        list(_possible(_Telling(atlas, 100)))  # type: ignore[arg-type]


def test_what_is_there_is_not_overwritten(finished_run: Path, bundle: Path) -> None:
    with pytest.raises(RunError, match="exists. Name another folder"):
        export_bundle(RunFolder(finished_run), load_model(finished_run), bundle)


def test_the_configuration_of_a_hub_travels_along_so_that_no_hub_is_asked(
    finished_run: Path, scan: Path, tmp_path: Path
) -> None:
    from transformers import ConvNextBackbone, ConvNextConfig

    sizes = {"hidden_sizes": [4, 8, 12, 16], "depths": [1, 1, 1, 1]}
    ConvNextBackbone(ConvNextConfig(num_channels=1, **sizes)).save_pretrained(tmp_path / "hub_model")
    plain, registry = load_model(finished_run), installed_registry()
    encoder = ComponentSpec(use="huggingface_vision", model=str(tmp_path / "hub_model"), pretrained=True)
    fusion = ComponentSpec(use="hasf", heads=2, stages=1)
    recipe = plain.recipe.model_copy(update={"model": ModelSettings(vision_encoder=encoder, fusion=fusion)})
    model = replace(plain, recipe=recipe, segmenter=build_segmenter(recipe, registry, plain.task).eval())
    export_bundle(RunFolder(finished_run), model, tmp_path / "b")
    shutil.rmtree(tmp_path / "hub_model")
    assert "may import transformers" in (tmp_path / "b" / "README.md").read_text()
    ours, theirs = textseg.load(tmp_path / "b")(scan), model(scan)
    assert np.array_equal(ours.array, theirs.array)
    assert ours.confidence == theirs.confidence
