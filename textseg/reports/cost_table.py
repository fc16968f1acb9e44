"""Parameters and operations of every installed network and of some recipes, without data and without weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from textseg.contracts import Task
from textseg.errors import RecipeError
from textseg.models.cost import USUAL_TEXT, count_cost, usual_task
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.registry.component import cause
from textseg.registry.discovery import Registry
from textseg.registry.kinds import TO_PREDICT
from textseg.runs.experiment import build_segmenter

HEADER = ("model", "parameters", "trainable", "without positions", "multiply-accumulates")
PAPER_SIZE = (384, 384)


def cost_rows(registry: Registry, recipes: Sequence[Path], size: str | None) -> Iterator[tuple[str, ...]]:
    """Yield a row of `HEADER` for each network with its default settings, and for the model of each recipe.

    Args:
        registry: the installed components.
        recipes: further models, such as those made of an encoder and a fusion.
        size: "H,W"; by default the size of the ATM-Net paper.

    Raises RecipeError for a wrong size and a wrong recipe; the row of a model that can't be built has the cause.
    """
    task = usual_task(_size(size))
    loaded = [load_recipe(path, builds=TO_PREDICT) for path in recipes]
    for component in registry.components("network"):
        yield _row(component.address, partial(_network, registry, component.address, task), task)
    for recipe in loaded:
        yield _row(recipe.name, partial(build_segmenter, recipe, registry, task), task)


def cost_note(size: str | None) -> str:
    """Return the sentences below the table: the input and the settings that the numbers are for."""
    height, width = _size(size)
    return (
        f"Multiply-accumulates of one slice of 1 x {height} x {width} with 20 classes, text of "
        f"{USUAL_TEXT['text_length']} x {USUAL_TEXT['text_size']} if it reads text. A network that reads volumes gets "
        "8 slices, and the number is for one of them. Networks have their default settings, recipes their own. "
        "The cost in the run.json of a run counts all channels that its model reads."
    )


def _network(registry: Registry, name: str, task: Task) -> Segmenter:
    return Segmenter(registry.build("network", name, task, settings={}))


def _row(name: str, build: Callable[[], Segmenter], task: Task) -> tuple[str, ...]:
    try:
        cost = count_cost(build, task)
    except Exception as error:
        # Anybody's network may fail in any way where it meets a task that it was not written for.
        return name, "", "", "", f"can't be counted: {cause(error)}"
    millions = (cost["parameters"], cost["trainable_parameters"], cost["parameters_without_positions"])
    return name, *(f"{count / 1e6:.3f} M" for count in millions), f"{cost['multiply_accumulates'] / 1e9:.2f} G"


def _size(text: str | None) -> tuple[int, int]:
    if text is None:
        return PAPER_SIZE
    match = re.fullmatch(r"(\d+)[,x](\d+)", text)
    if match is None or "0" in (height_width := match.groups()):
        raise RecipeError(f"--size is '{text}', but must be rows and columns in pixels, such as 384,384.")
    return int(height_width[0]), int(height_width[1])
