"""The documents say what the code does: commands, keys, components, errors, recipes, links, examples."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from textseg import contracts, errors, hookspecs
from textseg.contracts import Atlas, Visibility
from textseg.metrics import scores
from textseg.registry import discovery as registry
from textseg.registry.component import Plugin
from textseg.registry.kinds import KINDS
from textseg.runs.experiment import fingerprint_of
from textseg.testing import check_prompt_generator

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "plugins/*/README.md")
    for path in ROOT.glob(pattern)
    if "_build" not in path.parts
)
RECIPES = sorted(path for path in ROOT.glob("recipes/**/*.yaml") if "splits" not in path.parts)
OTHER_PROGRAMS = {
    "--gpus-per-node",
    "--keep",
    "--kill-on-bad-exit",
    "--nnodes",
    "--nodes",
    "--nproc-per-node",
    "--ntasks-per-node",
    "--open-mode",
    "--rdzv-backend",
    "--rdzv-endpoint",
    "--requeue",
    "--shm-size",
    "--signal",
    "--smallest",
    "--local-dir",
    "--no-venv",
}  # of hf, nox, torchrun and SLURM
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, *headings: str) -> str:
    """Return the text below a heading (`## x`), or below nested headings, up to the next of the same rank."""
    for heading in headings:
        rank = heading.split()[0]
        match = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{2,{len(rank)}}} |\Z)", text, re.MULTILINE | re.DOTALL)
        assert match, f"no heading '{heading}'"
        text = match.group(1)
    return text


def rows(text: str) -> dict[str, str]:
    """Return the table rows of a text by the names between backticks in their first cell."""
    cells = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            first, _, rest = line[2:].partition(" |")
            cells |= dict.fromkeys(re.findall(r"`([^`]+)`", first), rest)
    return cells


def commands() -> Iterator[tuple[str, Any]]:
    import typer.main

    from textseg.cli.entry import app

    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        if children := getattr(command, "commands", None):
            if command.invoke_without_command:
                yield path, command
            for name, child in children.items():
                yield from walk(f"{path} {name}", child)
        else:
            yield path, command

    yield from walk("textseg", typer.main.get_command(app))


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}


def test_every_command_has_a_heading_and_its_options() -> None:
    page = read("docs/reference/commands.md")
    for name, command in commands():
        below = section(page, f"## {name}")
        assert set(FLAG.findall(below)) == options(command) - {"--help"}, name
    assert re.findall(r"^## (textseg .*)$", page, re.MULTILINE) == [name for name, _ in commands()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_flag_that_does_not_exist(page: Path) -> None:
    known = {"--help", "--version"} | OTHER_PROGRAMS
    for _, command in commands():
        known |= options(command)
    assert set(FLAG.findall(page.read_text(encoding="utf-8"))) - known == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_is_one_that_exists(page: Path) -> None:
    names = [name for name, _ in commands()]
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|shell)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in re.findall(r"(?:^|&& |bin/)(textseg .*)$", "\n".join(blocks), re.MULTILINE):
        assert any(line.startswith(name) for name in names), line
        for recipe in re.findall(r"\S+\.yaml", line):
            # tests/test_tutorials.py follows such a page
            written_by_the_page = recipe.startswith("textseg-") or f"```yaml\n# {recipe}\n" in text
            written_by_the_page |= f"> {recipe}\n" in text or f"textseg recipes copy {Path(recipe).stem}\n" in text
            assert written_by_the_page or any(path.is_file() for path in ROOT.glob(recipe)), line


def written(default: object) -> str:
    """Return a default as the pages write it."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple | list):
        return f"`[{', '.join(getattr(item, 'use', str(item)) for item in default)}]`"
    if isinstance(default, float) and 0 < default < 1e-3:
        return f"`{default:.0e}`".replace("e-0", "e-")
    if isinstance(default, float) and default == int(default):
        return f"`{default:g}`"
    return f"`{default}`"


