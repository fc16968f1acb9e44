"""Whether scores of different runs mean the same: what they must have in common, and what differs, key by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textseg.comparison.finished_runs import Repeats, said

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
    """A key in which two runs differ, or that neither of them says; `other` differs from `one`, the first of all."""

    key: str
    one: str
    other: str
    line: str  # all of it, to read


def mismatches(compared: Sequence[Repeats]) -> list[Mismatch]:
    """What makes the scores of runs another thing than those of the first; empty where they may be compared."""
    first, *others = (run for repeats in compared for run in repeats.runs)
    found = []
    for run in others:
        for keys in _SAME + _TOLERANCE * ("nsd" in {row.metric for row in run.scores}):
            ours, theirs = first.value(*keys), run.value(*keys)
            if ours != theirs or ours is None:  # what both leave unsaid is not known to be equal
                key = ".".join(keys)
                line = f"{key}: {first.folder} has {said(ours)}, {run.folder} has {said(theirs)}"
                found.append(Mismatch(key, said(ours), said(theirs), line))
    for repeats in compared:
        found += _splits(compared[0], repeats)
        found += _cases(compared[0], repeats)
    return found


def _splits(ours: Repeats, theirs: Repeats) -> list[Mismatch]:
    """Seeds must share the split; folds are compared one by one."""
    found = []
    first = {run.facts.get("fold"): run for run in reversed(ours.runs)}
    for run in theirs.runs:
        fold = run.facts.get("fold")
        key = "hashes.split" + ("" if fold is None else f" of fold {fold}")
        match = first.get(fold, ours.first)
        one, other = match.value("hashes", "split"), run.value("hashes", "split")
        if run is not match and (one != other or one is None):
            line = f"{key}: {match.folder} has {said(one)}, {run.folder} has {said(other)}"
            found.append(Mismatch(key, said(one), said(other), line))
    return found


def _cases(ours: Repeats, theirs: Repeats) -> list[Mismatch]:
    one, other = ({row.case for run in repeats.runs for row in run.scores} for repeats in (ours, theirs))
    if one == other:
        return []
    line = (
        f"cases in scores.csv: {ours.first.folder} has {len(one)}, {theirs.first.folder} has {len(other)}; "
        f"only in one of them: {said(sorted(one ^ other)[:5])}"
    )
    return [Mismatch("cases", str(len(one)), str(len(other)), line)]
