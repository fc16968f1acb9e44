from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from textseg.errors import PluginError, RecipeError
from textseg.recipe.loading import load_recipe
from textseg.recipe.received import code_of
from textseg.recipe.schema import ComponentSpec
from textseg.registry.component import Component, Plugin
from textseg.registry.discovery import Register, Registry, installed_registry
from textseg.registry.local_code import load_code

RECIPE = """\
format: 1
name: guided
dataset: {use: slices}
split: {official: true}
preparation: {size: [64, 64]}
prompts:
  generator: {use: sentences}
  text_encoder: {use: hub, model: MODEL, remote_code: true}
model:
  vision_encoder: {use: pyramid}
  fusion: {use: mixer}
segmentation_loss: {}
training: {epochs: 1}
evaluation: {}
"""
CODE = "raise SystemExit('this code ran')\n"


def slices() -> None: ...
def sentences(atlas: object) -> None: ...
def hub(*, model: str, revision: str | None = None, remote_code: bool = False) -> None: ...
def pyramid(task: object) -> None: ...
def mixer(task: object, features: object) -> None: ...


@pytest.fixture
def registry() -> Registry:
    register = Register(Plugin("test", "test", "1"))
    register.dataset("slices", slices)
    register.prompt_generator("sentences", sentences)
    register.text_encoder("hub", hub)
    register.vision_encoder("pyramid", pyramid)
    register.fusion("mixer", mixer)
    standard = [component for component in installed_registry().components() if component.plugin == "standard"]
    return Registry([], [*register.components, *standard])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a model that brings code, also below it."""
    folder = tmp_path / "model"
    (folder / "parts").mkdir(parents=True)
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "own.Model"}}')
    (folder / "own.py").write_text(CODE)
    (folder / "parts" / "more.py").write_text(CODE)
    return folder


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A run folder that somebody sent."""
    folder = tmp_path / "received"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(model)))
    (folder / "run.json").write_text("{}")
    return folder


def test_code_of_a_received_recipe_needs_the_word_of_the_person(run: Path, registry: Registry) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(run / "recipe.yaml", registry=registry)
    message = str(caught.value)
    assert message.startswith(f"{run / 'recipe.yaml'}:8: prompts.text_encoder.remote_code: this recipe came with a run")
    assert f"'own.py' (sha256 {hashlib.sha256(CODE.encode()).hexdigest()}), 'parts/more.py' (sha256 " in message
    assert "add --trust-code (in Python: trust_code=True)" in message
    assert load_recipe(run / "recipe.yaml", registry=registry, trust_code=True).prompts is not None


def test_another_name_and_values_of_the_command_line_are_no_consent(run: Path, registry: Registry) -> None:
    renamed = (run / "recipe.yaml").rename(run / "guided.yaml")
    with pytest.raises(RecipeError, match="guided.yaml:8: .* add --trust-code"):
        load_recipe(renamed, registry=registry)
    with pytest.raises(RecipeError, match="add --trust-code"):
        load_recipe(renamed, ["prompts.text_encoder.remote_code=true"], registry=registry)
    assert load_recipe(renamed, ["prompts.text_encoder.remote_code=false"], registry=registry)


def test_code_other_than_the_recorded_code_is_refused_even_then(run: Path, model: Path, registry: Registry) -> None:
    settings = {"model": str(model), "remote_code": True}
    code = code_of([ComponentSpec(use="hub", **settings), ComponentSpec(use="sentences")])
    (run / "run.json").write_text(json.dumps({"code": code}))
    assert load_recipe(run / "recipe.yaml", registry=registry, trust_code=True)
    (model / "parts" / "more.py").write_text(CODE + "# changed")
    with pytest.raises(RecipeError, match="'parts/more.py' of .* is not the code that the run was trained with"):
        load_recipe(run / "recipe.yaml", registry=registry, trust_code=True)
    (model / "parts" / "more.py").unlink()
    with pytest.raises(RecipeError, match="its sha256 is of no file, and run.json records [0-9a-f]{64}"):
        load_recipe(run / "recipe.yaml", registry=registry, trust_code=True)


