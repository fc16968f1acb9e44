"""Loading trained models from run folders and bundles."""

from __future__ import annotations

from pathlib import Path

import torch

from textseg.errors import RunError
from textseg.inference.bundles import MANIFEST, NO_ONNX, open_bundle
from textseg.inference.ensemble import Ensemble
from textseg.inference.onnx_networks import Engine
from textseg.inference.predictor import Predictor
from textseg.inference.trained_model import EncodedTexts, TrainedModel, prompt_generator
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import installed_registry
from textseg.registry.kinds import TO_PREDICT
from textseg.runs.experiment import build_segmenter
from textseg.runs.folder import RunFolder, load_weights
from textseg.runs.identity import changes_since, warn_of_changes
from textseg.runs.task_record import read_task
from textseg.system.devices import chosen_device
from textseg.volumes.files import file_hash


def load(
    path: Path | str,
    *others: Path | str,
    device: str | torch.device | None = None,
    engine: Engine | None = None,
    trust_code: bool = False,
) -> Predictor:
    """Load the trained model of a run folder or a bundle; several paths give an ensemble.

    `device` is the GPU where there is one; `engine` runs a bundle whose network is ONNX; `trust_code` lets the recipe
    of a run folder run code of a model that it names. Raises RunError for a path that is neither, whose weights do not
    fit, or that cannot be in an ensemble with the first path. Raises PluginError if a plug-in is missing.
    """
    models = [
        (str(source), load_model(source, device=device, engine=engine, trust_code=trust_code))
        for source in (path, *others)
    ]
    return Ensemble.of(models) if others else models[0][1]


def load_model(
    path: Path | str,
    *,
    device: str | torch.device | None = None,
    engine: Engine | None = None,
    trust_code: bool = False,
) -> TrainedModel:
    """Load one trained model from a bundle, or from a run folder, with the checkpoint that was scored; see `load`."""
    path, device = Path(path), chosen_device(device)
    if (path / MANIFEST).exists():
        return open_bundle(path, device, engine, trust_code=trust_code)
    if engine is not None:
        raise RunError(NO_ONNX.format(path, engine))
    folder, registry = RunFolder.existing(path), installed_registry()
    recipe, record = load_recipe(folder.recipe, trust_code=trust_code, builds=TO_PREDICT), read_task(folder.task)
    warn_of_changes(folder.path, changes_since(folder.read().get("components", {}), recipe, registry))
    segmenter = build_segmenter(recipe, registry, record.task)
    checkpoint = folder.checkpoint(recipe.evaluation.checkpoint)
    mismatch = f"'{checkpoint}' does not fit the model of '{folder.recipe}'"
    load_weights(segmenter, folder.load_checkpoint(recipe.evaluation.checkpoint), mismatch)
    segmenter = segmenter.eval().to(device)
    generator = prompt_generator(recipe, registry, record.task.atlas)
    texts = EncodedTexts(recipe, registry, record.task) if recipe.prompts_read else None
    return TrainedModel(recipe.name, file_hash(checkpoint), recipe, record, segmenter, generator, texts, device)
