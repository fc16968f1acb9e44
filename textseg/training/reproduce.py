"""Repeat a run from its folder, and list the differences of settings, weights and scores."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from textseg.errors import RunError
from textseg.metrics.scores import Score, read_scores
from textseg.metrics.window_scores import WindowScore, read_window_scores
from textseg.recipe.loading import complete_settings, load_recipe
from textseg.recipe.schema import Recipe
from textseg.runs.folder import RunFolder, change_lines, changes, environment
from textseg.runs.identity import component_changes, weight_changes
from textseg.system.own_files import damaged
from textseg.training.run import prepared, run

# Keys of run.json on the origin of a run; the first ones are known before the first step.
KNOWN_BEFORE = ("versions", "git_commit", "core_source", "settings", "hashes")
RECORDED = (
    *KNOWN_BEFORE,
    "components",
    "hardware",
    "precision",
    "processes",
    "numerics",
    "metrics_kernel",
    "parameters",
)
CHECKPOINTS = ("last", "best")
Values = dict[tuple[object, ...], float]
_FOLDER = re.compile(r"recipe\.dataset\.folder|settings\.dataset .*\.folder")


def reproduce(
    source: Path,
    *,
    overrides: Sequence[str] = (),
    output: Path,
    fresh: bool = False,
    dry_run: bool = False,
    trust_code: bool = False,
    changed_code: bool = False,
) -> Path:
    """Repeat the run in a folder from its recipe.yaml, and print the differences; returns the new folder.

    An interrupted repeat resumes. The run.json of the repeat keeps the differences under `repeats`. Raises RunError for
    a folder without recipe.yaml, and for an `output` in which the repeat would be the run itself.
    """
    original = RunFolder.existing(source)
    if not original.recipe.exists():
        raise RunError(f"'{original.path}' holds no recipe.yaml, so nothing says how to repeat it. Name a run folder.")
    recipe, asked = (load_recipe(original.recipe, values, trust_code=trust_code) for values in ((), overrides))
    folder = RunFolder.of(asked, output)
    if folder.path.resolve() == original.path.resolve():
        raise RunError(f"The repeat would be written to '{folder.path}', the run itself. Choose another --output.")
    print(f"repeating '{original.path}' in '{folder.path}'")
    record, experiment = original.read(), prepared(asked, dry_run=dry_run)
    now = {**environment(), "hashes": experiment.hashes()}
    now["settings"] = complete_settings(asked, experiment.registry)
    before = differences(recipe, asked, {key: record.get(key) for key in KNOWN_BEFORE}, now)
    recorded = record.get("components") or {}
    facts = experiment.component_facts()
    components = [*component_changes(recorded, facts), *weight_changes(recorded, facts)]
    lines = [*change_lines(before), *(f"  {change}" for change in components)]
    same = "recipe, data, prompts, versions and code are the same"
    unknown = "" if recorded else "; run.json does not record the code of the components"
    print(*(lines or [f"{same}{unknown}"]), sep="\n")
    if dry_run:
        return folder.path
    del experiment
    run(
        original.recipe,
        overrides=overrides,
        output=output,
        fresh=fresh,
        trust_code=trust_code,
        changed_code=changed_code,
    )
    differs = differences(recipe, asked, {key: record.get(key) for key in RECORDED}, folder.read())
    differs |= changed_prompts(original, folder)
    weights, scores = compare_weights(original, folder), compare_scores(original, folder)
    path = str(original.path.resolve())
    repeats = {"run": path, "differs": differs, "weights": weights, "scores": scores}
    shown = {key: pair for key, pair in differs.items() if key not in before and not key.startswith("components.")}
    later = change_lines(shown)  # the changes of components are on the screen already
    lines = [f"  weights: {weights}", f"  test scores: {scores}"]
    if original.fields_of_view.exists():
        repeats["fields_of_view"] = compare_windows(original, folder)
        lines.append(f"  test scores in windows: {repeats['fields_of_view']}")
    folder.update(repeats=repeats)
    print(f"beside '{original.path}':", *later, *lines, sep="\n")
    return folder.path


def differences(
    recipe: Recipe, asked: Recipe, before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each key that differs, in the recipes and in the facts of `before`.

    Settings of components include their defaults, which another version may have changed. The folder of the data is
    left out, because their content has a hash.
    """
    original = {"recipe": recipe.model_dump(mode="json"), **before}
    repeat = {"recipe": asked.model_dump(mode="json"), **{key: now.get(key) for key in before}}
    return {key: pair for key, pair in changes(original, repeat).items() if not _FOLDER.fullmatch(key)}