@pytest.mark.parametrize("record", ["[]", "{", '{"code": 3}', '{"code": {"a": []}}'])
def test_without_a_readable_record_no_code_is_run(run: Path, registry: Registry, record: str) -> None:
    (run / "run.json").write_text(record)
    with pytest.raises(RecipeError, match="add --trust-code"):
        load_recipe(run / "recipe.yaml", registry=registry)
    with pytest.raises(RecipeError, match=r"run.json' is damaged .*Restore it"):
        load_recipe(run / "recipe.yaml", registry=registry, trust_code=True)


def test_a_recipe_of_ones_own_consents_by_itself(tmp_path: Path, model: Path, registry: Registry) -> None:
    (tmp_path / "guided.yaml").write_text(RECIPE.replace("MODEL", str(model)))
    assert load_recipe(tmp_path / "guided.yaml", registry=registry).prompts is not None


def test_code_of_components_that_are_not_built_needs_no_consent(run: Path, registry: Registry) -> None:
    assert load_recipe(run / "recipe.yaml", registry=registry, builds=["dataset"])


def test_a_model_that_is_not_here_is_refused_too(run: Path, model: Path, registry: Registry) -> None:
    (model / "config.json").unlink()
    with pytest.raises(RecipeError, match=r"which is not on this machine\. .* add --trust-code"):
        load_recipe(run / "recipe.yaml", registry=registry)


def test_code_of_another_repository_is_never_run(run: Path, model: Path, registry: Registry) -> None:
    (model / "config.json").write_text('{"auto_map": {"AutoModel": ["somebody/else--own.Model", null]}}')
    with pytest.raises(RecipeError, match="names code of another repository, 'somebody/else--own.Model'"):
        load_recipe(run / "recipe.yaml", registry=registry, trust_code=True)


def test_tags_that_build_objects_are_refused(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "guided.yaml").write_text(f"{RECIPE}reference: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n")
    with pytest.raises(RecipeError, match="guided.yaml"):
        load_recipe(tmp_path / "guided.yaml", registry=registry)
    assert not (tmp_path / "made").exists()


LOCAL = "import textseg\n\n@textseg.component('fusion', 'mine')\ndef mine(task, features): ...\n"


@pytest.fixture
def made_with_code(tmp_path: Path) -> Path:
    """The recipe of a run that was made with `--code my_parts.py`."""
    folder = tmp_path / "local"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "my_parts.py").write_text(LOCAL)
    recipe = RECIPE.replace("mixer", "mine").replace("remote_code: true", "remote_code: false")
    (folder / "recipe.yaml").write_text(recipe)
    facts = {"fusion mine": {"distribution": "my_parts.py", "version": "not installed", "source": {}}}
    digest = hashlib.sha256(LOCAL.encode()).hexdigest()
    (folder / "run.json").write_text(json.dumps({"local_code": {"my_parts.py": digest}, "components": facts}))
    return folder / "recipe.yaml"


def test_local_code_needs_the_word_of_the_person(made_with_code: Path, registry: Registry) -> None:
    digest = hashlib.sha256(LOCAL.encode()).hexdigest()
    with pytest.raises(RecipeError, match=f"made with --code, .*my_parts.py' .sha256 {digest}.*add --trust-code"):
        load_recipe(made_with_code, registry=registry)
    recipe = load_recipe(made_with_code, registry=registry, trust_code=True)
    assert recipe.model.fusion is not None
    assert recipe.model.fusion.use == "mine"
    assert load_recipe(made_with_code, registry=registry) == recipe, "it runs in this process already"


def test_other_local_code_is_refused_also_with_consent(made_with_code: Path, registry: Registry) -> None:
    file = made_with_code.parent / "code" / "my_parts.py"
    file.write_text(LOCAL + "# edited\n")
    with pytest.raises(PluginError, match="is not the code that the run was trained with: its sha256 is "):
        load_recipe(made_with_code, registry=registry, trust_code=True)
    file.unlink()
    with pytest.raises(RecipeError, match="my_parts.py' is missing. Restore it"):
        load_recipe(made_with_code, registry=registry, trust_code=True)


