"""The comparability of runs: the keys of run.json that must be equal, and the differences between runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textseg.comparison.finished_runs import FinishedRuns, Run, difference, readable

_PROTOCOL = ("evaluation.per", "evaluation.space", "evaluation.unit", "evaluation.metrics")
_SAME = ("dataset", "hashes.data", "hashes.preparation", *_PROTOCOL)


@dataclass(frozen=True)
class Mismatch:
    """A key whose values differ between a run and the first run, or that neither of them has."""

    key: str
    first: str
    second: str
    line: str  # the whole difference as text


def mismatches(compared: Sequence[FinishedRuns]) -> list[Mismatch]:
    """Return each difference from the first run that makes scores incomparable; empty if all runs may be compared."""
    first, *others = (run for finished in compared for run in finished.runs)
    differences = []
    for run in others:
        for key in _SAME:
            differences += _differing(key, first, run)
        differences += _metrics(first, run)
    for finished in compared:
        differences += _splits(compared[0], finished)
        differences += _cases(compared[0], finished)
    return differences


def _differing(
    name: str, first: Run, second: Run, key: str | None = None, *, unknown_is_equal: bool = False
) -> list[Mismatch]:
    """Return the difference in `key` of run.json, which is called `name`, if there is one."""
    ours, theirs = (run.value(*(key or name).split(".")) for run in (first, second))
    if ours == theirs and (ours is not None or unknown_is_equal):  # what both lack is not known to be equal
        return []
    return [Mismatch(name, readable(ours), readable(theirs), difference(name, first, ours, second, theirs))]


def _metrics(first: Run, second: Run) -> list[Mismatch]:
    """Return each metric of both runs that is not the same one: another plug-in brought it, or defined it otherwise."""
    metrics = [{row.metric: None for row in run.scores} for run in (first, second)]
    return [
        mismatch
        for name in metrics[0]
        if name in metrics[1]
        for part in ("distribution", "higher_is_better", "missed")
        if first.value("metrics", name) and second.value("metrics", name)
        for mismatch in _differing(f"metrics.{name}.{part}", first, second, unknown_is_equal=True)
    ]


def _splits(ours: FinishedRuns, theirs: FinishedRuns) -> list[Mismatch]:
    """Return differences in the split: seeds must share it; folds are compared one by one."""
    differences = []
    first = {run.facts.get("fold"): run for run in reversed(ours.runs)}
    for run in theirs.runs:
        fold = run.facts.get("fold")
        match = first.get(fold, ours.first)
        if run is not match:
            name = "hashes.split" + ("" if fold is None else f" of fold {fold}")
            differences += _differing(name, match, run, key="hashes.split")
    return differences


def _cases(ours: FinishedRuns, theirs: FinishedRuns) -> list[Mismatch]:
    own_cases, their_cases = ({row.case for run in finished.runs for row in run.scores} for finished in (ours, theirs))
    if own_cases == their_cases:
        return []
    line = (
        f"cases in scores.csv: {ours.first.folder} has {len(own_cases)}, {theirs.first.folder} has {len(their_cases)}; "
        f"only in one of them: {readable(sorted(own_cases ^ their_cases)[:5])}"
    )
    return [Mismatch("cases", str(len(own_cases)), str(len(their_cases)), line)]
