"""Finished runs read from disk, and grouped by recipe: each group is a row of a leaderboard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from textseg.errors import RunError, TextsegError
from textseg.metrics.named import MetricFacts, metric_named
from textseg.metrics.scores import Mark, Score, read_scores
from textseg.metrics.window_scores import WindowScore, read_window_scores
from textseg.runs.folder import RunFolder, flat
from textseg.system import yaml_text
from textseg.system.commands import evaluate
from textseg.system.own_files import damaged

ORACLE, SIMULATED, PERSON, REPORT = "ground_truth", "simulated", "interactive", "report"
# The keys that may differ between runs of a group. `split` contains the fold; comparability.py compares the rest of it.
_FREE = ("seed", "split")


@dataclass(frozen=True)
class Run:
    """A run that was read from its folder: the content of run.json and its scores."""

    folder: Path
    facts: Mapping[str, Any]  # run.json
    scores: Sequence[Score]
    declared: frozenset[str] = frozenset()  # sources of prompts that its other files name
    windows: Sequence[WindowScore] = ()  # none if the evaluation had no fields of view

    @property
    def name(self) -> str:
        """Return the name of the recipe, or of the tool that made the masks."""
        return str(self.facts.get("name", self.folder.name))

    @property
    def repeat(self) -> str:
        """Return seed and fold as text; empty for masks of another tool."""
        if self.facts.get("predictions"):
            return ""
        fold = self.facts.get("fold")
        return f"seed {self.facts.get('seed')}" + ("" if fold is None else f", fold {fold}")

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the prompt sources of the scores."""
        return tuple(sorted({row.prompt_source for row in self.scores}))

    @property
    def mark(self) -> Mark:
        """Return "oracle", "simulated" or "report" if any file of its folder says where its prompts came from.

        "oracle" prompts came from the annotation. "simulated" prompts replace a person: they name the first and the
        last structure in the annotation of each volume. "report" prompts came with the cases, and it is not known what
        their author had seen. An `interactive` run counts as simulated unless run.json contains the structures that a
        person named.
        """
        sources = {*self.sources, *self.declared, self.value("evaluation", "prompts"), self.folder.resolve().name}
        if ORACLE in sources:
            return "oracle"
        if SIMULATED in sources or (PERSON in sources and not self.facts.get("named")):
            return "simulated"
        return "report" if REPORT in sources else ""

    def value(self, *keys: str) -> Any:
        """Return the value of run.json under nested `keys`, or None."""
        value: Any = self.facts
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return sorted(value, key=str) if keys[-1] == "metrics" and isinstance(value, list) else value

    def metric(self, name: str) -> MetricFacts:
        """Return the facts about a metric from run.json, or else from an installed metric of that name.

        Raises RunError if they are damaged, or if nobody knows the metric.
        """
        again = f"Evaluate the run again: {evaluate(self.folder)}"
        recorded = self.value("metrics", name)
        if recorded is not None:
            try:
                facts: MetricFacts = TypeAdapter(MetricFacts).validate_python(recorded)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                reason = ": ".join((*map(str, first["loc"]), first["msg"]))
                raise damaged(RunFolder(self.folder).record, f"metrics: {name}: {reason}", again) from None
            return facts
        unit = next((row.unit for row in self.scores if row.metric == name), "")
        try:
            return metric_named(name).facts(unit)
        except TextsegError:
            raise RunError(
                f"'{self.folder}': its run.json does not say if a high or a low '{name}' is better, and no metric of "
                f"that name is installed. {again}"
            ) from None