def test_every_recipe_key_is_described_with_its_default() -> None:

    from textseg.recipe.schema import Recipe

    page = read("docs/reference/recipe.md")

    def check(model: Any, heading: str) -> None:
        described = rows(section(page, heading))
        for key, field in model.model_fields.items():
            if key == "use":
                continue
            assert key in described, f"{heading}: {key}"
            if field.is_required():
                assert heading in {"## prompts"} or "required" in described[key] or key == "epochs", f"{heading}: {key}"
            elif isinstance(field.default, str | int | float | tuple) and field.default not in ((), ""):
                possible = {written(field.default), f"`{field.default}`"}
                assert any(text in described[key] for text in possible), f"{heading}: {key} is {possible}"
        known = set(model.model_fields)
        assert set(described) <= known, f"{heading}: {set(described) - known}"

    check(Recipe, "## Top level")
    for key, field in Recipe.model_fields.items():
        parts = [field.annotation, *(inner for part in get_args(field.annotation) for inner in (part, *get_args(part)))]
        models = [
            p for p in parts if inspect.isclass(p) and hasattr(p, "model_fields") and p.__name__ != "ComponentSpec"
        ]
        for model in models:
            check(model, f"## {key}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_is_described_with_its_settings(kind: str) -> None:
    page = read("docs/reference/components.md")
    own = [c for c in registry.installed_registry().components(kind) if c.distribution == "textseg"]
    part = section(page, f"## {kind}")
    assert set(re.findall(r"^### (.*)$", part, re.MULTILINE)) == {component.name for component in own}
    assert f"({', '.join([*KINDS[kind].parameters, '*'])}" in part
    for component in own:
        below = section(part, f"### {component.name}")
        settings = component.settings()
        described = rows(below)
        assert set(described) == set(settings), component.name
        assert f"`{component.plugin}`" in below
        for name, parameter in settings.items():
            if parameter.default is parameter.empty:
                assert "required" in described[name], name
            else:
                assert written(parameter.default) in described[name], f"{component.name}.{name}: {parameter.default}"


def test_every_error_is_described() -> None:
    children = {name for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, Exception)}
    assert set(rows(read("docs/reference/errors.md"))) == children


def test_every_hook_is_described_with_its_arguments_and_tested() -> None:
    hooks = {name: inspect.signature(item) for name, item in vars(hookspecs).items() if name.startswith("textseg_")}
    described = re.findall(r"^## (textseg_.*)$", read("docs/reference/hooks.md"), re.MULTILINE)
    assert described == [f"{name}({', '.join(signature.parameters)})" for name, signature in hooks.items()]
    tests = re.findall(r"^def test_hook_(\w+)\(", read("tests/test_hookspecs.py"), re.MULTILINE)
    assert sorted(tests) == sorted(hooks)


def test_every_column_of_the_scores_is_described() -> None:
    described = rows(section(read("docs/reference/run_folder.md"), "## scores.csv"))
    assert set(described) == set(scores.COLUMNS)


def test_every_metric_and_status_is_defined() -> None:
    page = read("docs/reference/metrics.md")
    described = rows(page)
    assert {component.name for component in registry.installed_registry().components("metric")} <= set(described)
    assert set(get_args(scores.Status)) <= set(described)


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_every_recipe_is_listed(recipe: Path) -> None:
    assert f"`{name_of(recipe)}`" in read("docs/reference/recipes.md")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_recipe_that_does_not_exist(page: Path) -> None:
    mentions = re.findall(r"[\w/-]*recipes/[\w/]+\.yaml", page.read_text(encoding="utf-8"))
    named = {name.lstrip("/") for name in mentions}  # a page may include a file from above
    assert {name for name in named if not (ROOT / name).is_file() and not name.startswith("textseg-")} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if "decisions" not in page.parts], ids=name_of)
