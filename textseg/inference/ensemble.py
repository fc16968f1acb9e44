"""An ensemble: several trained models whose probabilities are averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from textseg.errors import RunError
from textseg.inference.predictor import Predictor
from textseg.inference.trained_model import TrainedModel
from textseg.runs.task_record import TaskRecord


@dataclass(frozen=True)
class Ensemble(Predictor):
    """A model whose probabilities are the mean of the probabilities of its members.

    Each member reads the text that its own prompt generator writes.
    """

    name: str
    fingerprint: str
    record: TaskRecord
    members: tuple[TrainedModel, ...]

    @classmethod
    def of(cls, named: Sequence[tuple[str, TrainedModel]]) -> Ensemble:
        """Join models, each with the path or name that messages use for it.

        Raises RunError if two models have the same weights, or differ in their structures or in the preparation of a
        volume.
        """
        (first_name, first), *others = named
        known = {first.fingerprint: first_name}
        for name, model in others:
            if model.fingerprint in known:
                raise RunError(f"'{name}' and '{known[model.fingerprint]}' hold the same weights: name each once.")
            known[model.fingerprint] = name
            if differences := _differences(first, model):
                raise RunError(
                    f"'{name}' can't be in one ensemble with '{first_name}': {'; '.join(differences)}. The models of "
                    "an ensemble must name the same structures and see a volume in the same way."
                )
        members = tuple(model for _, model in named)
        names = list(dict.fromkeys(member.name for member in members))
        return cls(
            name=" + ".join(names) if len(names) > 1 else f"{names[0]} x {len(members)}",
            fingerprint=hashlib.sha256("".join(sorted(known)).encode()).hexdigest(),
            record=_joined([member.record for member in members]),
            members=members,
        )

    @property
    def models(self) -> tuple[TrainedModel, ...]:
        """The members of the ensemble."""
        return self.members


def _joined(records: Sequence[TaskRecord]) -> TaskRecord:
    """Return the first task, with all cases that any model has seen and the range of all training cases."""
    fingerprint: dict[str, list[Any]] = {}
    for record in records:
        for key, values in record.task.fingerprint.items():
            fingerprint.setdefault(key, []).extend(values)
    seen = {content: case for record in reversed(records) for content, case in record.seen.items()}
    facts = tuple(known for record in records for known in record.facts)
    return TaskRecord(replace(records[0].task, fingerprint=fingerprint), seen, facts)


def _differences(first: TrainedModel, second: TrainedModel) -> list[str]:
    """Return the reasons, as text, why two models cannot be averaged."""
    differences = []
    atlas, other_atlas = first.atlas, second.atlas
    for attribute in ("name", "plane", "sequence"):
        if getattr(atlas, attribute) != getattr(other_atlas, attribute):
            names = f" ('{atlas.name}' against '{other_atlas.name}')" if attribute == "name" else ""
            differences.append(f"the {attribute} of their atlases differs{names}")
    # SNOMED codes may differ: they do not change the averaged probabilities.
    indices = [[(structure.index, structure.name) for structure in a.structures] for a in (atlas, other_atlas)]
    if indices[0] != indices[1]:
        differences.append("the structures of their atlases differ in name or class index")
    if first.task.channel_names != second.task.channel_names:
        differences.append("they read other channels, or in another order")
    settings, other_settings = (model.recipe.preparation.model_dump(mode="json") for model in (first, second))
    for key, value in settings.items():
        if value != other_settings[key]:
            differences.append(f"preparation.{key} is {value} against {other_settings[key]}")
    return differences
