from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from textseg.data.phantoms import PhantomFiles
from textseg.evaluation.evaluate import validate
from textseg.inference.slices import predict_case
from textseg.models.cost import empty_text
from textseg.recipe.listing import InstalledRecipe
from textseg.recipe.loading import load_recipe, required_components
from textseg.recipe.schema import Recipe
from textseg.registry.component import Component
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder
from textseg.system import yaml_text
from textseg.training.loop import Training

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
# tests/test_ablations.py trains the ablations. A recipe of MRSpineSeg differs from that of SPIDER in name and data set
# alone, as test_the_experiment_is_the_same_on_both_data_sets shows key by key, so that one of the two is trained.
DISTINCT = [path for path in RECIPES if path.parent.name != "ablations" and not path.stem.endswith("_mrspineseg")]
# In what a method may differ from ATM-Net in the same experiment.
METHOD = {"name", "reference", "prompts", "model", "auxiliary_losses"}
# What a method prescribes beyond that, each with a comment in its recipe; of `training` only how weights move.
PRESCRIBED: dict[str, set[str]] = {
    "nnunet_v2": {"augmentation", "segmentation_loss", "training", "evaluation"},
    "h_sam": {"segmentation_loss", "training"},
    "ariadnes_thread": {"segmentation_loss", "training"},
}
HOW_WEIGHTS_MOVE = {
    "optimizer",
    "momentum",
    "schedule",
    "learning_rate",
    "final_learning_rate",
    "weight_decay",
    "gradient_clip",
}
# Where a step is a whole case, as many steps take more epochs.
HOW_LONG = {"spineparsenet_spider_small": {"epochs", "validate_every"}}
PLANNED = {"epochs", "steps", "batch_size", "foreground_share"}  # by nnU-Net, at full size
HOW_LONG |= {f"nnunet_v2_{data}": HOW_WEIGHTS_MOVE | PLANNED for data in ("spider", "mrspineseg")}
HOW_PREDICTED = {"checkpoint", "mirroring"}
# The text encoder's weights are no part of textseg; the smallest size that Swin UNETR takes.
REDUCED = (
    "split={fractions: [0.6, 0.2, 0.2]}",
    "preparation.size=[64, 64]",
    "training.steps=null",
    "training.epochs=2",  # one for each stage of a network that has two
    "training.batch_size=2",
    "training.workers=0",
    "training.precision=32-true",
)
# Networks that are nothing without pretrained weights, with a small one of random weights in place of each.
STAND_INS = {
    "h_sam": "model.network={use: h_sam, model: null, frozen: false, image_size: 64, configuration: {hidden_size: 24, "
    "num_hidden_layers: 2, num_attention_heads: 3, output_channels: 32, global_attn_indexes: [1], window_size: 3}}"
}
# Sizes inside a network, which do not follow from the size of the image
SMALLER = {"spineparsenet": "model.network.coarse_size=[6, 32, 32]"}

pytestmark = pytest.mark.usefixtures("stranger")


def stem(path: Path) -> str:
    return path.stem


@cache
def recipe_of(path: Path) -> Recipe:
    return load_recipe(path)


def method_of(path: Path) -> str | None:
    """The whole network of a recipe; None for a composition."""
    network = recipe_of(path).model.network
    return network.use if network else None


def partner_of(path: Path) -> Path | None:
    """The ATM-Net recipe of the same experiment, for that of a whole network."""
    method = method_of(path)
    if method is None:
        return None
    return path.with_stem(
        "quickstart" if path.stem.startswith("quickstart") else path.stem.replace(method, "atmnet", 1)
    )


BASELINES = [path for path in RECIPES if partner_of(path)]


