from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from textseg.cli import entry as cli
from textseg.cli.plugins import scaffold
from textseg.cli.plugins.scaffold import LONGEST, NewPlugin, write_plugin
from textseg.errors import PluginError
from textseg.recipe.loading import load_recipe, required_components
from textseg.registry.discovery import installed_registry
from textseg.registry.kinds import KINDS
from textseg.version import API_VERSION, __version__


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, installed_from: Callable[[Path], AbstractContextManager[None]]
) -> Iterator[Path]:
    """A new plug-in of each kind, installed."""
    folder = tmp_path_factory.mktemp("new")
    for kind in KINDS:
        write_plugin(f"my_{kind}", kind, folder)
    with ExitStack() as stack:
        for plugin in sorted(folder.iterdir()):
            project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
            assert project["dependencies"] == [f"textseg[api-{API_VERSION}]>={__version__}"]
            information = plugin / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
            information.mkdir()
            (information / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
            )
            points = "".join(f"{name} = {value}\n" for name, value in project["entry-points"]["textseg"].items())
            (information / "entry_points.txt").write_text(f"[textseg]\n{points}")
            stack.enter_context(installed_from(plugin))
        yield folder


def settings_of(kind: str, folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the settings that its own tests build its components with."""
    if kind not in ("atlas", "dataset"):
        return {}
    phantom = installed_registry().build("dataset", f"my_{kind}_phantom", settings={"folder": str(folder)})
    assert len(phantom.cases()) == 8
    settings: dict[tuple[str, str], dict[str, Any]] = {("dataset", f"my_{kind}_phantom"): {"folder": str(folder)}}
    return {**settings, ("dataset", "my_dataset"): {"folder": str(phantom.folder)}} if kind == "dataset" else settings


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_keeps_the_contract(kind: str, written: Path, tmp_path: Path) -> None:
    from textseg.testing import check_plugin

    assert installed_registry().faults == []
    components = {(c.kind, c.name) for c in installed_registry().components() if c.plugin == f"my_{kind}"}
    assert components == set(NewPlugin(kind, f"my_{kind}").components)
    check_plugin(f"my_{kind}", settings=settings_of(kind, tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_uses_it(kind: str, written: Path) -> None:
    (path,) = (written / f"textseg-my-{kind.replace('_', '-')}" / f"textseg_my_{kind}" / "recipes").iterdir()
    recipe = load_recipe(Path(path.stem))  # the plug-in's hook names its folder
    assert recipe.name == path.stem
    used = {(kind, spec.use) for kind, spec in required_components(recipe, KINDS)}
    own = {"atlas": ("dataset", "my_atlas_phantom"), "dataset": ("dataset", "my_dataset_phantom")}
    assert own.get(kind, (kind, f"my_{kind}")) in used


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x", "a_name_that_is_so_long_x1"[:LONGEST]])
def test_what_is_written_is_clean_whatever_the_name(kind: str, name: str, tmp_path: Path) -> None:
    ruff = shutil.which("ruff") or shutil.which("ruff", path=Path(sys.executable).parent)
    if ruff is None:
        pytest.skip("ruff is not installed; `nox -s new_plugins` checks it, too")
    folder, *files = write_plugin(name, kind, tmp_path)
    assert not [path for path in files for mark in ("{{", "{%", "{#") if mark in path.read_text()]
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run([ruff, *command, "."], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("My", "fusion", "'My' can't name a plug-in. A name is made of small letters"),
        ("1st", "fusion", "can't name"),
        ("two__lines", "fusion", "can't name"),
        ("class", "fusion", "no word of Python"),
        ("plugin", "fusion", "can't name"),
        ("a" * (LONGEST + 1), "fusion", "at most 24"),
        ("mine", "fusoin", "no kind of component 'fusoin'. Did you mean 'fusion'?"),
        ("spine", "fusion", "The name 'spine' is taken by plug-in 'spine' (textseg "),
        ("hasf", "fusion", "There is a fusion 'hasf' already, of plug-in 'atmnet' (textseg "),
        ("lumbar", "dataset", "There is a dataset 'lumbar_phantom' already"),
    ],
)
def test_what_can_not_be_is_refused(name: str, kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        write_plugin(name, kind, tmp_path)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_exists_is_not_shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "textseg_mine").mkdir()
    (tmp_path / "textseg_mine" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="There is a package 'textseg_mine' already"):
        write_plugin("mine", "fusion", tmp_path / "out")


def test_nothing_is_written_over_and_nothing_is_left_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "textseg-mine").mkdir()
    with pytest.raises(PluginError, match="textseg-mine' exists already"):
        write_plugin("mine", "fusion", tmp_path)
    (tmp_path / "textseg-mine").rmdir()

    def fail(self: NewPlugin) -> Iterator[tuple[str, str]]:
        yield "a.py", "x = 1\n"
        raise OSError("the disk is full")

    monkeypatch.setattr(scaffold.NewPlugin, "files", fail)
    with pytest.raises(PluginError, match="can't be written: the disk is full"):
        write_plugin("mine", "fusion", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["textseg", "plugins", "new", "mine", "--kind", "network"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    lines = capsys.readouterr().out.splitlines()
    assert "textseg-mine/textseg_mine/mine.py" in lines
    assert lines[-3:] == [
        "  pip install -e './textseg-mine[test]'",
        "  pytest textseg-mine",
        "  textseg run mine_lumbar_phantom",
    ]
    assert all(Path(line).is_file() for line in lines[: lines.index("")])
