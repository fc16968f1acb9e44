from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from textseg.errors import RecipeError
from textseg.recipe.loading import complete_settings, dump, evaluation_of, load_recipe, required_components
from textseg.recipe.schema import AugmentationSettings, NamedComponent, Recipe
from textseg.registry.component import Plugin
from textseg.registry.discovery import Register, Registry, installed_registry
from textseg.registry.kinds import TO_EVALUATE, TO_PREDICT

TRAINED_WITH = ("segmentation_loss", "optimizer", "schedule")
GUIDED = """\
format: 1
name: guided
dataset:
  use: slices
  folder: ${oc.env:TEXTSEG_TEST_FOLDER,data}/slices
split: {fractions: [0.8, 0.1, 0.1]}
preparation: {size: [384, 256]}
prompts:
  generator: {use: sentences}
  text_encoder:
    use: letters
    length: 4
  training: {ground_truth: 0.75, template: 0.25}
model:
  vision_encoder: {use: pyramid, widths: [8, 16]}
  fusion: {use: mixer, mode: gate}
segmentation_loss: {dice: 1, focal: 0.5}
auxiliary_losses:
  - use: agreement
    weight: 0.2
training:
  epochs: 3
  learning_rate: 1e-3
evaluation: {}
"""
WHOLE = """\
format: 1
name: whole
dataset: {use: slices}
split: {official: true}
preparation: {size: [64, 64]}
model: {network: {use: net}}
segmentation_loss: {}
training: {epochs: 1}
evaluation: {}
"""


METRICS: dict[str, Any] = {f"metric {name}": {} for name in ("dsc", "jaccard", "hd95", "asd")}


def slices(*, folder: Path = Path("data")) -> None: ...
def sentences(atlas: Any, *, granularity: int = 3) -> None: ...
def letters(*, length: int, note: str | None = "x") -> None: ...
def pyramid(task: Any, *, widths: tuple[int, ...] = (8,)) -> None: ...
def mixer(task: Any, features: Any, *, mode: Literal["add", "gate"] = "add") -> None: ...
def agreement(task: Any, features: Any, *, temperature: float = 0.1) -> None: ...
def net(task: Any, *, depth: int = 2) -> None: ...
def curves(run: Any, step: Any, *, smooth: float = 0.0) -> None: ...
def shade(*, depth: float = 0.5) -> None: ...
def plain() -> None: ...
def near(*, tolerance: float) -> None: ...


@pytest.fixture(scope="module")
def registry() -> Registry:
    register = Register(Plugin("here", "here", "1"))
    register.dataset("slices", slices)
    register.prompt_generator("sentences", sentences)
    register.text_encoder("letters", letters)
    register.vision_encoder("pyramid", pyramid)
    register.fusion("mixer", mixer)
    register.auxiliary_loss("agreement", agreement)
    register.network("net", net)
    register.logger("tensorboard", curves)
    register.logger("service", curves, needs="textseg-service[client]>=2")
    register.augmentation("shade", shade)
    for name in ("dsc", "jaccard", "hd95", "asd", "assd"):
        register.metric(name, plain)
    register.metric("nsd", near)
    standard = [c for c in installed_registry().components() if c.plugin == "standard" and c.kind in TRAINED_WITH]
    return Registry([register.plugin], [*register.components, *standard])


class Loader:
    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder, self.registry = folder, registry

    def __call__(self, text: str, *overrides: str, name: str | None = None) -> Recipe:
        path = self.folder / f"{name or yaml.safe_load(text)['name']}.yaml"
        path.write_text(text)
        return load_recipe(path, overrides, self.registry)

    def mistakes(self, text: str, *overrides: str, name: str) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            self(text, *overrides, name=name)
        return str(caught.value).replace(f"{self.folder}/", "").split("\n")


