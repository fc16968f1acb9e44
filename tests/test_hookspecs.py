"""Each hook is called when it says, with what it says; `test_hook_<name>` is asked for by tests/test_docs.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from textseg.recipe.listing import installed_recipes, recipe_file
from textseg.registry.discovery import installed_registry
from textseg.training.run import run as run_recipe

LISTENER = """
    import json
    from pathlib import Path

    from textseg import ReportSection, hookimpl

    NOTES = Path(__file__).with_name("notes.jsonl")

    def note(hook, run):
        entry = {
            "hook": hook,
            "folder": str(run.folder),
            "epochs": run.recipe["training"]["epochs"],
            "default": run.recipe["training"]["optimizer"],
            "scored": "scored_step" in run.record,
            "seconds": "training_seconds" in run.record,
            "files": sorted(path.name for path in run.folder.iterdir()),
        }
        with NOTES.open("a") as file:
            file.write(json.dumps(entry) + "\\n")

    @hookimpl
    def textseg_recipes():
        return Path(__file__).with_name("recipes")

    @hookimpl
    def textseg_run_started(run):
        note("started", run)
        raise OSError("the server is down")

    @hookimpl
    def textseg_report_sections(run):
        note("sections", run)
        return [ReportSection("Said <elsewhere>", "<p>42 words</p>")]

    @hookimpl
    def textseg_run_finished(run):
        note("finished", run)
"""


@pytest.fixture(scope="module")
def listening(
    tmp_path_factory: pytest.TempPathFactory,
    third_party: Path,
    install_into: Callable[[Path, str, str, Mapping[str, str]], None],
    installed_from: Callable[[Path], AbstractContextManager[None]],
) -> Iterator[Path]:
    """The notes of a plug-in that listens to every hook."""
    folder = tmp_path_factory.mktemp("listening")
    install_into(folder, "listener", "textseg_listener", {"plugin": LISTENER})
    (folder / "textseg_listener" / "recipes").mkdir()
    (folder / "textseg_listener" / "recipes" / "heard.yaml").write_text("# A recipe of the listener.\n")
    with installed_from(third_party), installed_from(folder):
        yield folder / "textseg_listener" / "notes.jsonl"


@pytest.fixture(scope="module")
def notes(listening: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """Return the notes on a run and on the same command once more, with the run folder in the last line."""
    output = tmp_path_factory.mktemp("runs")
    for _ in range(2):
        folder = run_recipe(tiny_recipe, overrides=["training.epochs=1"], output=output)
    return [*map(json.loads, listening.read_text().splitlines()), {"folder": str(folder)}]


def test_hook_textseg_register(listening: Path) -> None:
    registry = installed_registry()
    assert registry.component("network", "plain").plugin == "stranger"
    assert registry.faults == []  # a plug-in may bring no component


def test_hook_textseg_recipes(listening: Path) -> None:
    (recipe,) = [recipe for recipe in installed_recipes() if recipe.distribution != "textseg"]
    assert recipe_file(Path("heard")) == recipe.path == listening.with_name("recipes") / "heard.yaml"


def test_hook_textseg_run_started(notes: list[dict[str, object]]) -> None:
    first, last = notes[0], notes[-1]
    assert (first["hook"], first["folder"], first["epochs"]) == ("started", last["folder"], 1)
    assert first["default"] == "adamw"  # the recipe leaves it out
    assert "recipe.yaml" in first["files"]  # type: ignore[operator]
    assert "checkpoints" not in first["files"]  # type: ignore[operator]
    assert not first["scored"]
    assert len(notes) == 4, "a run that stands finished is neither started nor finished again"


def test_hook_textseg_report_sections(notes: list[dict[str, object]]) -> None:
    assert notes[1]["hook"] == "sections"
    assert {"scores.csv", "enumeration.json", "run.json"} <= set(notes[1]["files"])  # type: ignore[call-overload]
    assert "report.html" not in notes[1]["files"]  # type: ignore[operator]
    report = Path(str(notes[-1]["folder"]), "report.html").read_text(encoding="utf-8")
    assert "<section><h2>Said &lt;elsewhere&gt;</h2><p>42 words</p></section>" in report
    assert report.index("Said") < report.index("<h2>Prompts</h2>")


def test_hook_textseg_run_finished(notes: list[dict[str, object]]) -> None:
    assert (notes[2]["hook"], notes[2]["scored"], notes[2]["seconds"]) == ("finished", True, True)
    assert "report.html" in notes[2]["files"]  # type: ignore[operator]


def test_hook_textseg_published_results() -> None:
    tables = installed_registry().published_results()
    assert [table.dataset for table in tables] == ["mrspineseg", "spider"]
    assert all(len(table.methods) == 13 for table in tables)