def test_names_are_unique() -> None:
    assert len(RECIPES) >= 6
    assert len({path.stem for path in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_a_recipe_is_read(path: Path) -> None:
    recipe = recipe_of(path)
    assert recipe.name == path.stem
    assert recipe.reference.startswith("https://")
    for kind, spec in required_components(recipe):
        assert installed_registry().component(kind, spec.use)


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_a_recipe_says_what_it_needs(path: Path) -> None:
    recipe, needs = load_recipe(path), []
    dataset = installed_registry().component("dataset", recipe.dataset.use).load()
    if not (isinstance(dataset, type) and issubclass(dataset, PhantomFiles)):
        needs.append("data")
    if recipe.training.precision == "16-mixed":
        needs.append("GPU")
    used = required_components(recipe)
    pretrained = [
        spec for kind, spec in used if hasattr(installed_registry().component(kind, spec.use).load(), "fetch")
    ]
    if any(spec.settings.get("model") or spec.settings.get("weights") for spec in pretrained):
        needs.append("weights")
    if any(spec.use == "minilm" for _, spec in used):
        needs.append("extra minilm")
    assert InstalledRecipe(path.stem, path, "textseg").summary().needs == (", ".join(needs) or "nothing")


def test_every_network_has_its_recipes() -> None:
    stems = {path.stem for path in RECIPES}
    networks = [c for c in installed_registry().components("network") if c.distribution == "textseg"]
    for name in (*(component.name for component in networks), "atmnet"):
        assert {f"{name}_spider", f"{name}_mrspineseg", f"{name}_spider_small"} <= stems, name


def written(path: Path) -> dict[str, Any]:
    """A recipe as it stands in its file."""
    content, _ = yaml_text.parse(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def compare(path: Path, partner: Path, may_differ: set[str]) -> None:
    ours, theirs = written(path), written(partner)
    assert {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)} <= may_differ
    assert ours.keys() - theirs.keys() == set()
    resolved, expected = (recipe_of(file).model_dump(mode="json", exclude=may_differ) for file in (path, partner))
    assert resolved == expected


@pytest.mark.parametrize("path", BASELINES, ids=stem)
def test_a_baseline_differs_in_its_method_alone(path: Path) -> None:
    partner = partner_of(path)
    assert partner is not None
    prescribed = PRESCRIBED.get(method_of(path) or "", set()) | ({"training"} if path.stem in HOW_LONG else set())
    compare(path, partner, METHOD | prescribed)
    ours, theirs = written(path), written(partner)
    for key in [key for key in prescribed if ours.get(key) != theirs.get(key)]:
        (line,) = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(f"{key}:")]
        assert "#" in line, f"{key} needs a comment"
    ours, theirs = (recipe_of(p).evaluation.model_dump(exclude=HOW_PREDICTED) for p in (path, partner))
    assert ours == theirs
    free = HOW_LONG.get(path.stem, HOW_WEIGHTS_MOVE)
    assert recipe_of(path).training.model_dump(exclude=free) == recipe_of(partner).training.model_dump(exclude=free)


def test_the_visual_twin_differs_in_its_text_alone() -> None:
    path = FOLDER / "small" / "atmnet_spider_small_visual.yaml"
    partner = path.with_stem("atmnet_spider_small")
    compare(path, partner, METHOD)
    recipe, guided = recipe_of(path), recipe_of(partner)
    assert (recipe.prompts, recipe.auxiliary_losses) == (None, ())
    assert recipe.model.vision_encoder == guided.model.vision_encoder
    assert recipe.model.fusion is not None
    assert guided.model.fusion is not None
    reading = {"learn_absence"}  # a setting of the levels that read text, and the twin has none
    same = guided.model.fusion.model_dump(exclude=reading)
    assert recipe.model.fusion.model_dump(exclude=reading) == {**same, "stages": 0}


def test_the_model_that_reads_windows_differs_in_its_training_alone() -> None:
    """Apart from the new training, its tests also score windows."""
    path = FOLDER / "atmnet_spider_windows.yaml"
    new = {"augmentation": {"field_of_view"}, "prompts": {"template", "training", "renumbering"}}
    exclude = {**new, "evaluation": {"fields_of_view"}, "name": True}
    ours, theirs = (recipe_of(file).model_dump(exclude=exclude) for file in (path, path.with_stem("atmnet_spider")))
    assert ours == theirs


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem.endswith("_mrspineseg")], ids=stem)
def test_the_experiment_is_the_same_on_both_data_sets(path: Path) -> None:
    compare(path, path.with_stem(path.stem.replace("mrspineseg", "spider")), {"name", "dataset"})


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("phantom")
    return f"dataset={{use: lumbar_phantom, folder: {folder}, cases: 6, slices: 1, size: [96, 80], spacing_mm: 3.0}}"


