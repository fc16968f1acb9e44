from __future__ import annotations

from pathlib import Path

from textseg.comparison.comparability import mismatches
from textseg.comparison.finished_runs import FinishedRuns, Run
from textseg.metrics.scores import Score

EVALUATION = {"per": "volume", "space": "native", "unit": "mm", "metrics": ["dsc"]}


def run(name, *, seed=1, fold=None, split="s", case="c", **facts):
    known = {"name": name, "seed": seed, "fold": fold, "dataset": "phantom", "evaluation": EVALUATION,
             "hashes": {"data": "d", "preparation": "p", "split": split}}  # fmt: skip
    score = Score(case, "p", None, "L5", "dsc", "", "native", 0.5, 0.0, "ok", "none")
    return Run(Path(f"{name}/{seed}/{fold}"), {**known, **facts}, [score])


def keys(*rows):
    return [mismatch.key for mismatch in mismatches([FinishedRuns(tuple(runs)) for runs in rows])]


def test_runs_that_agree():
    assert keys([run("a")]) == []
    assert keys([run("a"), run("a", seed=2)], [run("b")]) == []
    assert keys([run("a", split=None)]) == []  # with itself


def test_folds_are_compared_one_by_one():
    def folds(name, *splits):
        return [run(name, fold=fold, split=split, case=f"c{fold}") for fold, split in enumerate(splits)]

    assert keys(folds("a", "s0", "s1"), folds("b", "s0", "s1")) == []
    assert keys(folds("a", "s0", "s1"), folds("b", "s0", "other")) == ["hashes.split of fold 1"]
    assert keys(folds("a", "s0", "s1"), folds("b", "s0")) == ["cases"]
    assert keys(folds("a", "s0", "s1"), [run("b", case="c0")]) == ["hashes.split", "cases"]


def test_seeds_must_share_the_split():
    assert keys([run("a"), run("a", seed=2, split="other")]) == ["hashes.split"]
    assert keys([run("x")], [run("a"), run("a", seed=2, split="other")]) == ["hashes.split"]


def test_every_repeat_is_compared_and_said():
    second = run("b", seed=2, evaluation={**EVALUATION, "per": "slice"})
    (mismatch,) = mismatches([FinishedRuns((run("a"),)), FinishedRuns((run("b"), second))])
    assert (mismatch.key, mismatch.first, mismatch.second) == ("evaluation.per", "'volume'", "'slice'")
    assert mismatch.line == "evaluation.per: a/1/None has 'volume', b/2/None has 'slice'"
