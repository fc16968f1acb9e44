from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from textseg.errors import PluginError
from textseg.registry.kinds import KINDS
from textseg.testing import check_fusion, check_plugin, checks, subjects_of

ROOT = Path(__file__).parent.parent.parent
DATASETS = {("dataset", name): None for name in ("spider", "mrspineseg", "lumbar_phantom")}


def test_every_check_has_its_heading_in_the_reference() -> None:
    page = (ROOT / "docs/reference/conformance.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    assert set(headings) == {check.name for kind in KINDS for check in checks(kind)}
    assert len(set(headings)) == len(headings)


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_checks_differ_and_each_says_what_it_is(kind: str) -> None:
    names = [check.name for check in checks(kind)]
    assert names[:3] == ["signature", "surroundings", "construction"]
    assert len(set(names)) == len(names)


def test_an_unknown_kind() -> None:
    with pytest.raises(PluginError, match="no kind of component 'fussion'. Did you mean 'fusion'"):
        checks("fussion")


@pytest.mark.parametrize("name", ["spine"])
def test_a_plugin_is_checked_whole(name: str) -> None:
    check_plugin(name, settings=DATASETS)


def test_a_plugin_is_named_by_entry_point_distribution_or_package() -> None:
    assert {subject.component.plugin for subject in subjects_of(["spine"], {})} == {"spine"}
    assert {"spine", "atmnet", "baselines"} <= {subject.component.plugin for subject in subjects_of(["textseg"], {})}


def test_wrong_names() -> None:
    with pytest.raises(PluginError, match="no plug-in 'spinal'. Did you mean 'spine'"):
        check_plugin("spinal")
    with pytest.raises(PluginError, match="Settings are given of dataset 'spidre', which spine does not bring"):
        check_plugin("spine", settings={("dataset", "spidre"): {}})
    with pytest.raises(PluginError, match="There is no fusion 'hasff'. Did you mean 'hasf'"):
        check_fusion("hasff")


PROJECT = """
[project]
name = "here"
[project.entry-points.textseg]
spine = "textseg_spine.plugin"
[tool.pytest.ini_options]
addopts = ["-p", "textseg.testing.pytest", "--import-mode=importlib", "-p", "no:cacheprovider"]
"""
CHECKED = """
import pytest

@pytest.fixture(scope="session")
def textseg_settings():
    return {("dataset", name): None for name in ("spider", "mrspineseg", "lumbar_phantom")}

def test_components(textseg_check):
    textseg_check()
"""
UNRELATED = """
import sys

def test_nothing_heavy():
    assert not {"torch", "numpy", "pydantic"} & set(sys.modules)
    assert "textseg.testing.pytest" in sys.modules
"""


def run_pytest(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "pytest", "-v", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plug-ins of other packages import much
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False).stdout


def test_the_plugin_of_pytest_has_a_test_for_each_check_and_costs_others_nothing(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "test_checked.py").write_text(CHECKED)
    (tmp_path / "test_unrelated.py").write_text(UNRELATED)
    assert "1 passed" in run_pytest(tmp_path, "test_unrelated.py")
    output = run_pytest(tmp_path, "test_checked.py")
    for check in checks("atlas"):
        assert f"test_components[atlas-lumbar_spider-{check.name}] PASSED" in output
    assert "test_components[dataset-spider-cases] SKIPPED" in output
    count = 3 * len(checks("atlas"))
    assert f"{count} passed, {3 * len(checks('dataset'))} skipped" in output


def test_a_project_without_a_plugin_is_told_how_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "test_checked.py").write_text(CHECKED)
    assert "declares no plug-in of textseg; name one: textseg_plugins" in run_pytest(
        tmp_path, "-p", "textseg.testing.pytest", "-p", "no:cacheprovider"
    )
