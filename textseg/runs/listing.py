"""The list of runs with their states and results, read from their folders, without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from textseg.errors import RunError, one_line
from textseg.runs.folder import RunFolder
from textseg.system import yaml_text

HEADER = ("name", "seed", "fold", "state", "epoch", "validation DSC", "test", "prompts")
State = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class ListedRun:
    """A run folder in the list; None for facts that it does not hold yet."""

    folder: str  # relative to the listed folder
    name: str
    seed: int
    fold: int | None
    state: State
    epoch: int  # finished ones
    epochs: int | None
    best: float | None  # validation DSC
    test: dict[str, float | None]  # metric -> mean over structures
    prompts: str | None  # at the test
    failure: str | None  # why it failed


def list_runs(folder: Path) -> list[ListedRun]:
    """Return every run below a folder, sorted by name, seed and fold; raises RunError if the folder does not exist.

    Runs that `--fresh` moved aside, and evaluations with prompts of other sources, are left out.
    """
    if not folder.is_dir():
        raise RunError(f"There is no folder '{folder}'. Name the one that holds the run folders: textseg runs FOLDER")
    runs = [_row(run, folder) for run in _runs_below(folder)]
    return sorted(runs, key=lambda run: (run.name, run.seed, -1 if run.fold is None else run.fold, run.folder))


def _runs_below(folder: Path) -> Iterator[RunFolder]:
    """Yield the runs among the folder itself and the two levels below it."""
    levels = [[folder], sorted(folder.iterdir()), sorted(folder.glob("*/*"))]
    for path in (path for level in levels for path in level):
        run = RunFolder(path)
        named = path == folder or (run.is_repeat and path.is_dir())
        if named and (not os.access(path, os.R_OK | os.X_OK) or run.recipe.exists()):
            yield run


def _row(run: RunFolder, below: Path) -> ListedRun:
    try:
        return _listed(run, below)
    except Exception as error:  # whatever has become of its files: the other runs are listed
        folder, failure = str(run.path.relative_to(below)), one_line(error, "it can't be read")
        return ListedRun(folder, run.path.parent.name, 0, None, "failed", 0, None, None, {}, None, failure)


def _listed(run: RunFolder, below: Path) -> ListedRun:
    try:
        record = run.read()
    except RunError as error:
        record = {"failure": str(error)}
    recipe = _recipe(run)
    history = run.read_history()
    validated = [float(row["validation_dsc"]) for row in history if row.get("validation_dsc")]
    state = _state(run, record)
    fold = record.get("fold", (recipe.get("split") or {}).get("fold"))
    test = record.get("test", {}) if state == "finished" else {}
    return ListedRun(
        folder=str(run.path.relative_to(below)),
        name=str(record.get("name", recipe.get("name", run.path.parent.name))),
        seed=int(record.get("seed", recipe.get("seed", 0))),
        fold=None if fold is None else int(fold),
        state=state,
        epoch=int(history[-1]["epoch"]) if history else 0,
        epochs=(recipe.get("training") or {}).get("epochs"),
        best=max(validated, default=None),
        test={metric: None if mean is None else float(mean) for metric, mean in test.items()},
        prompts=(record.get("evaluation") or {}).get("prompts"),
        failure=record.get("failure") if state == "failed" else None,
    )


def _state(run: RunFolder, record: Mapping[str, Any]) -> State:
    if run.in_use:
        return "running"
    if record.get("failure"):
        return "failed"
    return "finished" if run.report.exists() and run.scores.exists() else "interrupted"


def _recipe(run: RunFolder) -> dict[str, Any]:
    try:
        recipe, _ = yaml_text.parse(run.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def cells(run: ListedRun) -> tuple[str, ...]:
    """Return the row of a run in the table with the columns of `HEADER`."""
    metric, value = next(iter(run.test.items()), ("", None))
    return (
        run.name,
        str(run.seed),
        "" if run.fold is None else str(run.fold),
        run.state,
        f"{run.epoch} of {run.epochs}" if run.epochs else str(run.epoch),
        "" if run.best is None else f"{run.best:.4f}",
        f"{metric} {value:.4f}" if value is not None else "",
        run.prompts or "",
    )