@pytest.fixture
def load(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Loader:
    monkeypatch.delenv("TEXTSEG_TEST_FOLDER", raising=False)
    return Loader(tmp_path, registry)


def test_a_recipe_becomes_typed(load: Loader) -> None:
    recipe = load(GUIDED)
    assert (recipe.format, recipe.name, recipe.seed, recipe.reference) == (1, "guided", 2025, "")
    assert recipe.dataset.settings == {"folder": "data/slices"}
    assert recipe.split.fractions == (0.8, 0.1, 0.1)
    assert recipe.preparation.size == (384, 256)
    assert recipe.augmentation.distortion == 0
    assert recipe.prompts is not None
    assert recipe.prompts.training == {"ground_truth": 0.75, "template": 0.25}
    assert recipe.prompts.evaluation == "template"
    assert recipe.model.vision_encoder is not None
    assert recipe.model.vision_encoder.settings == {"widths": [8, 16]}
    assert {name: term.weight for name, term in recipe.segmentation_loss.items()} == {"dice": 1.0, "focal": 0.5}
    assert isinstance(recipe.segmentation_loss["dice"].weight, float)
    assert (recipe.auxiliary_losses[0].weight, recipe.auxiliary_losses[0].settings) == (0.2, {})
    assert recipe.training.learning_rate == 1e-3
    assert recipe.training.gradient_clip is None
    assert [metric.use for metric in recipe.evaluation.metrics] == ["dsc", "jaccard", "hd95", "asd"]
    assert [(kind, spec.use) for kind, spec in required_components(recipe)] == [
        ("dataset", "slices"),
        ("prompt_generator", "sentences"),
        ("text_encoder", "letters"),
        ("vision_encoder", "pyramid"),
        ("fusion", "mixer"),
        ("segmentation_loss", "dice"),
        ("segmentation_loss", "focal"),
        ("auxiliary_loss", "agreement"),
        ("optimizer", "adamw"),
        ("schedule", "cosine"),
        *(("metric", name) for name in ("dsc", "jaccard", "hd95", "asd")),
    ]
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


def test_settings_are_complete_with_the_defaults_of_builders(load: Loader) -> None:
    assert complete_settings(load(GUIDED), load.registry) == {
        "dataset slices": {"folder": "data/slices"},
        "prompt_generator sentences": {"granularity": 3},
        "text_encoder letters": {"length": 4, "note": "x"},
        "vision_encoder pyramid": {"widths": [8, 16]},
        "fusion mixer": {"mode": "gate"},
        "segmentation_loss dice": {"smooth": 1.0},
        "segmentation_loss focal": {"gamma": 2.0},
        "auxiliary_loss agreement": {"temperature": 0.1},
        "optimizer adamw": {"weight_decay": 0.01, "betas": [0.9, 0.999]},
        "schedule cosine": {"final_learning_rate": 1e-6},
        **METRICS,
    }


def test_keys_of_the_training_are_settings_of_the_parts_that_have_them(load: Loader) -> None:
    keys = ("training.weight_decay=0.3", "training.momentum=0.5", "training.final_learning_rate=0.1")

    def settings(*overrides: str) -> dict[str, dict[str, Any]]:
        return complete_settings(load(WHOLE, *keys, *overrides), load.registry)

    assert settings()["optimizer adamw"]["weight_decay"] == 0.3  # and adamw has no momentum
    assert settings("training.optimizer=sgd")["optimizer sgd"] == {"weight_decay": 0.3, "momentum": 0.5}
    own = settings("training.optimizer={use: sgd, momentum: 0.9}")
    assert own["optimizer sgd"] == {"weight_decay": 0.3, "momentum": 0.9}
    assert settings("training.optimizer={use: torch, name: Adam}")["optimizer torch"]["weight_decay"] == 0.3
    assert settings("training.schedule=constant")["schedule constant"] == {}
    assert settings()["schedule cosine"] == {"final_learning_rate": 0.1}


def test_a_loss_may_have_a_component_twice(load: Loader) -> None:
    loss = "segmentation_loss={near: {use: boundary, reach: 5}, far: {use: boundary, weight: 0.1}}"
    recipe = load(WHOLE, loss)
    settings = complete_settings(recipe, load.registry)
    assert settings["segmentation_loss boundary"] == {"reach": 5}
    assert settings["segmentation_loss boundary 2"] == {"reach": 20}
    assert yaml.safe_load(dump(recipe))["segmentation_loss"] == {
        "near": {"use": "boundary", "weight": 1.0, "reach": 5},
        "far": {"use": "boundary", "weight": 0.1},
    }
    assert load(dump(recipe)) == recipe


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("{}", {"dice": 1, "focal": 1}),
        ("{focal_gamma: 1}", {"dice": 1, "focal": {"weight": 1, "gamma": 1}}),
        ("{dice: 1, focal: 0.0, cross_entropy: 1}", {"dice": 1, "focal": 0, "cross_entropy": 1}),
        ("{dice: 1, focal: 1, cross_entropy: 0, focal_gamma: 2}", None),
        ("{focal: 0.5}", {"focal": 0.5}),
        ("{tversky: {alpha: 0.2}}", {"tversky": {"weight": 1, "alpha": 0.2}}),
        ("{border: boundary}", {"border": {"use": "boundary", "weight": 1}}),
    ],
)
def test_the_segmentation_loss_has_the_terms_that_are_given(
    load: Loader, given: str, expected: dict[str, Any] | None
) -> None:
    full = {"dice": 1, "focal": {"weight": 1, "gamma": 2}, "cross_entropy": 0}  # a run of an earlier version
    loss = load(WHOLE.replace("segmentation_loss: {}", f"segmentation_loss: {given}")).segmentation_loss
    assert yaml.safe_load(dump(load(WHOLE, f"segmentation_loss={given}")))["segmentation_loss"] == (expected or full)
    again = load(dump(load(WHOLE, f"segmentation_loss={given}"))).segmentation_loss
    assert again == loss


