"""Read a recipe file with `--set` values into a typed recipe, or report all mistakes in them at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

from textseg.errors import PluginError, RecipeError
from textseg.recipe.listing import recipe_file
from textseg.recipe.schema import (
    AugmentationSettings,
    ComponentSpec,
    EvaluationSettings,
    ModelSettings,
    PreparationSettings,
    PromptSettings,
    Recipe,
    SegmentationLossSettings,
    SplitSettings,
    TrainingSettings,
    WeightedComponent,
)
from textseg.recipe.source import at_path, escaped, put, read, resolve
from textseg.registry.discovery import Registry, installed_registry
from textseg.registry.validation import KeyPath, Mistake, explain

__all__ = [
    "AugmentationSettings",
    "ComponentSpec",
    "EvaluationSettings",
    "ModelSettings",
    "PreparationSettings",
    "PromptSettings",
    "Recipe",
    "SegmentationLossSettings",
    "SplitSettings",
    "TrainingSettings",
    "WeightedComponent",
    "complete_settings",
    "dump",
    "load_recipe",
    "required_components",
]

_PLACES: dict[KeyPath, str] = {
    ("dataset",): "dataset",
    ("prompts", "generator"): "prompt_generator",
    ("prompts", "text_encoder"): "text_encoder",
    ("model", "vision_encoder"): "vision_encoder",
    ("model", "fusion"): "fusion",
    ("model", "network"): "network",
}


def load_recipe(path: Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """Read a recipe, from a file or an installed one by its name, and put in `--set` values ("training.epochs=5").

    The file must be named like the recipe, or be the copy in a run folder, which is always called recipe.yaml.
    Raises RecipeError with one line for each mistake, which names the line of the file, or the `--set` value.
    """
    registry = installed_registry() if registry is None else registry
    path = recipe_file(path, registry)
    data, places = read(path)
    unusable: list[str] = []
    for override in overrides:
        try:
            places.overrides.append((put(data, override), override))
        except ValueError as error:
            unusable.append(f"--set {override}: {error}")
    mistakes = resolve(data)
    unresolved = {at for at, _ in mistakes}
    for at, kind in _components(data):  # so that a run started under an old name can go on
        spec = at_path(data, at)
        spec["use"] = registry.current_name(kind, spec["use"])

    mistakes += [mistake for mistake in _cross_mistakes(data, path.stem) if mistake[0] not in unresolved]
    recipe: Recipe | None = None
    try:
        # Strict JSON is what a text file can mean: a list may become a tuple, but "3" no number.
        recipe = Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        mistakes += [mistake for mistake in explain(error, _keys) if mistake[0] not in unresolved]
    for at, kind in _components(data):
        inside = _component_mistakes(at_path(data, at), kind, registry)
        mistakes += [((*at, *inner), message) for inner, message in inside if (*at, *inner) not in unresolved]
    if path.stem != "recipe":  # a trained model is used also where the plug-in of its logger is missing
        mistakes += [mistake for mistake in _logger_mistakes(data, registry) if mistake[0] not in unresolved]
    if mistakes or unusable or recipe is None:
        raise RecipeError("\n".join([*places.report(mistakes), *unusable]))
    if recipe.split.file is not None:
        file = (path.parent / recipe.split.file).resolve()
        recipe = recipe.model_copy(update={"split": recipe.split.model_copy(update={"file": file})})
    return recipe


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML with all defaults; `load_recipe` reads it back."""
    return OmegaConf.to_yaml(OmegaConf.create(escaped(recipe.model_dump(mode="json"))))


def required_components(recipe: Recipe) -> list[tuple[str, ComponentSpec]]:
    """Return the kind and the settings of each component that the recipe uses."""
    parts: list[tuple[str, ComponentSpec | None]] = [
        ("dataset", recipe.dataset),
        ("prompt_generator", recipe.prompts.generator if recipe.prompts else None),
        ("text_encoder", recipe.prompts.text_encoder if recipe.prompts else None),
        ("vision_encoder", recipe.model.vision_encoder),
        ("fusion", recipe.model.fusion),
        ("network", recipe.model.network),
        *(("auxiliary_loss", loss) for loss in recipe.auxiliary_losses),
    ]
    return [(kind, spec) for kind, spec in parts if spec is not None]


def complete_settings(recipe: Recipe, registry: Registry) -> dict[str, dict[str, Any]]:
    """Return the settings of each component of the recipe, by kind and name, with the defaults of the builders."""
    return {
        f"{kind} {spec.use}": registry.component(kind, spec.use).complete(spec.settings)
        for kind, spec in required_components(recipe)
    }


def _cross_mistakes(data: dict[str, Any], stem: str) -> Iterator[Mistake]:
    name, model = data.get("name"), data.get("model")
    if isinstance(name, str) and stem not in (name, "recipe"):
        yield ("name",), f"'{name}' must be the name of its file: write '{stem}', or rename the file."
    if isinstance(model, dict) and (model.get("vision_encoder") or model.get("fusion")) and not data.get("prompts"):
        yield ("prompts",), "required by vision_encoder and fusion but missing; give a generator and a text_encoder."


def _keys(path: KeyPath) -> list[str]:
    """Return the keys that the schema allows beside the last part of `path`."""
    here: type[BaseModel] | None = Recipe
    for part in path[:-1]:
        if here is not None and isinstance(part, str):
            field = here.model_fields.get(part)
            here = _section(field.annotation) if field else None
    return list(here.model_fields) if here else []


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := _section(part))), None)


def _components(data: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield path and kind of each component whose name can be read, in a recipe that may hold mistakes."""
    losses = data.get("auxiliary_losses")
    count = len(losses) if isinstance(losses, list) else 0
    places: dict[KeyPath, str] = {**_PLACES, **{("auxiliary_losses", n): "auxiliary_loss" for n in range(count)}}
    for at, kind in places.items():
        try:
            named = isinstance(at_path(data, at)["use"], str)
        except (KeyError, IndexError, TypeError):
            named = False
        if named:
            yield at, kind


def _logger_mistakes(data: dict[str, Any], registry: Registry) -> Iterator[Mistake]:
    """Yield a mistake for each logger that neither the core nor a plug-in offers."""
    training = data.get("training")
    names = training.get("loggers") if isinstance(training, dict) else None
    for index, name in enumerate(names if isinstance(names, list) else ()):
        try:
            registry.logger(str(name))
        except PluginError as error:
            yield ("training", "loggers", index), str(error)


def _component_mistakes(spec: dict[str, Any], kind: str, registry: Registry) -> list[Mistake]:
    reserved = WeightedComponent.model_fields if kind == "auxiliary_loss" else ComponentSpec.model_fields
    settings = {key: value for key, value in spec.items() if key not in reserved}
    try:
        return registry.component(kind, spec["use"]).validated(settings)[1]
    except PluginError as error:
        return [(("use",), str(error))]