@dataclass(frozen=True)
class FinishedRuns:
    """The finished runs of one recipe, which differ only in seed and fold; often there is a single run."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Return the first run, whose run.json gives the values that all runs share."""
        return self.runs[0]

    @property
    def seeds(self) -> list[Any]:
        """Return each seed once."""
        return list(dict.fromkeys(run.facts.get("seed") for run in self.runs))

    @property
    def folds(self) -> list[Any]:
        """Return each fold once; [None] without folds."""
        return list(dict.fromkeys(run.facts.get("fold") for run in self.runs))

    @property
    def description(self) -> str:
        """Return the seeds and folds as text: "seed 1", "3 seeds", "2 seeds x 5 folds"."""
        if len(self.runs) == 1:
            return self.first.repeat
        parts = [f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else f"seed {self.seeds[0]}"]
        if self.folds != [None]:
            parts.append(f"{len(self.folds)} folds" if len(self.folds) > 1 else f"fold {self.folds[0]}")
        return " x ".join(parts) if len(self.seeds) > 1 else ", ".join(parts)

    @property
    def label(self) -> str:
        """Return the name with seeds and folds."""
        return f"{self.first.name} ({self.description})" if self.description else self.first.name

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the prompt sources of all runs."""
        return tuple(sorted({source for run in self.runs for source in run.sources}))

    @property
    def mark(self) -> Mark:
        """Return the mark of any run: "oracle" before "simulated" before "report"."""
        marks = {run.mark for run in self.runs}
        order: tuple[Mark, ...] = ("oracle", "simulated", "report")
        return next((mark for mark in order if mark in marks), "")

    @property
    def windows(self) -> list[WindowScore]:
        """The scores in windows of all runs; none unless every run has windows of the same shares."""
        shares = {frozenset(row.share for row in run.windows) for run in self.runs}
        return [row for run in self.runs for row in run.windows] if len(shares) == 1 else []

    @property
    def trained_on(self) -> list[str]:
        """The structures that occur in the training data of every run."""
        shown = [list(run.value("structures_in_training") or ()) for run in self.runs]
        return [name for name in shown[0] if all(name in names for names in shown)]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs `runs/<name>/seed<seed>`, or all runs of `runs/<name>`, with the further evaluations of each.

    Raises RunError for missing or damaged runs.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if RunFolder(path).record.is_file() or RunFolder(path).scores.is_file():
            members = [path]
        else:
            members = [folder.path for folder in RunFolder.repeats(path)]
        if not members:
            raise RunError(
                f"There is no run at '{path}': it contains neither a run.json nor a folder seed<number>. "
                "Name a folder runs/<name>/seed<seed> or runs/<name>, or start the run with `textseg run RECIPE`."
            )
        for folder in members:
            folders.setdefault(folder.resolve(), folder)
            for further in _further_evaluations(folder):
                folders.setdefault(further.resolve(), further)
    if not folders:
        raise RunError("There is nothing to compare: name at least one folder runs/<name>/seed<seed> or runs/<name>.")
    runs, wrong = [], []
    for folder in folders.values():
        try:
            runs.append(_read(folder))
        except TextsegError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:  # report all mistakes at once
        raise RunError("\n".join(map(str, wrong)))
    return runs


def _further_evaluations(folder: Path) -> list[Path]:
    """Return the folders of the further evaluations of a run; none if run.json is unreadable."""
    try:
        named = RunFolder(folder).read().get("further_evaluations", {})
    except TextsegError:  # `_read` reports it
        return []
    return [] if folder.parent.name == "evaluations" else [RunFolder(folder).evaluation(name).path for name in named]


def _read(folder: Path) -> Run:
    here = RunFolder(folder)
    if not here.record.exists():
        raise RunError(
            f"The run '{folder}' has no run.json: it has not finished. Start its recipe again with "
            "`textseg run RECIPE` (it resumes by itself), or name the finished runs one by one."
        )
    facts = here.read()
    scores = read_scores(here.scores)
    if not scores:
        raise RunError(f"'{here.scores}' holds no score. Make it again with: {evaluate(folder)}")
    trained = here.trained_in.read()
    if trained.get("scored_step", facts.get("scored_step")) != facts.get("scored_step"):
        raise RunError(
            f"'{folder}' scores an earlier checkpoint: '{here.trained_in.path}' was trained on since. Evaluate again: "
            f"{evaluate(folder)}"
        )
    # The probe belongs to the weights, so all evaluations of a run share it.
    facts["obedience"] = trained.get("obedience", facts.get("obedience"))
    windows = read_window_scores(here.fields_of_view) if here.fields_of_view.exists() else []
    return Run(folder, facts, scores, _declared(here), windows)


def _declared(folder: RunFolder) -> frozenset[str]:
    """Return the prompt source in recipe.yaml, and the source in prompts.jsonl if all its prompts have the same one.

    Users may have edited both files. A file that cannot be read declares nothing.
    """
    declared: set[str] = set()
    try:
        recipe, _ = yaml_text.parse(folder.recipe.read_text(encoding="utf-8"))
        declared.add(str(recipe["prompts"]["evaluation"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        lines = folder.prompts.read_text(encoding="utf-8").splitlines()
        sources = {str(json.loads(line)["source"]) for line in lines}
        declared |= sources if len(sources) == 1 else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return frozenset(declared)


def grouped(runs: Sequence[Run], *, apart: bool = False) -> list[FinishedRuns]:
    """Group runs of the same folder `runs/<name>` and the same prompt source; with `apart`, each run is a group.

    Raises RunError if the runs of a group do not belong together: if their recipes differ, a seed of a fold is missing
    or exists twice, or two folds test the same case.
    """
    groups: dict[object, list[Run]] = {}
    for run in runs:
        trained_in = RunFolder(run.folder.resolve()).trained_in
        key: object = run.folder.resolve()
        if not apart and trained_in.is_repeat and not run.facts.get("predictions"):
            key = (trained_in.path.parent, run.name, run.sources, run.mark)
        groups.setdefault(key, []).append(run)
    rows = [FinishedRuns(tuple(members)) for members in groups.values()]
    for finished in rows:
        _check_group(finished)
    return rows


def _check_group(finished: FinishedRuns) -> None:
    first = finished.first
    if lines := [line for run in finished.runs[1:] for line in _other_recipe(first, run)]:
        raise RunError(
            f"The runs of '{first.name}' are no repeats of one recipe:\n  " + "\n  ".join(lines) + "\nGive one of the "
            "recipes another name, or show each run by itself with --single-runs."
        )
    pairs = [(run.facts.get("seed"), run.facts.get("fold")) for run in finished.runs]
    lacking = [(seed, fold) for seed in finished.seeds for fold in finished.folds if (seed, fold) not in pairs]
    if lacking or len(set(pairs)) < len(pairs):
        twice = next((pair for pair in pairs if pairs.count(pair) > 1), None)
        seed, fold = twice or lacking[0]
        raise RunError(
            f"Of the runs of '{first.name}', seed {seed}{'' if fold is None else f' of fold {fold}'} is "
            f"{'there twice' if twice else 'missing'}: each patient must count equally often. Name runs that make "
            "whole repeats, or show each run by itself with --single-runs."
        )
    tested: dict[str, object] = {}
    for run in finished.runs:
        for case in {row.case for row in run.scores}:
            if tested.setdefault(case, run.facts.get("fold")) != run.facts.get("fold"):
                raise RunError(
                    f"Two folds of '{first.name}' test the case '{case}': {tested[case]} and {run.facts.get('fold')}. "
                    "They are of different splits; show each run by itself with --single-runs."
                )


def _other_recipe(first: Run, second: Run) -> list[str]:
    """Return a line for each key, other than seed and split, in which the recipes of two runs differ."""
    ours, theirs = (flat({key: run.facts.get(key) for key in ("bound", "dataset")}) for run in (first, second))
    free = {f"bound.{key}" for key in _FREE}
    keys = [key for key in sorted({*ours, *theirs} - free) if ours.get(key) != theirs.get(key)]
    return [difference(key.removeprefix("bound."), first, ours.get(key), second, theirs.get(key)) for key in keys]


def readable(value: Any) -> str:
    """Return a value of run.json as text."""
    return ", ".join(map(str, value)) if isinstance(value, list) else "nothing" if value is None else f"'{value}'"


def difference(key: str, first: Run, ours: Any, second: Run, theirs: Any) -> str:
    """Return the sentence that two runs differ in a key of run.json."""
    return f"{key}: {first.folder} has {readable(ours)}, {second.folder} has {readable(theirs)}"
