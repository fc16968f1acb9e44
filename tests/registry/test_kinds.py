from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from textseg.recipe.schema import Recipe
from textseg.registry.component import Plugin
from textseg.registry.discovery import Register
from textseg.registry.kinds import KINDS, UnknownKindError, kind_of
from textseg.testing import checks

ROOT = Path(__file__).parent.parent.parent
TEMPLATES = ROOT / "textseg/cli/plugins/templates"


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_complete(name: str) -> None:
    kind = KINDS[name]
    contract = pkgutil.resolve_name(kind.contract)
    assert f"`({', '.join([*kind.parameters, '*'])}" in contract.__doc__ or name == "atlas"
    assert hasattr(importlib.import_module(kind.checks), "CHECKS")
    assert len(checks(name)) > 1
    assert (TEMPLATES / f"{name}.py.template").is_file()
    assert (TEMPLATES / f"test_{name}.py.template").is_file()
    assert (ROOT / kind.page).is_file()
    for key in kind.keys:
        assert key.split(".")[0] in Recipe.model_fields


def test_the_public_interface_lists_every_kind() -> None:
    page = (ROOT / "docs/reference/public_interface.md").read_text(encoding="utf-8")
    listed = re.search(r"^\| the kinds of component: (.*?) \|", page, re.MULTILINE)
    assert listed
    assert sorted(re.findall(r"`(\w+)`", listed[1])) == sorted(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_can_be_registered_and_listed(name: str) -> None:
    register = Register(Plugin("here", "here", "1"))
    getattr(register, name)("mine", "here:Mine")
    assert [(component.kind, component.name) for component in register.components] == [(name, "mine")]
    assert name in dir(register)


def test_an_unknown_kind_is_named_with_the_nearest_and_the_way_round() -> None:
    register = Register(Plugin("here", "here", "1"))
    with pytest.raises(UnknownKindError) as caught:
        register.fussion("mine", "here:Mine")
    message = str(caught.value)
    assert re.match(r"There is no kind of component 'fussion'\. Did you mean 'fusion'\? Possible: atlas, .*\.", message)
    assert "docs/reference/public_interface.md#open-and-closed" in message
    assert not hasattr(register, "launcher")  # so that a plug-in can ask for what a newer textseg has
    with pytest.raises(UnknownKindError):
        kind_of("launcher")