def test_a_whole_network_needs_no_prompts(load: Loader) -> None:
    recipe = load(WHOLE)
    assert [kind for kind, _ in required_components(recipe)][:2] == ["dataset", "network"]
    assert recipe.split.validation == 0.1


def test_the_environment_reaches_a_recipe(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTSEG_TEST_FOLDER", "/elsewhere")
    assert load(GUIDED).dataset.settings == {"folder": "/elsewhere/slices"}


def test_a_default_may_name_another_variable(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "dataset.folder=${oc.env:TEXTSEG_TEST_ABSENT,${oc.env:TEXTSEG_TEST_FOLDER,data}/b c}"
    assert load(GUIDED, value).dataset.settings["folder"] == "data/b c"
    monkeypatch.setenv("TEXTSEG_TEST_FOLDER", "/a ${oc.env:HOME}")
    assert load(GUIDED, value).dataset.settings["folder"] == "/a ${oc.env:HOME}/b c"  # a value is not read again


def test_one_value_cannot_repeat_another(load: Loader) -> None:
    (line,) = load.mistakes(GUIDED, "reference=${seed}${seed}", name="guided")
    assert line.startswith("--set reference=${seed}${seed}: '${seed}${seed}' can't be read: ${oc.env:NAME,DEFAULT} is")


def test_the_documented_switch_of_the_augmentation_works(load: Loader) -> None:
    augmentation = "augmentation: {on: device}\n"
    assert load(GUIDED + augmentation).augmentation.on == "device"
    assert load(GUIDED, "augmentation={on: device}").augmentation.on == "device"
    assert load(GUIDED, "augmentation.on=device").augmentation.on == "device"
    assert load(dump(load(GUIDED + augmentation))).augmentation.on == "device"


def test_set_keeps_what_yaml_would_cut(load: Loader) -> None:
    assert load(GUIDED, "dataset.folder=/data/scan #1: a").dataset.settings["folder"] == "/data/scan #1: a"
    assert load(GUIDED, "leave_out=[010, 1_1, 'a #b']").leave_out == ("010", "1_1", "a #b")


@pytest.mark.parametrize(
    "override",
    [
        "reference=[" + "x" * 100_000 + "]",
        "training.epochs=" + "x" * 100_000,
        "training." + "x" * 100_000 + "=1",
        "augmentation.flip=" + "x" * 100_000,
        "model.vision_encoder.use=" + "x" * 100_000,
        "model.vision_encoder.widths=[" + ",".join("1" * 50_000) + ", x]",
        "name=" + "x" * 100_000,
        "seed=" + "9" * 90,
        "seed=" + "9" * 4000,
        "seed=" + "[" * 100 + "]" * 100,
        ".".join("a" * 1000) + "=1",
        "split={folds: 2, " + "x" * 100_000 + ": 1}",
        "reference=J\udcfc",
        "J\udcfc=1",
        "auxiliary_losses." + "9" * 5000 + "=1",
    ],
    ids=lambda text: text[:20],
)
def test_a_value_beyond_bounds_is_one_short_message(load: Loader, override: str) -> None:
    lines = load.mistakes(GUIDED, override, name="guided")
    assert lines[0].startswith(f"--set {override[:20]}")
    assert max(map(len, lines)) < 1000


def test_six_mistakes_give_six_lines(load: Loader) -> None:
    text = (
        GUIDED.replace("name: guided", "name: guidde")
        .replace(",data}", "}")
        .replace("use: letters", "use: leters")
        .replace("mode: gate", "mode: gte")
        .replace("epochs: 3", "epochs: '3'")
        .replace("learning_rate: 1e-3", "learning_rat: 1e-3")
    )
    lines = load.mistakes(text, name="guided")
    assert [line.partition("Possible: average_decay")[0] for line in lines] == [
        "guided.yaml:2: name: 'guidde' must be the name of its file: write 'guided', or rename the file.",
        (
            "guided.yaml:5: dataset.folder: the environment variable TEXTSEG_TEST_FOLDER is not set; set it, or write "
            "a default: ${oc.env:TEXTSEG_TEST_FOLDER,DEFAULT}."
        ),
        (
            "guided.yaml:11: prompts.text_encoder.use: There is no text_encoder 'leters'. Did you mean 'letters'? "
            "Possible: letters. To add one: docs/how_to/add_a_text_encoder.md; for one in "
            "a file, `textseg run` has --code FILE."
        ),
        "guided.yaml:16: model.fusion.mode: unknown value 'gte'. Did you mean 'gate'? Possible: add, gate.",
        "guided.yaml:22: training.epochs: should be a valid integer, not '3'.",
        "guided.yaml:23: training.learning_rat: unknown key. Did you mean 'learning_rate'? ",
    ]


def test_mistakes_of_set_name_the_set_value(load: Loader) -> None:
    lines = load.mistakes(
        GUIDED,
        "training.epochs=ten",
        "training.epochz=3",
        "auxiliary_losses.0.weight=-1",
        "auxiliary_losses.3.weight=1",
        "prompts.text_encoder={use: letters}",
        "format.x=1",
        "augmentation.flip=updown",
        "epochs",
        "training.batch_size=[1",
        name="guided",
    )
    assert lines[0] == "--set training.epochs=ten: should be a valid integer, not 'ten'."
    assert lines[1].startswith("--set training.epochz=3: unknown key. Did you mean 'epochs'? Possible: average_decay, ")
    assert lines[2:8] == [
        "--set auxiliary_losses.0.weight=-1: should be greater than or equal to 0, not -1.",
        (
            "--set prompts.text_encoder={use: letters}: prompts.text_encoder.length: required by text_encoder "
            "'letters' but missing."
        ),
        "--set augmentation.flip=updown: unknown value 'updown'. Possible: both, horizontal, none, vertical.",
        "--set auxiliary_losses.3.weight=1: 'auxiliary_losses' is a list of 1; write an index below that, not '3'.",
        "--set format.x=1: 'format' holds no keys, it is 1.",
        "--set epochs: write KEY=VALUE, such as training.epochs=5.",
    ]
    assert lines[8].startswith("--set training.batch_size=[1: the value can't be read as YAML: ")
    assert len(lines) == 9


def test_set_puts_values_in(load: Loader) -> None:
    recipe = load(
        GUIDED,
        "training.epochs=5",
        "training.final_learning_rate=1e-7",
        "auxiliary_losses.0.weight=1",
        "preparation.size=[32,48]",
        "augmentation.gamma=0.2",
        "reference=a=b",
        "evaluation={metrics: [assd]}",
        "dataset.folder=${oc.env:TEXTSEG_TEST_FOLDER,there}",
        "training.epochs=6",
    )
    assert (recipe.training.epochs, recipe.training.final_learning_rate) == (6, 1e-7)
    assert (recipe.auxiliary_losses[0].weight, recipe.preparation.size) == (1.0, (32, 48))
    assert (recipe.augmentation.gamma, recipe.reference) == (0.2, "a=b")
    assert [metric.use for metric in recipe.evaluation.metrics] == ["assd"]
    assert recipe.dataset.settings["folder"] == "there"


def test_set_replaces_a_whole_form(load: Loader) -> None:
    recipe = load(GUIDED, "model={network: {use: net, depth: 3}}", "prompts=null", "auxiliary_losses=[]")
    assert [kind for kind, _ in required_components(recipe)][:2] == ["dataset", "network"]


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        (
            "{official: true}",
            "{official: true, folds: 5}",
            "4: split: give exactly one of fractions, official, folds",
        ),
        (
            "{official: true}",
            "{}",
            "4: split: give exactly one of fractions, official, folds",
        ),
        ("{official: true}", "{official: false}", "4: split.official: should be True, not False."),
        ("{official: true}", "{folds: 5, fold: 5}", "4: split: 'folds: 5' needs a 'fold' from 0 to 4, not 5."),
        ("{official: true}", "{folds: 5}", "4: split: 'folds: 5' needs a 'fold' from 0 to 4, not None."),
        ("{official: true}", "{fractions: [0.5, 0.1, 0.1]}", "4: split: fractions [0.5, 0.1, 0.1] sum to 0.7;"),
        ("{official: true}", "{fractions: [0.5, 0.5]}", "4: split.fractions.2: a value is missing here."),
        ("{official: true}", "{file: a, validation: 0.1}", "4: split: 'validation' goes with official and folds;"),
        ("{official: true}", "{file: a, seed: 1}", "4: split: 'seed' goes with fractions, official and folds;"),
        ("[64, 64]", "[64, 0]", "5: preparation.size.1: should be greater than 0, not 0."),
        ("[64, 64]", "[1, 2, 3]", "5: preparation.size: Tuple should have at most 2 items after validation, not 3."),
        ("{network: {use: net}}", "{}", "6: model: vision_encoder and fusion, or network must be given."),
        ("{network: {use: net}}", "{network: {depth: 1}}", "6: model.network.use: required but missing."),
        ("{network: {use: net}}", "{network: net}", "6: model.network: should be keys and values, not 'net'."),
        (
            "segmentation_loss: {}",
            "segmentation_loss: {dice: 0, focal: 0}",
            "7: segmentation_loss: the weight of dice and focal is 0, so nothing",
        ),
        ("{epochs: 1}", "{epochs: 0}", "8: training.epochs: should be greater than 0, not 0."),
        (
            "{epochs: 1}",
            "{epochs: 1, learning_rate: .nan}",
            "8: training.learning_rate: should be a finite number",
        ),
        ("{epochs: 1}", "{epochs: 1, epochs: 2}", "8: the key 'epochs' stands twice."),
        ("{epochs: 1}", "{epochs: 1, compile: yes}", "8: training.compile: should be true or false, not 'yes'."),
        (
            "{epochs: 1}",
            '{epochs: "${oc.nope:1}"}',
            "8: training.epochs: '${oc.nope:1}' can't be read: ${oc.env:NAME,DEFAULT} is replaced by an environment",
        ),
        ("{epochs: 1}", '{epochs: "${oc"}', "8: training.epochs: '${oc' can't be read: ${oc.env:NAME,DEFAULT}"),
        ("{epochs: 1}", "{epochs: 1, threads: all}", "8: training.threads: should be a valid integer, not 'all'."),
        ("{epochs: 1}", "{}", "8: training.epochs: give either epochs or steps, such as epochs: 100."),
        ("{epochs: 1}", "{epochs: 1, steps: 9}", "8: training.epochs: give either epochs or steps, not both."),
        ("{epochs: 1}", "{steps: 0}", "8: training.steps: should be greater than 0"),
        ("evaluation: {}", "evaluation: {metrics: [dsc, hd]}", "9: evaluation.metrics.1: There is no metric 'hd'."),
        ("evaluation: {}", "evaluation: {metrics: [hd]}", "9: evaluation.metrics.0: There is no metric 'hd'."),
        (
            "evaluation: {}",
            "evaluation: {fields_of_view: [50]}",
            "9: evaluation.fields_of_view.0: should be less than 1",
        ),
        ("evaluation: {}", "evaluation: {fields_of_view: []}", "9: evaluation.fields_of_view: Tuple should have"),
        (
            "evaluation: {}",
            "evaluation: {per: volum}",
            "9: evaluation.per: unknown value 'volum'. Did you mean",
        ),
        ("evaluation: {}", "evaluation: {}\nprompt: 1", "10: prompt: unknown key. Did you mean 'prompts'?"),
        ("evaluation: {}", "evaluation: [1", "10: "),
        ("evaluation: {}", "", "1: evaluation: required but missing."),
    ],
)
def test_one_mistake_gives_one_line(load: Loader, old: str, new: str, mistake: str) -> None:
    lines = load.mistakes(WHOLE.replace(old, new), name="whole")
    assert [line[: len(mistake) + len("whole.yaml:")] for line in lines] == [f"whole.yaml:{mistake}"]


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("  fusion: {use: mixer, mode: gate}\n", "", "14: model: fusion must be given."),
        (
            "  fusion:",
            "  network: {use: net}\n  fusion:",
            "14: model: give either network, or vision_encoder",
        ),
        ("{use: sentences}", "{use: sentences, granularity: x}", "9: prompts.generator.granularity: should be a valid"),
        (
            "ground_truth: 0.75",
            "ground_truth: 0.5",
            "13: prompts.training: the probabilities sum to 0.75; they must",
        ),
        ("template: 0.25", "templat: 0.25", "13: prompts.training.templat: unknown key. Did you mean 'template'?"),
        (
            "  training: {g",
            "  evaluation: interactive\n  training: {g",
            "13: prompts.evaluation: 'interactive' prompts are read off the annotation",
        ),
        ("    weight: 0.2\n", "", "19: auxiliary_losses.0.weight: required but missing."),
    ],
)
def test_one_mistake_in_a_guided_recipe_gives_one_line(load: Loader, old: str, new: str, mistake: str) -> None:
    lines = load.mistakes(GUIDED.replace(old, new), name="guided")
    assert [line[: len(mistake) + len("guided.yaml:")] for line in lines] == [f"guided.yaml:{mistake}"]


