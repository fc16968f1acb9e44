"""Agreement of the dependencies in pyproject.toml with the imports of the code."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from textseg.registry.component import canonical

ROOT = Path(__file__).parent.parent
# Nothing here imports these; a dependency needs them and does not bring them, or they are a part of another one.
UNIMPORTED = {
    "einops": "MONAI's Swin UNETR imports it and does not require it",
    "tensorboard": "torch.utils.tensorboard imports it, and neither torch nor Lightning requires it",
}
# Imported without being asked for: another dependency requires them, or the code does without them.
UNDECLARED = {
    "huggingface-hub": "transformers requires it",
    "ipython": "imported where it runs, in a notebook",
    "pydantic-core": "pydantic requires it",
    "torchvision": "looked at where it is installed, since a build may not fit torch",
    "tqdm": "huggingface_hub requires it",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE = {canonical(Requirement(text).name) for text in PROJECT["dependencies"]}
EXTRA = {canonical(Requirement(text).name) for texts in PROJECT["optional-dependencies"].values() for text in texts}


@cache
def imported() -> set[str]:
    """The distributions of all modules that the package and its plug-ins import, also inside functions."""
    modules = set()
    for folder in (ROOT / "textseg", *(ROOT / "plugins").glob("textseg_*")):
        for path in folder.rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    modules.add(node.module.partition(".")[0])
                elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                    modules |= {re.split(r"\W", a.value)[0] for a in node.args if isinstance(a, ast.Constant)}
    known = packages_distributions()
    foreign = {name for name in modules if name not in sys.stdlib_module_names and not name.startswith("textseg")}
    return {canonical(distribution) for name in foreign for distribution in known.get(name, [name])}


def test_every_base_dependency_is_imported_or_has_a_reason() -> None:
    unused = {name for name in BASE if name not in imported()}
    assert unused == set(UNIMPORTED)


def test_every_import_is_a_dependency_or_an_extra() -> None:
    assert imported() - BASE - EXTRA - {"textseg"} == set(UNDECLARED)


@pytest.mark.parametrize("name", ["torch", "transformers", "lightning", "pluggy", "torchmetrics", "typer"])
def test_what_the_project_stands_on_is_used(name: str) -> None:
    assert name in BASE & imported()
