"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from typer import Argument, BadParameter, Option

from textseg.errors import DataError, RecipeError, suggestion

if TYPE_CHECKING:
    from textseg.contracts import Dataset
    from textseg.recipe import schema

Number = TypeVar("Number", int, float)

Recipe = Annotated[Path, Argument(metavar="RECIPE", help="A recipe file, or a name from `textseg recipes`.")]
RecipeOverrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Put a value into the recipe. May be repeated.")
]
TrainedOverrides = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Say where the data are now: dataset.folder=DIR. May be repeated."),
]
Fresh = Annotated[bool, Option("--fresh", help="Move an earlier run aside instead of resuming it.")]
TrustCode = Annotated[
    bool, Option("--trust-code", help="Let the recipe of a run folder or bundle run code that came with it.")
]
Code = Annotated[
    list[Path] | None,
    Option("--code", metavar="FILE", help="A Python file with components of the recipe. May be repeated."),
]
ChangedCode = Annotated[
    bool,
    Option("--changed-code", help="Resume although the code of a component has changed; run.json keeps both."),
]
DryRun = Annotated[bool, Option("--dry-run", help="Check everything, train nothing.")]
SliceNumber = Annotated[
    int | None, Option("--slice", metavar="N", help="The slice, from 1. Default: the one that shows the most.")
]

DatasetName = Annotated[str, Argument(metavar="DATASET", help="A data set such as spider, or a recipe.")]
DatasetFolder = Annotated[
    Path | None,
    Option(
        metavar="DIR",
        help="The folder of the data. Default: the recipe's folder, else TEXTSEG_DATA/<name>, else data/<name>.",
    ),
]
DatasetOverrides = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="A setting of the data set: labels={1: bone}. May be repeated."),
]


def recipe_of(name: str) -> schema.Recipe | None:
    """Return the recipe that the name of a data set means; None for the name of another thing."""
    from textseg.recipe.listing import installed_recipes
    from textseg.recipe.loading import load_recipe
    from textseg.registry.discovery import installed_registry

    registry = installed_registry()
    known = {recipe.name for recipe in installed_recipes(registry)}
    known -= {component.name for component in registry.components("dataset")}
    if not name.lower().endswith((".yaml", ".yml")) and name not in known:
        return None
    return load_recipe(Path(name), [], builds=["dataset"])


def dataset_of(name: str, folder: Path | None, overrides: list[str] | None, code: list[Path] | None = None) -> Dataset:
    """Return the data set with this name, or that of a recipe, with settings from the command line.

    The files in `code` may bring its reader and its atlas.
    """
    from textseg.recipe.loading import put
    from textseg.registry.discovery import installed_registry
    from textseg.registry.local_code import load_code

    for file in code or ():
        load_code(file)
    registry = installed_registry()
    known = [component.address for component in registry.components("dataset")]
    if name in known:
        component = name
        settings = {"folder": str(Path(os.environ.get("TEXTSEG_DATA", "data")) / name)}
    elif (recipe := recipe_of(name)) is not None:
        component, settings = recipe.dataset.use, dict(recipe.dataset.settings)
    else:
        raise DataError(f"There is no data set '{name}'.{suggestion(name, known)} Or name a recipe, as for `run`.")
    if folder is not None:
        settings["folder"] = str(folder)
    for override in overrides or []:
        try:
            put(settings, override.removeprefix("dataset."))
        except ValueError as error:
            raise RecipeError(f"--set {override}: {error}") from error
    dataset: Dataset = registry.build("dataset", component, settings=settings)
    return dataset


def split_parts(path: Path | None) -> dict[str, list[str]] | None:
    """Return the patients of each part of a split file."""
    if path is None:
        return None
    from textseg.data.splits import read_parts

    return read_parts(path)


def numbers(text: str, example: str, kind: type[Number]) -> list[Number]:
    """Return the numbers of one kind in a text such as "1,2,3"."""
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError as error:
        raise BadParameter(f"'{text}' must be numbers with commas between them, such as {example}.") from error