@pytest.mark.parametrize("source", ["ground_truth", "interactive"])
def test_prompts_that_know_the_annotation_need_the_explicit_flag(load: Loader, source: str) -> None:
    (line,) = load.mistakes(GUIDED, f"prompts.evaluation={source}", name="guided")
    assert line.startswith(f"--set prompts.evaluation={source}: '{source}' prompts are read off the annotation")
    assert line.endswith(f"textseg evaluate RUN --prompts {source}")


@pytest.mark.parametrize("text", ["- 1", "3", ""])
def test_what_is_no_mapping_is_no_recipe(load: Loader, text: str) -> None:
    assert load.mistakes(text, name="odd")[0].startswith("odd.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: there is no such file"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    "text", [GUIDED, WHOLE, WHOLE.replace("{official: true}", "{folds: 5, fold: 1, validation: 0.2}")]
)
def test_a_dump_reads_back(load: Loader, text: str) -> None:
    recipe = load(text)
    written = dump(recipe)
    assert load(written) == recipe
    assert load(written, name="recipe") == recipe  # the copy in a run folder
    assert "null" not in written
    assert yaml.safe_load(written)["training"]["batch_size"] == 8


def test_a_recipe_of_a_newer_format_says_so(load: Loader) -> None:
    (line,) = load.mistakes(WHOLE.replace("format: 1", "format: 2"), name="whole")
    assert line.endswith("format: this version of textseg reads format 1; a recipe of format 2 needs a newer one.")


