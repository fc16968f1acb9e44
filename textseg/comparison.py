"""Runs side by side: a leaderboard of what may be compared, and a refusal of what may not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

from textseg.errors import RunError
from textseg.files import write_atomically
from textseg.metrics import POLICY
from textseg.reporting import format_value, markdown_table, metric_title, text_table
from textseg.run_folder import RunFolder
from textseg.scores import Mean, Score, Summary, csv_text, read_scores, summarise

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


@dataclass(frozen=True)
class _Run:
    folder: Path
    facts: Mapping[str, Any]  # run.json
    scores: Sequence[Score]

    @property
    def label(self) -> str:
        fold = self.facts.get("fold")
        details = f"seed {self.facts.get('seed')}" + ("" if fold is None else f", fold {fold}")
        return f"{self.facts.get('name', self.folder.name)} ({details})"

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(sorted({row.prompt_source for row in self.scores}))

    @property
    def oracle(self) -> bool:
        return "ground_truth" in self.sources or self.value("evaluation", "prompts") == "ground_truth"

    def value(self, *keys: str) -> Any:
        """What run.json says under `keys`, or None."""
        found: Any = self.facts
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return sorted(found) if keys[-1] == "metrics" and isinstance(found, list) else found

    def found(self) -> set[tuple[str, int | None, str]]:
        return {row.place for row in self.scores if row.status == "ok"}


@dataclass(frozen=True)
class _Row:
    """A run in a table: means over all that it found, and over what every run of its table found."""

    run: _Run
    label: str
    means: Mapping[str, Mean]
    common: Mapping[str, Mean]


@dataclass(frozen=True)
class _Table:
    title: str
    rows: Sequence[_Row]
    ranked: bool
    common_pairs: int
    all_pairs: int


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
        _table(title, [run for run in loaded if run.oracle != ranked], structures, ranked=ranked)
        for title, ranked in (("Leaderboard", True), ("Oracle runs (prompts from the ground truth), not ranked", False))
        if any(run.oracle != ranked for run in loaded)
    ]
    if output is not None:
        write_atomically(output / "leaderboard.csv", _as_csv(tables))
        write_atomically(output / "leaderboard.md", "\n".join(_as_markdown(table, structures) for table in tables))
    return "\n".join(_as_text(table, structures) for table in tables)


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


def _read(folder: Path) -> _Run:
    path = RunFolder(folder).record
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
    scores = read_scores(RunFolder(folder).scores)
    if not scores:
        raise RunError(f"'{RunFolder(folder).scores}' holds no score: evaluate with `textseg evaluate {folder}`.")
    return _Run(folder, facts, scores)


def _check_comparable(runs: Sequence[_Run]) -> None:
    first = runs[0]
    cases = {row.case for row in first.scores}
    lines = []
    for run in runs[1:]:
        for keys in _SAME:
            ours, theirs = first.value(*keys), run.value(*keys)
            if ours != theirs or ours is None:  # what both leave unsaid is not known to be equal
                lines.append(f"{'.'.join(keys)}: {first.folder} has {_said(ours)}, {run.folder} has {_said(theirs)}")
        other = {row.case for row in run.scores}
        if other != cases:
            lines.append(
                f"cases in scores.csv: {first.folder} has {len(cases)}, {run.folder} has {len(other)}; "
                f"only in one of them: {_said(sorted(cases ^ other)[:5])}"
            )
    if lines:
        raise RunError(
            "These runs can't be compared, because their scores do not mean the same:\n  "
            + "\n  ".join(lines)
            + "\nCompare runs of the same data, split and preparation; where `evaluation` differs, evaluate again with "
            "equal settings (`textseg evaluate RUN`)."
        )


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "nothing" if value is None else f"'{value}'"


def _structures_in_training(runs: Sequence[_Run]) -> list[str]:
    trained = [list(run.value("structures_in_training") or ()) for run in runs]
    common = [name for name in trained[0] if all(name in names for names in trained[1:])]
    if not common:
        listed = "\n  ".join(f"{run.folder}: {_said(names)}" for run, names in zip(runs, trained, strict=True))
        raise RunError(f"No structure occurs in the training data of all these runs (run.json):\n  {listed}")
    return common


def _table(title: str, runs: Sequence[_Run], structures: Sequence[str], *, ranked: bool) -> _Table:
    wanted = set(structures)
    found: set[tuple[str, int | None, str]] = reduce(set.intersection, (run.found() for run in runs))
    common = {place for place in found if place[2] in wanted}
    shown = {
        row.place for run in runs for row in run.scores if row.structure in wanted and row.status in ("ok", "missed")
    }
    labels = [run.label for run in runs]
    rows = []
    for run, label in zip(runs, labels, strict=True):
        every = _summary(run, run.scores, structures)
        both = _summary(run, [row for row in run.scores if row.place in common], structures)
        unique = label if labels.count(label) == 1 else f"{label} [{run.folder}]"
        rows.append(_Row(run, unique, every.overall, both.overall))
    rows.sort(key=lambda row: -_or_worst(row.means.get("dsc")))
    return _Table(title, rows, ranked, len(common), len(shown))


def _summary(run: _Run, scores: Sequence[Score], structures: Sequence[str]) -> Summary:
    try:
        return summarise(scores, structures=structures)
    except RunError as error:
        raise RunError(f"Run '{run.folder}': {error}") from None


def _or_worst(mean: Mean | None) -> float:
    return -math.inf if mean is None or math.isnan(mean.value) else mean.value


def _columns(table: _Table) -> Iterator[tuple[str, str, bool]]:
    """Metric, unit, and whether over the common places only: distances of these stand beside those of all."""
    for metric, mean in table.rows[0].means.items():
        yield metric, mean.unit, False
        if mean.unit:
            yield metric, mean.unit, True


def _value(row: _Row, metric: str, *, common: bool) -> float:
    mean = (row.common if common else row.means).get(metric)
    return math.nan if mean is None else mean.value


def _cells(table: _Table) -> tuple[list[str], list[list[str]]]:
    columns = list(_columns(table))
    header = ["run", *(metric_title(m, unit) + (" common" if common else "") for m, unit, common in columns)]
    header += ["missed", "spurious", "prompts", "M parameters", "ms per slice"]
    rows = []
    for row in table.rows:
        cells = [row.label, *(format_value(_value(row, m, common=common), unit) for m, unit, common in columns)]
        cells += [str(n) for n in _counts(row)]
        cells.append("+".join(row.run.sources).replace("_", " "))
        parameters, speed = row.run.value("parameters"), row.run.value("milliseconds_per_slice")
        cells.append("–" if parameters is None else f"{parameters / 1e6:.2f}")
        cells.append("–" if speed is None else f"{speed:.1f}")
        rows.append(cells)
    return header, rows


def _counts(row: _Row) -> tuple[int, int]:
    first = next(iter(row.means.values()))
    return first.missed, first.spurious


def _notes(table: _Table, structures: Sequence[str]) -> list[str]:
    run = table.rows[0].run
    per, space, unit = (run.value("evaluation", key) for key in ("per", "space", "unit"))
    means = (
        f"Means over the {len(structures)} structures that occur in the training data of every run; "
        f"{len({row.patient for row in run.scores})} test patients; scores per {per} in {space} space; "
        f"distances in {unit}."
    )
    common = (
        f"common: over the {table.common_pairs} of {table.all_pairs} structures in their cases that every run of this "
        "table found."
    )
    warning = _rank_warning(table) if table.ranked else ""
    return [*filter(None, [warning]), means, common, POLICY]


def _rank_warning(table: _Table) -> str:
    """One line that names the runs whose order by a distance depends on what the others missed; empty if none does."""
    changes = []
    for metric in (metric for metric, _, common in _columns(table) if common):
        swapped = [
            row
            for pair in combinations(table.rows, 2)
            for row in pair
            if (_value(pair[0], metric, common=False) - _value(pair[1], metric, common=False))
            * (_value(pair[0], metric, common=True) - _value(pair[1], metric, common=True))
            < 0
        ]
        if swapped:
            names = dict.fromkeys(row.label for row in sorted(swapped, key=lambda r: _value(r, metric, common=False)))
            changes.append(f"by {metric_title(metric)} between {', '.join(names)}")
    if not changes:
        return ""
    return (
        f"Warning: the ranking changes {' and '.join(changes)} when only what every run found is counted: "
        "a mean distance leaves out what its run missed."
    )


def _as_text(table: _Table, structures: Sequence[str]) -> str:
    return f"{table.title}\n\n{text_table(*_cells(table))}\n" + "\n".join(_notes(table, structures)) + "\n"


def _as_markdown(table: _Table, structures: Sequence[str]) -> str:
    header, rows = _cells(table)
    if table.ranked:
        for position, (metric, unit, common) in enumerate(_columns(table), start=1):
            values = [_value(row, metric, common=common) for row in table.rows]
            known = [value for value in values if not math.isnan(value)]
            best = format_value((min if unit else max)(known, default=math.nan), unit)
            for cells in rows:  # as printed: a difference that can't be seen is no victory
                if cells[position] == best != "–":
                    cells[position] = f"**{best}**"
    notes = "\n".join(f"- {note}" for note in _notes(table, structures))
    return f"## {table.title}\n\n{markdown_table(header, rows)}\n{notes}\n"


def _as_csv(tables: Sequence[_Table]) -> str:
    columns = list(_columns(tables[0]))
    header = ["table", "rank", "run", "seed", "fold", "folder", "prompts"]
    header += ["_".join(filter(None, (m, unit, "common" if common else ""))) for m, unit, common in columns]
    header += ["missed", "spurious", "parameters", "milliseconds_per_slice", "per", "space", "test_patients"]
    lines = []
    for table in tables:
        for rank, row in enumerate(table.rows, start=1):
            run = row.run
            line: list[object] = ["ranked" if table.ranked else "oracle", rank if table.ranked else ""]
            line += [run.value("name"), run.value("seed"), run.value("fold"), run.folder, "+".join(run.sources)]
            line += [_value(row, m, common=common) for m, _, common in columns]
            line += [*_counts(row), run.value("parameters"), run.value("milliseconds_per_slice")]
            line += [run.value("evaluation", "per"), run.value("evaluation", "space")]
            lines.append([*line, len({score.patient for score in run.scores})])
    return csv_text(header, lines)
