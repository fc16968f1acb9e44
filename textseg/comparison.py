"""Runs side by side: a leaderboard of what may be compared, and a refusal of what may not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textseg.errors import RunError
from textseg.files import write_atomically
from textseg.leaderboard import Run, as_csv, as_markdown, as_text, make_table
from textseg.run_folder import RunFolder
from textseg.scores import read_scores

_SAME = (
    ("dataset",),
    ("hashes", "data"),
    ("hashes", "split"),
    ("hashes", "preparation"),
    ("evaluation", "per"),
    ("evaluation", "space"),
    ("evaluation", "unit"),
    ("evaluation", "metrics"),
)
_TOLERANCE = (("evaluation", "tolerance"),)


def compare(runs: Sequence[Path], *, output: Path | None = None) -> str:
    """The leaderboard of runs, as text for a terminal; with `output`, also leaderboard.csv and leaderboard.md there.

    A run is `runs/<name>/seed<seed>`, or `runs/<name>` for all its seeds. Means are macro means over the structures
    that occur in the training data of every run. Runs with prompts from the ground truth (oracles) stand in a table of
    their own. Raises RunError where a run is missing, or where the runs differ in what makes scores comparable.
    """
    loaded = [_read(folder) for folder in _folders(runs)]
    _check_comparable(loaded)
    structures = _structures_in_training(loaded)
    tables = [
        make_table(title, [run for run in loaded if run.oracle != ranked], structures, ranked=ranked)
        for title, ranked in (("Leaderboard", True), ("Oracle runs (prompts from the ground truth), not ranked", False))
        if any(run.oracle != ranked for run in loaded)
    ]
    if output is not None:
        write_atomically(output / "leaderboard.csv", as_csv(tables))
        write_atomically(output / "leaderboard.md", "\n".join(as_markdown(table, structures) for table in tables))
    return "\n".join(as_text(table, structures) for table in tables)


def comparable(runs: Sequence[Path]) -> list[list[Path]]:
    """Run folders in groups that may be compared, each in the order given; raises RunError as `compare` does."""
    groups: list[list[Run]] = []
    for run in map(_read, runs):
        group = next((group for group in groups if not _differences(group[0], run)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return [[run.folder for run in group] for group in groups]


def _folders(runs: Sequence[Path]) -> list[Path]:
    folders: dict[Path, Path] = {}
    for run in runs:
        if RunFolder(run).record.is_file() or RunFolder(run).scores.is_file():
            found = [run]
        else:
            found = [folder.path for folder in RunFolder.repeats(run)]
        if not found:
            raise RunError(
                f"There is no run at '{run}': neither a run.json nor a folder seed<number> stands there. "
                "Name a folder runs/<name>/seed<seed> or runs/<name>, or start the run with `textseg run RECIPE`."
            )
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    if not folders:
        raise RunError("There is nothing to compare: name at least one folder runs/<name>/seed<seed> or runs/<name>.")
    return list(folders.values())


def _read(folder: Path) -> Run:
    here = RunFolder(folder)
    path = here.record
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"The run '{folder}' has no run.json: it has not finished. Start its recipe again with "
            "`textseg run RECIPE` (it resumes by itself), or name the finished runs one by one."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"'{path}' is damaged ({error}): evaluate with `textseg evaluate {folder}`.") from None
    if not isinstance(facts, dict):
        raise RunError(f"'{path}' must hold an object, and it holds a {type(facts).__name__}.")
    scores = read_scores(here.scores)
    if not scores:
        raise RunError(f"'{here.scores}' holds no score: evaluate with `textseg evaluate {folder}`.")
    if here.trained_in.read().get("scored_step", facts.get("scored_step")) != facts.get("scored_step"):
        raise RunError(
            f"'{folder}' scores an earlier checkpoint: '{here.trained_in.path}' was trained on since. Evaluate again: "
            f"textseg evaluate {here.trained_in.path} --prompts {folder.name}"
        )
    return Run(folder, facts, scores)


def _check_comparable(runs: Sequence[Run]) -> None:
    lines = [line for run in runs[1:] for line in _differences(runs[0], run)]
    if lines:
        raise RunError(
            "These runs can't be compared, because their scores do not mean the same:\n  "
            + "\n  ".join(lines)
            + "\nCompare runs of the same data, split and preparation; where `evaluation` differs, evaluate again with "
            "equal settings (`textseg evaluate RUN`)."
        )


def _differences(first: Run, run: Run) -> list[str]:
    """Why the scores of two runs do not mean the same, key by key."""
    lines = []
    for keys in _SAME + _TOLERANCE * ("nsd" in {row.metric for row in run.scores}):
        ours, theirs = first.value(*keys), run.value(*keys)
        if ours != theirs or ours is None:  # what both leave unsaid is not known to be equal
            lines.append(f"{'.'.join(keys)}: {first.folder} has {_said(ours)}, {run.folder} has {_said(theirs)}")
    cases, other = ({row.case for row in one.scores} for one in (first, run))
    if other != cases:
        lines.append(
            f"cases in scores.csv: {first.folder} has {len(cases)}, {run.folder} has {len(other)}; "
            f"only in one of them: {_said(sorted(cases ^ other)[:5])}"
        )
    return lines


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "nothing" if value is None else f"'{value}'"


def _structures_in_training(runs: Sequence[Run]) -> list[str]:
    trained = [list(run.value("structures_in_training") or ()) for run in runs]
    common = [name for name in trained[0] if all(name in names for names in trained[1:])]
    if not common:
        listed = "\n  ".join(f"{run.folder}: {_said(names)}" for run, names in zip(runs, trained, strict=True))
        raise RunError(f"No structure occurs in the training data of all these runs (run.json):\n  {listed}")
    return common