def test_a_dump_keeps_texts_that_look_like_something_else(load: Loader) -> None:
    text = GUIDED.replace("length: 4", "length: 4\n    note: null").replace(
        "guided\n", "guided\nreference: '\\${seed}'\n"
    )
    for recipe in (load(text), load(text, "reference='1e-4'"), load(text, "reference='true'")):
        assert load(dump(recipe)) == recipe
    assert load(text).reference == "${seed}"
    assert load(dump(load(text))).prompts.text_encoder.settings == {"length": 4, "note": None}  # type: ignore[union-attr]


def test_the_split_file_lies_beside_the_recipe(load: Loader, tmp_path: Path) -> None:
    recipe = load(WHOLE.replace("{official: true}", "{file: splits/a.json}"))
    assert recipe.split.file == tmp_path.resolve() / "splits" / "a.json"
    assert load(dump(recipe)) == recipe


def test_a_logger_is_named_by_text_or_with_settings(load: Loader) -> None:
    text = GUIDED.replace("  epochs: 3", "  epochs: 3\n  loggers: [{use: tensorboard}, {use: tensorboard, smooth: 1}]")
    recipe = load(text)
    assert recipe.training.loggers == (NamedComponent(use="tensorboard"), NamedComponent(use="tensorboard", smooth=1))
    assert load(text.replace("{use: tensorboard},", "tensorboard,")) == recipe
    assert recipe.model_dump(mode="json")["training"]["loggers"] == ["tensorboard", {"use": "tensorboard", "smooth": 1}]
    assert load(dump(recipe)) == recipe
    assert "logger" not in {kind for kind, _ in required_components(recipe)}


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        ("[notebook]", "training.loggers.0: There is no logger 'notebook'. Possible: service, tensorboard."),
        ("[{use: notebook}]", "training.loggers.0.use: There is no logger 'notebook'."),
        ("[{use: tensorboard, smoth: 1}]", "training.loggers.0.smoth: unknown setting. Did you mean 'smooth'?"),
        (
            "[service]",
            "logger 'service' needs textseg-service[client]>=2, which is not installed. Install it with: pip install ",
        ),
    ],
)
def test_a_logger_that_can_not_be_used_is_a_mistake_but_not_for_a_trained_model(
    load: Loader, loggers: str, message: str
) -> None:
    text = GUIDED.replace("  epochs: 3", f"  epochs: 3\n  loggers: {loggers}")
    (line,) = load.mistakes(text, name="guided")
    assert message in line
    path = load.folder / "recipe.yaml"
    path.write_text(text)
    assert load_recipe(path, (), load.registry, builds=TO_PREDICT).training.loggers


