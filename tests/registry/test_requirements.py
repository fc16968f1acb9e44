from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from textseg.registry.component import Component
from textseg.registry.requirements import unmet


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install `film` 1.2 with an extra."""
    info = tmp_path / "film-1.2.dist-info"
    info.mkdir()
    metadata = "Metadata-Version: 2.1\nName: film\nVersion: 1.2\nRequires-Dist: absent-base\n"
    info.joinpath("METADATA").write_text(
        f"{metadata}Provides-Extra: gpu\nRequires-Dist: absent-kernels>=3; extra == 'gpu'\n"
        "Requires-Dist: numpy; extra == 'gpu'\n"
        "Requires-Dist: absent-elsewhere; extra == 'gpu' and python_version < '3'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    ("requirement", "missing"),
    [
        ("film", []),
        ("film>=1.2", []),
        ("film>=2", ["film>=2"]),
        ("film[gpu]", ["absent-kernels>=3"]),
        ("absent-film[gpu]>=1", ["absent-film[gpu]>=1"]),
        ("numpy", []),
    ],
)
def test_what_is_not_installed(requirement: str, missing: list[str]) -> None:
    assert unmet(requirement) == missing


def test_a_component_says_what_it_lacks() -> None:
    component = Component("fusion", "film", "film:Film", "film", "film", "1.2", needs="film[gpu]")
    assert component.lacks == (
        "needs absent-kernels>=3, which is not installed. Install it with: pip install 'film[gpu]'"
    )
