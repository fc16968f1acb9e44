"""A trained model from where it stands, a run folder or a bundle; several as one ensemble."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from textseg.errors import RunError
from textseg.inference.bundles import MANIFEST, NO_ONNX, open_bundle
from textseg.inference.onnx_networks import Engine
from textseg.inference.trained_model import EncodedTexts, TrainedModel, prompt_generator
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import build_segmenter
from textseg.runs.folder import RunFolder, first_line
from textseg.runs.task_record import TaskRecord, read_task
from textseg.volumes.files import file_hash


def load(
    path: Path | str, *others: Path | str, device: str | torch.device | None = None, engine: Engine | None = None
) -> TrainedModel:
    """The trained model of a run folder, with its best checkpoint, or of a bundle; several paths are one ensemble.

    `device` is the GPU where there is one; `engine` runs a bundle whose network is ONNX. Raises RunError for a path
    that is neither, whose weights don't fit, or that can't be in one ensemble with the first, and PluginError where a
    plug-in is missing.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return ensemble([(str(one), _load(Path(one), place, engine)) for one in (path, *others)])


def ensemble(models: Sequence[tuple[str, TrainedModel]]) -> TrainedModel:
    """One model whose posterior is the mean of those of `models`, each with what a person calls it.

    One alone is itself. Each reads the text that its own prompt generator writes. Raises RunError where two are the
    same, or differ in what they name or in how they see a volume.
    """
    (first_name, first), *others = models
    if not others:
        return first
    known = {first.fingerprint: first_name}
    for name, other in others:
        if other.fingerprint in known:
            raise RunError(f"'{name}' and '{known[other.fingerprint]}' hold the same weights: name each once.")
        known[other.fingerprint] = name
        if differences := _differences(first, other):
            raise RunError(
                f"'{name}' can't be in one ensemble with '{first_name}': {'; '.join(differences)}. The models of an "
                "ensemble must name the same structures and see a volume in the same way."
            )
    members = tuple(model for _, model in models)
    names = list(dict.fromkeys(member.name for member in members))
    return replace(
        first,
        name=" + ".join(names) if len(names) > 1 else f"{names[0]} x {len(members)}",
        fingerprint=hashlib.sha256("".join(sorted(known)).encode()).hexdigest(),
        record=_together([member.record for member in members]),
        members=members,
    )


def _differences(one: TrainedModel, other: TrainedModel) -> list[str]:
    """In words, what keeps two models from being averaged."""
    found = []
    mine, theirs = one.atlas, other.atlas
    for what in ("name", "plane", "sequence"):
        if getattr(mine, what) != getattr(theirs, what):
            said = f" ('{mine.name}' against '{theirs.name}')" if what == "name" else ""
            found.append(f"the {what} of their atlases differs{said}")
    if [(some.index, some.name) for some in mine.structures] != [(some.index, some.name) for some in theirs.structures]:
        found.append("the structures of their atlases differ in name or class index")
    settings = one.recipe.preparation.model_dump(mode="json"), other.recipe.preparation.model_dump(mode="json")
    for key in settings[0]:
        if settings[0][key] != settings[1][key]:
            found.append(f"preparation.{key} is {settings[0][key]} against {settings[1][key]}")
    return found


def _together(records: Sequence[TaskRecord]) -> TaskRecord:
    """What all members have seen, and what the training cases of all of them span."""
    fingerprint: dict[str, list[Any]] = {}
    for record in records:
        for key, values in record.task.fingerprint.items():
            fingerprint.setdefault(key, []).extend(values)
    seen = {content: case for record in reversed(records) for content, case in record.seen.items()}
    return TaskRecord(replace(records[0].task, fingerprint=fingerprint), seen)


def _load(path: Path, place: torch.device, engine: Engine | None) -> TrainedModel:
    if (path / MANIFEST).exists():
        return open_bundle(path, place, engine)
    if engine is not None:
        raise RunError(NO_ONNX.format(path, engine))
    folder, registry = RunFolder.existing(path), installed_registry()
    recipe, record = load_recipe(folder.recipe), read_task(folder.task)
    segmenter = build_segmenter(recipe, registry, record.task)
    checkpoint = folder.checkpoint("best")
    try:
        segmenter.load_state_dict(folder.load_checkpoint("best")["model"])
    except (KeyError, RuntimeError) as error:
        raise RunError(f"'{checkpoint}' does not fit the model of '{folder.recipe}': {first_line(error)}") from error
    return TrainedModel(
        name=recipe.name,
        fingerprint=file_hash(checkpoint),
        recipe=recipe,
        record=record,
        segmenter=segmenter.eval().to(place),
        generator=prompt_generator(recipe, registry, record.task.atlas),
        texts=EncodedTexts(recipe, registry, record.task) if recipe.prompts else None,
        device=place,
    )
