from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import textseg
from textseg.errors import PluginError
from textseg.hookspecs import Run
from textseg.registry.component import Component, Plugin
from textseg.registry.discovery import Register, Registry, installed_registry
from textseg.registry.local_code import load_code, local_code_of, require_installed
from textseg.registry.source import source_of

DECORATED = """
from dataclasses import dataclass
import textseg

@textseg.component("fusion", "mine")
class Mine:
    '''Mixes.'''

    def __init__(self, task, features, *, heads: int = 8):
        self.heads = heads
"""
HOOKED = """
from textseg import hookimpl

def build(task, features, *, heads: int = 4): return heads

@hookimpl
def textseg_register(register):
    register.fusion("mine", build)

@hookimpl
def textseg_run_started(run):
    run.record["calls"].append("mine")
"""


@pytest.fixture
def registry() -> Registry:
    register = Register(Plugin("film", "textseg-film", "0.1.0"))
    register.fusion("film", "film:FiLM")
    return Registry([], register.components)


@pytest.fixture
def fresh() -> Iterator[None]:
    installed_registry.cache_clear()
    yield
    installed_registry.cache_clear()


def written(folder: Path, text: str, name: str = "my_parts.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_decorated_class_of_a_file_is_a_component(tmp_path: Path, registry: Registry) -> None:
    code = load_code(written(tmp_path, DECORATED), registry)
    digest = hashlib.sha256(DECORATED.encode()).hexdigest()
    assert (code.name, code.content, code.sha256) == ("my_parts.py", DECORATED.encode(), digest)
    component = registry.component("fusion", "mine")
    assert component.description == "Mixes."
    assert source_of(component) == {"my_parts.py": digest}
    assert registry.build("fusion", "mine", None, None, settings={"heads": 2}).heads == 2
    assert load_code(tmp_path / "my_parts.py", registry) is code, "the same file is not executed again"
    assert local_code_of(registry, [registry.component("fusion", "film")]) == []
    assert local_code_of(registry, [component]) == [code]


def test_hooks_of_a_file_register_and_are_called(tmp_path: Path, registry: Registry) -> None:
    code = load_code(written(tmp_path, HOOKED), registry)
    assert registry.build("fusion", "mine", None, None, settings={}) == 4
    calls: list[str] = []
    registry.notify("textseg_run_started", Run(tmp_path, {}, {"calls": calls}))
    load_code(written(tmp_path, HOOKED.replace("4", "5")), registry)
    assert registry.build("fusion", "mine", None, None, settings={}) == 5
    registry.notify("textseg_run_started", Run(tmp_path, {}, {"calls": calls}))
    assert calls == ["mine", "mine"], "the hooks of the earlier file are gone"
    assert [each.name for each in local_code_of(registry, [])] == [code.name], "its hooks act on every run"


def test_an_edited_file_replaces_what_it_registered(tmp_path: Path, registry: Registry) -> None:
    load_code(written(tmp_path, DECORATED), registry)
    load_code(written(tmp_path, DECORATED.replace('"mine"', '"other"')), registry)
    assert [component.name for component in registry.components("fusion")] == ["film", "other"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "registers no component. Write @textseg.component"),
        ("\nraise ValueError('no')\n", r"can't be executed: line 2: ValueError: no\."),
        ("\n\nclass (:\n", "can't be executed: line 3: SyntaxError"),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
        (DECORATED.replace('"mine"', '"film"'), r"the name is in use: plug-in 'film' \(textseg-film 0.1.0\) has it"),
        (DECORATED.replace("fusion", "fusio"), "There is no kind of component 'fusio'. Did you mean 'fusion'"),
        (HOOKED.replace("textseg_run_started", "textseg_run_begun"), "marks 'textseg_run_begun' with @hookimpl"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_message(text: str, message: str, tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        load_code(written(tmp_path, text), registry)
    assert "\n" not in str(caught.value)
    assert [component.name for component in registry.components("fusion")] == ["film"]
    with pytest.raises(PluginError, match="gone.py' can't be read: No such file"):
        load_code(tmp_path / "gone.py", registry)


@pytest.mark.usefixtures("fresh")
def test_a_file_replaces_the_class_of_the_session_that_was_its_draft(tmp_path: Path) -> None:
    def draft() -> None:
        @textseg.component("fusion", "mine")
        class Draft:
            """Mixes."""

            def __init__(self, task: object, features: object) -> None:
                self.heads = 0

    draft()
    registry = installed_registry()
    assert registry.build("fusion", "mine", None, None, settings={}).heads == 0
    load_code(written(tmp_path, DECORATED))
    assert registry.component("fusion", "mine").plugin == "my_parts.py"
    assert registry.build("fusion", "mine", None, None, settings={}).heads == 8
    with pytest.raises(PluginError, match="the name is in use: local code 'my_parts.py' has it"):
        draft()


@pytest.mark.usefixtures("fresh")
def test_a_class_of_a_session_is_a_component_at_once() -> None:
    for heads in (2, 3):  # a cell that is executed again replaces its class

        @textseg.component("fusion", "of_a_session")
        class Mine:
            def __init__(self, task: object, features: object, *, heads: int = heads) -> None:
                self.heads = heads

    component = installed_registry().component("fusion", "of_a_session")
    assert installed_registry().build("fusion", "of_a_session", None, None, settings={}).heads == 3
    (name,) = source_of(component)
    assert name.endswith("Mine of the session")
    with pytest.raises(
        PluginError, match="A bundle holds no code, and fusion 'of_a_session' comes from this Python ses"
    ):
        require_installed([component], "A bundle holds no code")
    with pytest.raises(PluginError, match="There is no kind of component 'fusio'"):
        textseg.component("fusio", "mine")


def test_installed_components_may_be_in_a_bundle(registry: Registry) -> None:
    require_installed(registry.components(), "A bundle holds no code")
    local: list[Component] = []
    require_installed(local, "A bundle holds no code")