def without_weights(path: Path) -> list[str]:
    """Return the override that replaces pretrained weights, which are no part of textseg."""
    network = recipe_of(path).model.network
    return ["model.network.weights=null"] if network and "weights" in network.settings else []


def reduced(path: Path, phantom: str) -> Experiment:
    text = ["prompts.text_encoder={use: hashed_words}"] if recipe_of(path).prompts else []
    weights = [STAND_INS[method]] if (method := method_of(path)) in STAND_INS else without_weights(path)
    smaller = [SMALLER[method]] if method in SMALLER else []
    return build(load_recipe(path, [phantom, *REDUCED, *text, *weights, *smaller]))


@pytest.mark.parametrize("path", DISTINCT, ids=stem)
def test_a_recipe_trains_a_step_and_segments_a_case(path: Path, phantom: str, tmp_path: Path) -> None:
    experiment = reduced(path, phantom)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    training = Training(experiment, RunFolder(tmp_path), fabric)
    before = [parameter.detach().clone() for parameter in training.parameters]
    terms = {}
    for stage in training.stages:
        training.progression.step = stage.first * training.steps_per_epoch
        training._start_epoch(stage.first)
        terms |= training.training_step(next(training._batches(stage.first)))
    weighed = {name for name, term in experiment.recipe.segmentation_loss.items() if term.weight}
    assert {"loss", *weighed, *(loss.use for loss in experiment.recipe.auxiliary_losses)} <= terms.keys()
    assert all(math.isfinite(term) for term in terms.values())
    moved = [not torch.equal(a, b) for a, b in zip(training.parameters, before, strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    training.segmenter.eval()
    prepared = experiment.cases["test"][0]
    slices = experiment.slices(prepared, experiment.evaluation_source)
    prediction = predict_case(training.segmenter, prepared, slices, device=torch.device("cpu"), batch_size=1)
    assert prediction.native is not None
    assert prediction.native.shape == (1, 96, 80)
    assert 0 <= validate(experiment, training.segmenter, "validation", torch.device("cpu")).dsc <= 1


@pytest.mark.parametrize("path", DISTINCT, ids=stem)
def test_a_model_builds_at_its_own_size(path: Path, phantom: str) -> None:
    """Shapes alone, on a device that computes nothing."""
    recipe = load_recipe(path, without_weights(path))
    experiment = reduced(path, phantom)
    text: dict[str, Any] = {"text_size": 384, "text_length": 120} if recipe.prompts else {}
    task = replace(experiment.task, image_size=recipe.preparation.size, **text)
    here = experiment.recipe.model_copy(update={"model": recipe.model})
    with torch.device("meta") if method_of(path) in STAND_INS else nullcontext():
        segmenter = replace(experiment, recipe=here, task=task).segmenter().to("meta")
    with torch.device("meta"):
        image = torch.zeros(1, 1, *task.image_size)
        output = segmenter(image, empty_text(task, torch.device("meta")) if recipe.prompts else None)
    assert output.logits.shape == (1, 20, *recipe.preparation.size)


@pytest.mark.parametrize(
    "path", [p for p in BASELINES if p.stem.endswith("_spider") and recipe_of(p).prompts is None], ids=stem
)
def test_a_network_without_text_loads_no_text_encoder(
    path: Path, phantom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Component.load
    loaded: list[str] = []

    def noted(component: Component) -> Any:
        loaded.append(component.kind)
        return load(component)

    monkeypatch.setattr(Component, "load", noted)
    experiment = reduced(path, phantom)
    assert not experiment.segmenter().uses_text
    assert experiment.training_slices().text is None
    assert "network" in loaded
    assert set(loaded) & {"text_encoder", "prompt_generator"} == set()