def test_no_page_names_a_file_of_python_that_does_not_exist(page: Path) -> None:
    names = re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text(encoding="utf-8"))
    roots = (ROOT, ROOT / "textseg", page.parent)
    # tests/test_tutorials.py follows pages that write files
    missing = [name for name in names if not any((root / name).is_file() for root in roots)]
    assert [name for name in missing if not name.startswith("textseg_plain_words/")] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_table_rows_stand_on_one_line(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in text.splitlines() if line.startswith("|") and not line.rstrip().endswith("|")] == []


def test_every_page_of_the_docs_is_in_a_table_of_contents() -> None:
    listed = set()
    for page in ROOT.glob("docs/**/*.md"):
        for block in re.findall(
            r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            entries = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{entry}.md").resolve() for entry in entries}
    pages = {path.resolve() for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts}
    assert pages - listed == {(ROOT / "docs/index.md").resolve()}


def test_the_recipe_of_the_reference_is_a_recipe(tmp_path: Path) -> None:
    from textseg.recipe.loading import load_recipe

    block = re.search(r"^```yaml\n(.*?)^```", read("docs/reference/recipe.md"), re.MULTILINE | re.DOTALL)
    assert block
    path = tmp_path / "atmnet_spider.yaml"
    path.write_text(block.group(1), encoding="utf-8")
    assert load_recipe(path).auxiliary_losses[0].weight == 0.2
    overrides = re.findall(r'--set "?([^\s"`]+)', read("docs/reference/recipe.md"))
    examples = [override for override in overrides if "key=" not in override]
    assert examples
    load_recipe(path, examples)


def test_the_mistakes_of_the_reference_are_reported_as_it_says(tmp_path: Path) -> None:
    from textseg.recipe.loading import load_recipe

    page = read("docs/reference/recipe.md")
    block = re.search(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    shown = re.findall(r"^recipes/(atmnet_spider\.yaml:\d+: .*?)(?: \.\.\.)?$", page, re.MULTILINE)
    assert block
    assert shown
    path = tmp_path / "atmnet_spider.yaml"
    path.write_text(block.group(1).replace("epochs:", "epochz:"), encoding="utf-8")
    with pytest.raises(errors.RecipeError) as caught:
        load_recipe(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(shown)
    for line, start in zip(lines, shown, strict=True):
        assert line.startswith(f"{tmp_path}/{start}")


def test_the_plugin_of_the_readme_works(small_atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"^```python\n(# (\w+)\.py\n.*?)^```", read("README.md"), re.MULTILINE | re.DOTALL)
    assert block
    code, module = block.groups()
    (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    register = registry.Register(Plugin(module, module, "0"))
    importlib.import_module(module).textseg_register(register)
    (component,) = register.components
    assert (component.kind, component.name) == ("prompt_generator", "short_prompts")
    assert set(component.settings()) == {"region"}
    prompts = component.load()(small_atlas, region="neck")(Visibility(("L1",), source="template", scope="volume"))
    assert prompts.holistic == "MRI of the neck showing L1."
    assert len(prompts.classwise) == len(small_atlas.structures)
    check_prompt_generator(component)  # as `textseg plugins doctor --check` does


def test_the_check_of_the_project_runs_the_test_commands_of_the_readme() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", read("README.md"), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "pytest" in block]
    checks = read(".ci/run")
    for line in block.strip().splitlines():
        assert line in checks


@pytest.mark.parametrize("name", ["Batch", "Task", "TextFeatures"])
def test_the_fields_of_data_classes_are_listed(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "public_interface.md").read_text(encoding="utf-8")
    table = page.split(f"`{name}`: ")[1].split("\n\n")[1]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert listed == [field.name for field in dataclasses.fields(getattr(contracts, name))]


def test_the_keys_of_a_fingerprint_are_listed() -> None:
    page = (ROOT / "docs" / "reference" / "public_interface.md").read_text(encoding="utf-8")
    table = page.split("| key of `task.fingerprint` |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == fingerprint_of([]).keys()
