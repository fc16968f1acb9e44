"""The comparability of runs: the keys of run.json that must be equal, and the differences between runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textseg.comparison.finished_runs import FinishedRuns, readable

_SAME = (
    ("dataset",),
    ("hashes", "data"),
    ("hashes", "preparation"),
    ("evaluation", "per"),
    ("evaluation", "space"),
    ("evaluation", "unit"),
    ("evaluation", "metrics"),
)
_TOLERANCE = (("evaluation", "tolerance"),)


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
        for keys in _SAME + _TOLERANCE * ("nsd" in {row.metric for row in run.scores}):
            ours, theirs = first.value(*keys), run.value(*keys)
            if ours != theirs or ours is None:  # a value that both lack is not known to be equal
                key = ".".join(keys)
                line = f"{key}: {first.folder} has {readable(ours)}, {run.folder} has {readable(theirs)}"
                differences.append(Mismatch(key, readable(ours), readable(theirs), line))
    for finished in compared:
        differences += _splits(compared[0], finished)
        differences += _cases(compared[0], finished)
    return differences


def _splits(ours: FinishedRuns, theirs: FinishedRuns) -> list[Mismatch]:
    """Return differences in the split: seeds must share it; folds are compared one by one."""
    differences = []
    first = {run.facts.get("fold"): run for run in reversed(ours.runs)}
    for run in theirs.runs:
        fold = run.facts.get("fold")
        key = "hashes.split" + ("" if fold is None else f" of fold {fold}")
        match = first.get(fold, ours.first)
        expected, actual = match.value("hashes", "split"), run.value("hashes", "split")
        if run is not match and (expected != actual or expected is None):
            line = f"{key}: {match.folder} has {readable(expected)}, {run.folder} has {readable(actual)}"
            differences.append(Mismatch(key, readable(expected), readable(actual), line))
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
