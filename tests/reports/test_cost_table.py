from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from textseg.contracts import Task
from textseg.errors import RecipeError
from textseg.registry.component import Component
from textseg.registry.discovery import Registry, installed_registry
from textseg.reports.cost_table import HEADER, cost_note, cost_rows

pytestmark = pytest.mark.usefixtures("stranger")


def demanding(task: Task, *, width: int) -> None:
    """Has no default settings."""


class Few:
    """A registry with a few networks and everything else that is installed."""

    def __init__(self, *names: str) -> None:
        self.listed = [installed_registry().component("network", name) for name in names]
        self.listed.append(Component("network", "demanding", demanding, "mine", "mine", "1"))

    def components(self, kind: str) -> list[Component]:
        assert kind == "network"
        return self.listed

    def build(self, kind: str, name: str, *wired: Any, settings: dict[str, Any]) -> Any:
        if name == "demanding":
            raise RecipeError("network 'demanding': width: required.")
        return installed_registry().build(kind, name, *wired, settings=settings)


def few(*names: str) -> Registry:
    return cast(Registry, Few(*names))


def test_networks_and_the_models_of_recipes_have_a_row(tiny_recipe: Path) -> None:
    rows = {row[0]: row[1:] for row in cost_rows(few("plain", "staged", "swin_unetr"), [tiny_recipe], "64,96")}
    assert list(rows) == ["plain", "staged", "swin_unetr", "demanding", "tiny"]
    assert all(len(row) == len(HEADER) - 1 for row in rows.values())
    # Two convolutions: 1 to 4 channels at half the size, then to 20 classes.
    assert rows["plain"] == ("0.000 M", "0.000 M", "0.000 M", f"{32 * 48 * (4 * 9 + 4 * 20) / 1e9:.2f} G")
    assert rows["swin_unetr"][:3] == ("25.139 M", "25.139 M", "25.124 M")
    assert "width: required" in rows["demanding"][-1]


@pytest.mark.parametrize("size", ["384", "384,0", "a,b", "384,384,1", "-3,4"])
def test_a_size_is_rows_and_columns(size: str) -> None:
    with pytest.raises(RecipeError, match="rows and columns in pixels"):
        next(iter(cost_rows(few(), [], size)))


def test_the_note_names_the_size() -> None:
    assert "1 x 384 x 384" in cost_note(None)
    assert "1 x 96 x 80" in cost_note("96,80")
