"""A trained model from where it stands: a run folder or a bundle."""

from __future__ import annotations

from pathlib import Path

import torch

from textseg.build import build_segmenter
from textseg.bundle import MANIFEST, NO_ONNX, open_bundle
from textseg.errors import RunError
from textseg.onnx_network import Engine
from textseg.recipe import load_recipe
from textseg.registry import installed_registry
from textseg.run_folder import RunFolder, first_line
from textseg.task_record import read_task
from textseg.trained import EncodedTexts, TrainedModel, prompt_generator
from textseg.volumes import file_hash


def load(path: Path | str, *, device: str | torch.device | None = None, engine: Engine | None = None) -> TrainedModel:
    """The trained model of a run folder, with its best checkpoint, or of a bundle.

    `device` is the GPU where there is one; `engine` runs a bundle whose network is ONNX. Raises RunError for a path
    that is neither, or whose weights don't fit, and PluginError where a plug-in is missing.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if (Path(path) / MANIFEST).exists():
        return open_bundle(Path(path), place, engine)
    if engine is not None:
        raise RunError(NO_ONNX.format(path, engine))
    folder, registry = RunFolder.existing(Path(path)), installed_registry()
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
