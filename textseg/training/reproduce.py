"""A run again, from its folder: what differs in how it runs, and in what comes out."""

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
from textseg.recipe.loading import Recipe, complete_settings, load_recipe
from textseg.runs.folder import RunFolder, change_lines, environment, flat
from textseg.training.run import prepared, run

# What run.json says of how a run came about, and what of it is known before the first step.
KNOWN_BEFORE = ("versions", "plugins", "git_commit", "settings", "hashes")
RECORDED = (*KNOWN_BEFORE, "hardware", "precision", "processes", "numerics", "metrics_kernel", "parameters")
CHECKPOINTS = ("last", "best")
_PLACE = re.compile(r"recipe\.dataset\.folder|settings\.dataset .*\.folder")


def reproduce(
    source: Path, *, overrides: Sequence[str] = (), output: Path, fresh: bool = False, dry_run: bool = False
) -> Path:
    """Repeat the run in a folder, as its recipe.yaml says, and print what differs; returns the new folder.

    An interrupted repeat goes on. run.json of the repeat keeps what was found, under `repeats`. Raises RunError for a
    folder without recipe.yaml, and for an `output` in which the repeat would be the run itself.
    """
    original = RunFolder.existing(source)
    if not original.recipe.exists():
        raise RunError(f"'{original.path}' holds no recipe.yaml, so nothing says how to repeat it. Name a run folder.")
    recipe, asked = load_recipe(original.recipe), load_recipe(original.recipe, overrides)
    folder = RunFolder.of(asked, output)
    if folder.path.resolve() == original.path.resolve():
        raise RunError(f"The repeat would stand in '{folder.path}', the run itself. Choose another --output.")
    print(f"repeating '{original.path}' in '{folder.path}'")
    record, experiment = original.read(), prepared(asked, dry_run=dry_run)
    now = {**environment(experiment.components), "hashes": experiment.hashes()}
    now["settings"] = complete_settings(asked, experiment.registry)
    before = differences(recipe, asked, {key: record.get(key) for key in KNOWN_BEFORE}, now)
    print(*(change_lines(before) or ["recipe, data, prompts, versions and code are the same"]), sep="\n")
    if dry_run:
        return folder.path
    del experiment
    run(original.recipe, overrides=overrides, output=output, fresh=fresh)
    differs = differences(recipe, asked, {key: record.get(key) for key in RECORDED}, folder.read())
    differs |= changed_prompts(original, folder)
    weights, scores = compare_weights(original, folder), compare_scores(original, folder)
    folder.update(
        repeats={"run": str(original.path.resolve()), "differs": differs, "weights": weights, "scores": scores}
    )
    later = {key: pair for key, pair in differs.items() if key not in before}
    print(
        f"beside '{original.path}':",
        *change_lines(later),
        f"  weights: {weights}",
        f"  test scores: {scores}",
        sep="\n",
    )
    return folder.path


def differences(
    recipe: Recipe, asked: Recipe, before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """What was and is, by key: what a recipe asks for, and what of `before` is otherwise now.

    Settings of components stand there with their defaults, which another version may have changed. Where the data lie
    makes no difference: their content has a hash.
    """
    one, other = (
        flat(json.loads(json.dumps({"recipe": some.model_dump(mode="json"), **facts})))  # as run.json is
        for some, facts in ((recipe, before), (asked, {key: now.get(key) for key in before}))
    )
    keys = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
    return {key: (one.get(key), other.get(key)) for key in keys if not _PLACE.fullmatch(key)}


def changed_prompts(original: RunFolder, repeat: RunFolder) -> dict[str, tuple[Any, Any]]:
    """The first text that only the one, and that only the other has, where the prompt tables differ."""
    tables = [_texts(folder.prompts) for folder in (original, repeat)]
    only = [[text for text in ours if text not in theirs] for ours, theirs in (tables, tables[::-1])]
    if not any(only):
        return {}
    was, now = (texts[0] if texts else None for texts in only)
    return {f"prompts ({len(only[0])} gone, {len(only[1])} new)": (was, now)}


def compare_weights(original: RunFolder, repeat: RunFolder) -> str:
    """Whether the tensors of both checkpoints are equal bit by bit, or by how much they differ."""
    if missing := [name for name in CHECKPOINTS if not original.checkpoint(name).exists()]:
        return f"not compared: '{original.checkpoint(missing[0])}' is not there"
    different, total, most, place = 0, 0, 0.0, ""
    for name in CHECKPOINTS:
        ours, theirs = (folder.load_checkpoint(name)["model"] for folder in (original, repeat))
        if {key: tensor.shape for key, tensor in ours.items()} != {key: tensor.shape for key, tensor in theirs.items()}:
            return "another model: its tensors have other names or sizes"
        total += len(ours)
        for key, tensor in ours.items():
            if not torch.equal(tensor, theirs[key]):
                different += 1
                apart = (tensor.double() - theirs[key].double()).abs().max().item()
                if most == most and not apart <= most:  # one that is no number is the most
                    most, place = apart, f"{key} in {name}"
    if not different:
        return f"equal bit by bit, {total} tensors of {' and '.join(CHECKPOINTS)}"
    return f"{different} of {total} tensors differ, by at most {most:.3g} ({place})"


def compare_scores(original: RunFolder, repeat: RunFolder) -> str:
    """Whether all scores are equal, or how many differ and by how much, by metric."""
    if not original.scores.exists():
        return f"not compared: '{original.scores}' is not there"
    ours, theirs = (_by_place(read_scores(folder.scores)) for folder in (original, repeat))
    shared = [key for key in ours if key in theirs]
    alone = len(ours) + len(theirs) - 2 * len(shared)
    apart: dict[str, list[float]] = {}
    for key in shared:
        one, other = ours[key], theirs[key]
        if one != other and not (math.isnan(one) and math.isnan(other)):
            apart.setdefault(str(key[-2]), []).append(abs(one - other))
    if not apart and not alone:
        return f"all {len(shared)} equal"
    found = [f"{alone} stand in one of the two only"] if alone else []
    means = original.read().get("test", {}), repeat.read().get("test", {})
    for metric, values in apart.items():
        mean = " and ".join("none" if one.get(metric) is None else f"{one[metric]:.4f}" for one in means)
        most = max((value for value in values if math.isfinite(value)), default=math.inf)
        found.append(f"{len(values)} of {metric} differ, by at most {most:.3g}; means {mean}")
    return f"of {len(ours.keys() | theirs.keys())}, {'; '.join(found)}"


def _by_place(scores: Sequence[Score]) -> dict[tuple[object, ...], float]:
    return {(*row.place, row.metric, row.prompt_source): row.value for row in scores}


def _texts(path: Path) -> dict[str, None]:
    """The lines of prompts.jsonl without counts and fingerprints, in their order."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return dict.fromkeys(f"{row['source']}, {row['view']}: {row['text']}" for row in rows)