def changed_prompts(original: RunFolder, repeat: RunFolder) -> dict[str, tuple[Any, Any]]:
    """Return the first text that is only in the original and the first that is only in the repeat, if any."""
    tables = [_texts(folder.prompts) for folder in (original, repeat)]
    only = [[text for text in ours if text not in theirs] for ours, theirs in (tables, tables[::-1])]
    if not any(only):
        return {}
    was, now = (texts[0] if texts else None for texts in only)
    return {f"prompts ({len(only[0])} gone, {len(only[1])} new)": (was, now)}


def compare_weights(original: RunFolder, repeat: RunFolder) -> str:
    """Return a sentence: the tensors of both checkpoints are equal bit by bit, or they differ by this much."""
    if missing := [name for name in CHECKPOINTS if not original.checkpoint(name).exists()]:
        return f"not compared: '{original.checkpoint(missing[0])}' is not there"
    different, total, largest, tensor_name = 0, 0, 0.0, ""
    for name in CHECKPOINTS:
        ours, theirs = (folder.load_checkpoint(name)["model"] for folder in (original, repeat))
        if {key: tensor.shape for key, tensor in ours.items()} != {key: tensor.shape for key, tensor in theirs.items()}:
            return "another model: its tensors have other names or sizes"
        total += len(ours)
        for key, tensor in ours.items():
            if not torch.equal(tensor, theirs[key]):
                different += 1
                difference = (tensor.double() - theirs[key].double()).abs().max().item()
                if largest == largest and not difference <= largest:  # NaN counts as the largest
                    largest, tensor_name = difference, f"{key} in {name}"
    if not different:
        return f"equal bit by bit, {total} tensors of {' and '.join(CHECKPOINTS)}"
    return f"{different} of {total} tensors differ, by at most {largest:.3g} ({tensor_name})"


def compare_scores(original: RunFolder, repeat: RunFolder) -> str:
    """Return a sentence: all scores are equal, or this many differ by this much, for each metric."""
    if not original.scores.exists():
        return f"not compared: '{original.scores}' is not there"
    ours, theirs = (_by_place(read_scores(folder.scores)) for folder in (original, repeat))
    means = original.read().get("test", {}), repeat.read().get("test", {})
    return _compare_values(ours, theirs, means)


def compare_windows(original: RunFolder, repeat: RunFolder) -> str:
    """Return a sentence like `compare_scores`, for the scores in windows."""
    if not repeat.fields_of_view.exists():
        return "not compared: the repeat has none"
    ours, theirs = (_by_window(read_window_scores(folder.fields_of_view)) for folder in (original, repeat))
    return _compare_values(ours, theirs)


def _compare_values(ours: Values, theirs: Values, means: tuple[Mapping[str, float | None], ...] = ()) -> str:
    """Compare values by keys whose last but one part is the metric; `means` are those of each metric, if known."""
    shared = [key for key in ours if key in theirs]
    alone = len(ours) + len(theirs) - 2 * len(shared)
    by_metric: dict[str, list[float]] = {}
    for key in shared:
        first, second = ours[key], theirs[key]
        if first != second and not (math.isnan(first) and math.isnan(second)):
            by_metric.setdefault(str(key[-2]), []).append(abs(first - second))
    if not by_metric and not alone:
        return f"all {len(shared)} equal"
    parts = [f"{alone} in only one of the two"] if alone else []
    for metric, values in by_metric.items():
        largest = max((value for value in values if math.isfinite(value)), default=math.inf)
        mean = " and ".join("none" if test.get(metric) is None else f"{test[metric]:.4f}" for test in means)
        parts.append(f"{len(values)} of {metric} differ, by at most {largest:.3g}{mean and f'; means {mean}'}")
    return f"of {len(ours.keys() | theirs.keys())}, {'; '.join(parts)}"


def _by_place(scores: Sequence[Score]) -> Values:
    return {(*row.place, row.metric, row.prompt_source): row.value for row in scores}


def _by_window(scores: Sequence[WindowScore]) -> Values:
    return {(*row.position, row.metric, row.stated_by): row.value for row in scores}


def _texts(path: Path) -> dict[str, None]:
    """Return the lines of prompts.jsonl without counts and fingerprints, in their order."""
    if not path.exists():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return dict.fromkeys(f"{row['source']}, {row['view']}: {row['text']}" for row in rows)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", "Restore it, or repeat a copy without it.") from None
