"""Each hook is called when it says, with what it says; `test_hook_<name>` is asked for by tests/test_docs.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

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

    def record(**facts):
        with NOTES.with_name("training.jsonl").open("a") as file:
            file.write(json.dumps(facts) + "\\n")

    @hookimpl
    def textseg_fit_started(run, fit):
        record(hook="fit_started", epochs=fit.epochs, steps=fit.steps, step=fit.step, best=fit.best_epoch)

    @hookimpl
    def textseg_epoch_finished(epoch, run):
        saved = (run.folder / "checkpoints" / "best.ckpt").exists()
        row = {name: epoch.numbers[name] for name in ("validation_dsc", "train_loss", "learning_rate")}
        row |= {"number": epoch.number, "best": epoch.best, "scores": dict(epoch.validation)}
        record(hook="epoch_finished", saved=saved, **row)

    @hookimpl
    def textseg_fit_finished(fit):
        record(hook="fit_finished", step=fit.step, history=len(fit.history), best=fit.best_epoch)

    @hookimpl
    def textseg_evaluated(run, scores):
        report = (run.folder / "report.html").exists()
        record(hook="evaluated", report=report, metrics=sorted({score.metric for score in scores}))

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


@pytest.fixture(scope="module")
def training(notes: list[dict[str, object]], listening: Path) -> list[dict[str, Any]]:
    """Return the notes of the hooks in training; the second command, of a finished run, adds none."""
    return [json.loads(line) for line in listening.with_name("training.jsonl").read_text().splitlines()]


def test_hook_textseg_fit_started(training: list[dict[str, Any]]) -> None:
    assert training[0]["hook"] == "fit_started"
    assert (training[0]["epochs"], training[0]["step"], training[0]["best"]) == (1, 0, 0)
    assert training[0]["steps"] > 0


def test_hook_textseg_epoch_finished(training: list[dict[str, Any]]) -> None:
    epoch = training[1]
    assert (epoch["hook"], epoch["number"], epoch["best"], epoch["saved"]) == ("epoch_finished", 1, True, True)
    assert epoch["scores"]["dsc"] == epoch["validation_dsc"]
    assert {"train_loss", "learning_rate"} < epoch.keys()


def test_hook_textseg_fit_finished(training: list[dict[str, Any]]) -> None:
    assert training[2] == {"hook": "fit_finished", "step": training[0]["steps"], "history": 1, "best": 1}


def test_hook_textseg_evaluated(training: list[dict[str, Any]]) -> None:
    assert (training[3]["hook"], training[3]["report"]) == ("evaluated", True)
    assert "dsc" in training[3]["metrics"]
    assert len(training) == 4


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
