"""The components of a run as run.json records them: distribution, version, code and weights, and what changed since."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from textseg.recipe.loading import required_components
from textseg.recipe.schema import Recipe
from textseg.registry.component import Component
from textseg.registry.discovery import Registry
from textseg.registry.kinds import TO_PREDICT
from textseg.registry.source import source_of

Facts = Mapping[str, Mapping[str, Any]]  # "fusion hasf" -> its distribution, version, source and weights
PREDICTING = TO_PREDICT - {"atlas", "dataset"}


def component_facts(components: Iterable[Component], weights: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return distribution, version and source of each component; `weights` are fingerprints by "kind name"."""
    facts: dict[str, dict[str, Any]] = {}
    for component in components:
        key = f"{component.kind} {component.name}"
        facts[key] = {"distribution": component.distribution, "version": component.version}
        facts[key]["source"] = source_of(component)
        if weights and key in weights:
            facts[key]["weights"] = weights[key]
    return facts


def component_changes(
    before: Facts, now: Facts, *, of: Collection[str] | None = None, but: Collection[str] = ()
) -> list[str]:
    """Return a sentence for each change of the components that both have, of some kinds only, or `but` some."""
    lines = []
    for key, ours in before.items():
        kind, _, name = key.partition(" ")
        theirs = now.get(key)
        if theirs is None or kind in but or (of is not None and kind not in of):
            continue
        changes = []
        if ours.get("distribution") != theirs["distribution"]:
            changes.append(f"it came from {ours.get('distribution')}, and comes from {theirs['distribution']}")
        elif ours.get("version") != theirs["version"]:
            changes.append(f"{theirs['distribution']} was {ours.get('version')}, and is {theirs['version']}")
        old, new = ours.get("source") or {}, theirs["source"]
        if files := sorted(file for file in {*old, *new} if old.get(file) != new.get(file)):
            states = {file: " (new)" if file not in old else " (gone)" if file not in new else "" for file in files}
            listed = ", ".join(file + state for file, state in states.items())
            changes.append(f"its code changed: {listed} (of {theirs['distribution']})")
        lines += [f"{kind} '{name}': {change}" for change in changes]
    return lines


def weight_changes(before: Facts, now: Facts) -> list[str]:
    """Return a sentence for each component that reads other weights than before."""
    lines = []
    for key in before.keys() & now.keys():
        kind, _, name = key.partition(" ")
        old, new = before[key].get("weights"), now[key].get("weights")
        if old and new and old != new:
            lines.append(f"{kind} '{name}': its weights, tokenizer or settings changed (fingerprint {old}, now {new})")
    return sorted(lines)


def scored_with(record: Mapping[str, Any]) -> Facts:
    """Return the components that made the scores of a run.json: those of the training, but for later changes."""
    return {**(record.get("components") or {}), **(record.get("scored_with") or {})}


def changed_facts(record: Mapping[str, Any], now: Facts) -> dict[str, Any]:
    """Return the present facts of the components that differ from those of the training in a run.json."""
    before = record.get("components") or {}
    return {key: dict(now[key]) for key in now if key in before and component_changes({key: before[key]}, now)}


def changes_since(recorded: Facts, recipe: Recipe, registry: Registry, *, frozen_text: bool = False) -> list[str]:
    """Return a sentence for each change in the code of a trained model, which may have the features of its texts."""
    kinds = PREDICTING - ({"text_encoder"} if frozen_text else set())
    used = [(kind, spec) for kind, spec in required_components(recipe) if kind in kinds]
    return component_changes(recorded, component_facts(registry.component(kind, spec.use) for kind, spec in used))


def warn_of_changes(subject: object, changes: Sequence[str]) -> None:
    """Print a warning on stderr where a trained model is used with other code than it was trained with."""
    if changes:
        heading = f"Warning: '{subject}' was trained with other code than that at hand, so its results may differ:"
        print(heading, *(f"  {change}" for change in changes), sep="\n", file=sys.stderr)