def test_a_run_of_other_code_than_the_loaded_one_is_refused(made_with_code: Path, registry: Registry) -> None:
    file = made_with_code.parent / "my_parts.py"
    file.write_text(LOCAL + "# of a later experiment\n")
    load_code(file, registry)
    with pytest.raises(RecipeError, match="made with another 'my_parts.py' .* Open the run in a process of its own"):
        load_recipe(made_with_code, registry=registry, trust_code=True)


def test_who_does_not_build_local_code_needs_none(made_with_code: Path, registry: Registry) -> None:
    assert load_recipe(made_with_code, registry=registry, builds=["dataset"]).dataset.use == "slices"
    assert registry.local_code == {}


@pytest.mark.parametrize("name", ["../my_parts.py", "code/../../my_parts.py"])
def test_local_code_lies_in_the_folder_of_the_run(name: str, made_with_code: Path, registry: Registry) -> None:
    (made_with_code.parent / "my_parts.py").write_text(LOCAL)
    record = json.loads((made_with_code.parent / "run.json").read_text())
    record["local_code"] = {name: hashlib.sha256(LOCAL.encode()).hexdigest()}
    (made_with_code.parent / "run.json").write_text(json.dumps(record))
    with pytest.raises(RecipeError, match="is missing"):
        load_recipe(made_with_code, registry=registry, trust_code=True)


def test_a_bundle_runs_no_local_code(made_with_code: Path, registry: Registry) -> None:
    (made_with_code.parent / "bundle.json").write_text("{}")
    with pytest.raises(RecipeError, match="There is no fusion 'mine'"):
        load_recipe(made_with_code, registry=registry, trust_code=True)
    assert registry.local_code == {}


def test_a_component_that_is_missing_names_the_distribution_that_had_it(run: Path, registry: Registry) -> None:
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("use: mixer", "use: film"))
    facts = {"fusion film": {"distribution": "textseg-film", "version": "0.1.0"}}
    (run / "run.json").write_text(json.dumps({"components": facts}))
    with pytest.raises(RecipeError) as caught:
        load_recipe(run / "recipe.yaml", registry=registry, builds=["dataset"])
    (line,) = str(caught.value).splitlines()
    assert (
        "model.fusion.use: When it was made, fusion 'film' came from textseg-film (0.1.0): pip install textseg-film=="
        in line
    )
    assert "There is no fusion 'film'. Possible: mixer. To add one: docs/how_to/add_a_fusion.md" in line
    assert line.endswith("; for one in a file, `textseg run` has --code FILE.")


def test_a_run_goes_on_with_the_rival_that_it_was_made_with(run: Path, registry: Registry) -> None:
    parts = [Component("fusion", "mixer", mixer, name, name, "1") for name in ("film", "thief")]
    rivals = Registry(registry.plugins, [*(c for c in registry.components() if c.kind != "fusion"), *parts])
    with pytest.raises(RecipeError, match="Write 'use: film/mixer' or 'use: thief/mixer'"):
        load_recipe(run / "recipe.yaml", registry=rivals, builds=["dataset"])
    (run / "run.json").write_text('{"components": {"fusion mixer": {"distribution": "Thief", "version": "1"}}}')
    recipe = load_recipe(run / "recipe.yaml", registry=rivals, builds=["dataset"])
    assert recipe.model.fusion is not None
    assert (recipe.model.fusion.use, recipe.model.fusion.name) == ("thief/mixer", "mixer")


def test_a_class_of_a_session_must_be_defined_again(made_with_code: Path, registry: Registry) -> None:
    facts = {"fusion mine": {"distribution": "Python session", "version": "not installed", "source": {}}}
    (made_with_code.parent / "run.json").write_text(json.dumps({"local_code": {}, "components": facts}))
    expected = "came from Python session .not installed., which no run keeps: define it here with @textseg.component"
    with pytest.raises(RecipeError, match=expected):
        load_recipe(made_with_code, registry=registry, trust_code=True)
