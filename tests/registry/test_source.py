from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from textseg.registry.component import Component
from textseg.registry.discovery import installed_registry
from textseg.registry.source import core_source, source_of

FILES = {
    "__init__.py": "",
    "plugin.py": "from textseg import hookimpl\n",
    "film.py": """
import torch
from typing import TYPE_CHECKING
from .blocks import Block
from sourced import layers
if TYPE_CHECKING:
    from sourced.unused import Nothing
else:
    import sourced.branch
class FiLM:
    def forward(self):
        from .inner import late
        return late
""",
    "blocks.py": "from . import constants\nclass Block: ...",
    "constants.py": "SIZE = 1",
    "layers.py": "import sourced.film",
    "branch.py": "",
    "unused.py": "class Nothing: ...",
    "alone.py": "",
    "inner/__init__.py": "from sourced.inner.deep import late",
    "inner/deep.py": "late = 1",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, content in FILES.items():
        path = tmp_path / "sourced" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "sourced"
    for name in [name for name in sys.modules if name.partition(".")[0] == "sourced"]:
        del sys.modules[name]


def component(target: object, package: str = "sourced.plugin") -> Component:
    return Component("fusion", "film", target, "sourced", "sourced", "1.0", package=package)


def test_the_module_and_what_it_imports_from_its_package_count(package: Path) -> None:
    source = source_of(component("sourced.film:FiLM"))
    used = ["__init__", "blocks", "branch", "constants", "film", "inner/__init__", "inner/deep", "layers"]
    assert list(source) == [f"sourced/{name}.py" for name in used]
    assert source["sourced/film.py"] == hashlib.sha256((package / "film.py").read_bytes()).hexdigest()
    assert "sourced.film" not in sys.modules, "the code is read and not executed"


def test_an_edit_changes_the_hash_of_its_file_alone(package: Path) -> None:
    before = source_of(component("sourced.film:FiLM"))
    (package / "constants.py").write_text("SIZE = 2  # edited")
    (package / "alone.py").write_text("edited = True")
    after = source_of(component("sourced.film:FiLM"))
    assert {name for name in after if after[name] != before[name]} == {"sourced/constants.py"}
    (package / "blocks.py").write_text("from .new import Block")
    (package / "new.py").write_text("class Block: ...")
    assert "sourced/new.py" in source_of(component("sourced.film:FiLM"))


def test_a_class_counts_like_its_location(package: Path) -> None:
    import sourced.blocks  # type: ignore[import-not-found]

    assert source_of(component(sourced.blocks.Block)) == source_of(component("sourced.blocks:Block"))


def test_of_a_builder_from_another_package_only_the_file_counts(package: Path) -> None:
    assert list(source_of(component("sourced.film:FiLM", package="elsewhere.plugin"))) == ["sourced/film.py"]
    assert list(source_of(component("torch.optim.adamw:AdamW"))) == ["torch/optim/adamw.py"]


def test_code_without_a_file_and_damaged_code_are_no_error(package: Path) -> None:
    assert source_of(component("not_installed.film:FiLM")) == {}
    assert source_of(component("__main__:FiLM")) == {}
    (package / "film.py").write_text("from .blocks import (")
    assert list(source_of(component("sourced.film:FiLM"))) == ["sourced/__init__.py", "sourced/film.py"]


def test_components_of_textseg_have_their_source() -> None:
    source = source_of(installed_registry().component("text_encoder", "minilm"))
    assert list(source) == [f"textseg_atmnet/{name}.py" for name in ("__init__", "huggingface", "minilm")]
    assert all(source_of(component) for component in installed_registry().components())
    assert core_source() == core_source()
