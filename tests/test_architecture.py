"""The structure of the code: sizes of folders, names of files, and the direction of imports."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "textseg").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "manager"}
HEAVY = {"torch", "monai", "lightning", "transformers", "matplotlib", "SimpleITK", "scipy", "pydantic"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[tuple[str, str]]:
    """Return pairs (module, name) of all import statements of a file; the name is empty for `import module`."""
    pairs: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            pairs |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            pairs |= {("." * node.level + (node.module or ""), alias.name) for alias in node.names}
    return pairs


def test_the_core_never_names_a_plugin() -> None:
    packages = [folder.name for folder in (ROOT / "plugins").iterdir() if folder.is_dir()]
    assert len(packages) >= 5
    assert len(CORE) > 50
    texts = {path: path.read_text(encoding="utf-8") for path in CORE}
    assert [(name_of(path), package) for path, text in texts.items() for package in packages if package in text] == []


def test_names_say_what_a_file_is() -> None:
    stems = {path.stem for path in CORE + PLUGINS} | {path.parent.name for path in CORE + PLUGINS}
    parts = {part for stem in stems for part in stem.split("_")}
    assert parts & FORBIDDEN_NAMES == set()


def test_folders_are_small_enough_to_read() -> None:
    folders: dict[str, int] = {}
    for path in CORE + PLUGINS:
        folders[name_of(path.parent)] = folders.get(name_of(path.parent), 0) + (path.name != "__init__.py")
    assert {folder: count for folder, count in folders.items() if count > 20} == {}
    assert len([path for path in (ROOT / "textseg").iterdir() if path.name != "__pycache__"]) <= 28


@pytest.mark.parametrize("path", [path for path in CORE if path.name == "__init__.py"], ids=name_of)
def test_a_package_says_in_a_few_lines_what_it_holds_and_may_import(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text
    if path.parent.name != "textseg":  # the root is the public interface, not a package of the order
        assert len(text.splitlines()) <= 6
        assert re.search(r"^May import ", text, re.MULTILINE)


def test_contributing_has_a_row_for_each_package_in_the_order_that_is_enforced() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## Where things go")[1].split("\n## ")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == re.findall(r"\w+", " ".join(layers))


def test_imports_are_absolute_and_public() -> None:
    private = {
        (name_of(path), module, name)
        for path in CORE + PLUGINS
        for module, name in imported(path)
        if module.startswith(".")
        or (module.split(".")[0].startswith("textseg") and any(p.startswith("_") for p in (*module.split("."), name)))
    }
    assert {line for line in private if line[1:] != ("textseg.version", "__version__")} == set()


def test_page_and_drawing_of_the_architecture_show_the_layers_that_are_enforced() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    page = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    assert "```\n" + "\n".join(layers) + "\n```" in page
    drawing = (ROOT / "docs/pictures/architecture.svg").read_text(encoding="utf-8")
    rows: dict[float, list[str]] = {}
    for y, name in re.findall(r'<text class="name middle" x="[\d.]+" y="([\d.]+)">(\w+)<', drawing):
        rows.setdefault(float(y), []).append(name)
    assert [rows[y] for y in sorted(rows)][: len(layers)] == [re.findall(r"\w+", layer) for layer in layers]


def test_listing_components_imports_nothing_heavy() -> None:
    code = (
        "import sys, textseg, textseg.registry.discovery\n"
        "components = textseg.registry.discovery.installed_registry().components()\n"
        "assert components\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_builder_of_this_distribution_exists_and_describes_itself() -> None:
    from textseg.registry.discovery import installed_registry

    components = [c for c in installed_registry().components() if c.distribution == "textseg"]
    assert len(components) >= 10
    for component in components:
        component.settings()
        assert component.description, f"{component.kind} {component.name} has no docstring"


def test_names_of_component_and_file_agree() -> None:
    from textseg.registry.discovery import installed_registry

    for component in installed_registry().components():
        if component.distribution == "textseg" and component.kind != "atlas":
            assert isinstance(component.target, str)
            module, _, builder = component.target.partition(":")
            # Several short builders of a kind may share a module.
            assert module.rpartition(".")[2] in (component.name, f"{component.kind}s")
            assert component.name.replace("_", "") in builder.lower().replace("_", "")


def test_what_plugins_import_of_textseg_is_listed_as_public() -> None:
    page = (ROOT / "docs/reference/public_interface.md").read_text(encoding="utf-8")
    listed = {}
    for line in page.splitlines():
        if line.startswith("| `textseg") and line.count(" | ") == 2:
            module, names, _ = line[2:].split(" | ")
            listed[module.strip("`")] = set(re.findall(r"`(.+?)`", names)) or {"all"}
    plugins = [path for path in PLUGINS if "tests" not in path.parts]
    used = {pair for path in plugins for pair in imported(path) if pair[0].split(".")[0] == "textseg"}
    assert used
    assert {(m, n) for m, n in used if not listed.get(m, set()) & {n, "all"}} == set()
    for module, names in listed.items():
        assert all(hasattr(importlib.import_module(module), name) for name in names - {"all"})