def test_augmentation_is_a_section_or_a_list(load: Loader) -> None:
    listed = "augmentation: [shade, {use: shade, depth: 0.2, probability: 0.5, on: device}]\n"
    recipe = load(WHOLE + listed)
    assert isinstance(recipe.augmentation, tuple)
    assert [(spec.use, spec.settings, spec.probability, spec.on) for spec in recipe.augmentation] == [
        ("shade", {}, 1.0, "workers"),
        ("shade", {"depth": 0.2}, 0.5, "device"),
    ]
    assert load(dump(recipe)) == recipe
    assert load(WHOLE + listed, "augmentation.1.depth=0.3").augmentation[1].settings == {"depth": 0.3}  # type: ignore[index]
    settings = complete_settings(recipe, load.registry)
    assert (settings["augmentation shade"], settings["augmentation shade 2"]) == ({"depth": 0.5}, {"depth": 0.2})
    assert load(WHOLE + "augmentation: []\n").augmentation == ()
    assert isinstance(load(WHOLE).augmentation, AugmentationSettings)


def test_mistakes_in_a_list_of_transforms_are_named_with_their_lines(load: Loader) -> None:
    items = [
        "shad",
        "{use: shade, depth: deep}",
        "{use: shade, probability: 2}",
        "{depth: 1}",
        "{use: shade, on: gpu}",
        "3",
    ]
    text = WHOLE + "augmentation:\n" + "".join(f"  - {item}\n" for item in items)
    first = text[: text.index("  - ")].count("\n") + 1
    mistakes = load.mistakes(text, name="whole")
    assert [line.split(" ", 1)[0] for line in mistakes] == [f"whole.yaml:{first + n}:" for n in range(6)]
    for line, words in zip(
        mistakes,
        (
            "augmentation.0: There is no augmentation 'shad'. Did you mean 'shade'?",
            "augmentation.1.depth: should be a valid number",
            "augmentation.2.probability: should be less than or equal to 1, not 2.",
            "augmentation.3.use: required but missing.",
            "augmentation.4.on: unknown value 'gpu'. Did you mean",
            "augmentation.5: should be keys and values",
        ),
        strict=True,
    ):
        assert words.split(". ")[0] in line
    for alone in ("shade", "{use: shade}"):
        (line,) = load.mistakes(WHOLE + f"augmentation: {alone}\n", name="whole")
        assert "augmentation: should be a list, not " in line
    unknown = load.mistakes(WHOLE + "augmentation: {rotation: 5}\n", name="whole")
    assert len(unknown) == 1
    assert "augmentation.rotation: unknown key. Did you mean 'rotation_degrees'?" in unknown[0]


