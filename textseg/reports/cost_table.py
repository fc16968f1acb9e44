"""What every installed network and the models of some recipes cost, side by side, without data and without weights."""

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
from textseg.runs.experiment import build_segmenter

HEADER = ("model", "parameters", "trainable", "without positions", "multiply-accumulates")
PAPER_SIZE = (384, 384)


def cost_rows(registry: Registry, recipes: Sequence[Path], size: str | None) -> Iterator[tuple[str, ...]]:
    """A row of `HEADER` for each network with its default settings, and for the model of each recipe.

    Args:
        registry: of what is installed.
        recipes: of models to list as well, such as those that are put together from an encoder and a fusion.
        size: H,W as a person writes them; else that of the ATM-Net paper.

    Raises RecipeError for a wrong size and a wrong recipe; what can't be built has its cause in its row.
    """
    task = usual_task(_size(size))
    loaded = [load_recipe(path) for path in recipes]
    for component in registry.components("network"):
        yield _row(component.name, partial(_network, registry, component.name, task), task)
    for recipe in loaded:
        yield _row(recipe.name, partial(build_segmenter, recipe, registry, task), task)


def cost_note(size: str | None) -> str:
    """What the numbers are of."""
    height, width = _size(size)
    return (
        f"Multiply-accumulates of one slice of 1 x {height} x {width} with 20 classes, text of "
        f"{USUAL_TEXT['text_length']} x {USUAL_TEXT['text_size']} where there is any; of a network that reads volumes, "
        "a slice's part of 8. Networks with their default settings, recipes with theirs."
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
