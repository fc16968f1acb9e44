from __future__ import annotations

import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from textseg.registry import api_version as compatibility
from textseg.registry.api_version import asked_api, misfit
from textseg.registry.component import Plugin
from textseg.registry.discovery import discover
from textseg.version import API_VERSION, OLDEST_API_VERSION


def distribution(folder: Path, requires: str) -> PathDistribution:
    info = folder / "textseg_x-0.3.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: textseg-x\nVersion: 0.3\n{requires}\n"
    (info / "METADATA").write_text(f"{metadata}\nRequires-Dist: textseg[api-9]\nis what its README says\n")
    (info / "entry_points.txt").write_text("[textseg]\nx = textseg_x_plugin\n")
    return PathDistribution(info)


@pytest.mark.parametrize(
    ("requires", "asked"),
    [
        ("Requires-Dist: textseg[api-1]", 1),
        ("Requires-Dist: textseg[api-12,minilm]>=0.3; python_version > '3'", 12),
        ("Requires-Dist: textseg [minilm, API-2]", 2),
        ("Requires-Dist: torch\nRequires-Dist: textseg[api-1]\nRequires-Dist: textseg[api-3]", 3),
        ("Requires-Dist: textseg>=0.1", None),
        ("Requires-Dist: textseg-spine[api-1]", None),
        ("Summary: textseg[api-1]", None),
    ],
)
def test_a_distribution_asks_by_a_requirement(tmp_path: Path, requires: str, asked: int | None) -> None:
    assert asked_api(distribution(tmp_path, requires)) == asked


def test_nobody_asks_nothing() -> None:
    assert asked_api(None) is None


def plugin(api: int | None) -> Plugin:
    return Plugin("x", "textseg-x", "0.3", api=api)


def test_what_lies_within_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "OLDEST_API_VERSION", 2)
    monkeypatch.setattr(compatibility, "API_VERSION", 4)
    assert [misfit(plugin(api), "0.5.0") for api in (None, 2, 3, 4)] == [None] * 4
    assert misfit(plugin(5), "0.5.0") == (
        "it asks for API 5, and textseg 0.5.0 has 2 to 4. Install a newer textseg, or an older textseg-x"
    )
    assert misfit(plugin(1), "0.5.0") == (
        "it asks for API 1, which textseg 0.5.0 no longer has; it has 2 to 4. Install a newer textseg-x, or an older "
        "textseg"
    )


def test_a_plugin_of_the_future_is_broken_before_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "textseg_x_plugin.py").write_text("raise RuntimeError('imported')")
    entry_points = distribution(tmp_path, f"Requires-Dist: textseg[api-{API_VERSION + 1}]").entry_points
    (plugin,) = discover(list(entry_points)).plugins
    assert plugin.api == API_VERSION + 1
    assert plugin.error is not None
    assert plugin.error.startswith(f"it asks for API {API_VERSION + 1}, and textseg ")


def test_the_extras_that_plugins_ask_for_are_those_that_textseg_has() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    offered = {name for name in project["optional-dependencies"] if name.startswith("api-")}
    assert offered == {f"api-{version}" for version in range(OLDEST_API_VERSION, API_VERSION + 1)}
    assert all(project["optional-dependencies"][name] == [] for name in offered)