def test_a_metric_is_a_name_or_a_component(load: Loader) -> None:
    evaluation = "evaluation={metrics: [dsc, {use: nsd, tolerance: 1}, {use: nsd, tolerance: 2.5, column: wide}]}"
    recipe = load(WHOLE, evaluation)
    assert [(metric.column, metric.settings) for metric in recipe.evaluation.metrics] == [
        (None, {}),
        (None, {"tolerance": 1}),
        ("wide", {"tolerance": 2.5}),
    ]
    written = recipe.model_dump(mode="json")["evaluation"]["metrics"]
    assert written == ["dsc", {"use": "nsd", "tolerance": 1}, {"use": "nsd", "column": "wide", "tolerance": 2.5}]
    assert load(dump(recipe)) == recipe


def test_a_tolerance_beside_the_metrics_is_that_of_each_metric_that_has_one(load: Loader) -> None:
    recipe = load(WHOLE, "evaluation={metrics: [nsd, dsc, {use: nsd, tolerance: 1, column: strict}], tolerance: 2}")
    assert [metric.settings for metric in recipe.evaluation.metrics] == [{"tolerance": 2}, {}, {"tolerance": 1}]
    for evaluation, mistake in (
        ("{metrics: [dsc], tolerance: 2}", "evaluation.tolerance: unknown key."),
        ("{metrics: [nsd]}", "evaluation.metrics.0.tolerance: required by metric 'nsd' but missing."),
        ("{metrics: [nsd], tolerance: wide}", "evaluation.metrics.0.tolerance: should be a valid number"),
        ("{metrics: [{use: nsd, tolerance: 1, column: a b}]}", "evaluation.metrics.0.column: "),
    ):
        (line,) = load.mistakes(WHOLE, f"evaluation={evaluation}", name="whole")
        assert f": {mistake}" in line


def test_metrics_of_a_command_line(load: Loader) -> None:
    settings = evaluation_of("hd95,{use: nsd, tolerance: 2}", load.registry)
    assert [metric.name for metric in settings.metrics] == ["hd95", "nsd"]
    for text, mistake in (
        ("dsc,hd59,nsd", "--metrics: metrics.1: There is no metric 'hd59'. Did you mean 'hd95'"),
        ("dsc,nsd", "--metrics: metrics.1.tolerance: required by metric 'nsd' but missing."),
        ("", "--metrics: metrics: "),
        ("[", "--metrics [: the value can't be read as YAML"),
    ):
        with pytest.raises(RecipeError, match=re.escape(mistake)):
            evaluation_of(text, load.registry)


def test_a_metric_that_is_not_installed_is_needed_to_evaluate_and_not_to_predict(load: Loader) -> None:
    path = load.folder / "recipe.yaml"
    path.write_text(WHOLE.replace("evaluation: {}", "evaluation: {metrics: [dsc, gone]}"))
    assert load_recipe(path, (), load.registry, builds=TO_PREDICT).evaluation.metrics[1].use == "gone"
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: evaluation.metrics.1: There is no metric 'gone'"):
        load_recipe(path, (), load.registry, builds=TO_EVALUATE)
