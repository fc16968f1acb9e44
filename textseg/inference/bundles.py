"""Bundles: opening a trained model that was exported as one folder and predicts offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from textseg.errors import PluginError, PromptError, RunError
from textseg.inference.onnx_networks import Engine, OnnxNetwork
from textseg.inference.trained_model import TrainedModel, prompt_generator
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import Registry, installed_registry
from textseg.runs.experiment import build_segmenter
from textseg.runs.folder import load_weights
from textseg.runs.task_record import read_task
from textseg.system.commands import pip_install
from textseg.system.hub import carried_configurations
from textseg.text.embeddings import TextTable
from textseg.version import API_VERSION, OLDEST_API_VERSION, __version__
from textseg.volumes.files import file_hash

FORMAT = 1
MANIFEST, WEIGHTS, ONNX = "bundle.json", "weights.safetensors", "network.onnx"
HUB = "hub"  # the configurations that the network is built from
SEAL = "sha256"  # the last key of a manifest: the hash of all keys before it
NO_ONNX = "'{}' holds no ONNX network for {}. Make one: textseg export RUN --to onnx --output DIR."


def open_bundle(path: Path, device: torch.device, engine: Engine | None = None) -> TrainedModel:
    """Open the model of a bundle. Nothing is unpickled, and no text encoder is needed.

    `engine` runs the network of a bundle that has it as ONNX. Raises RunError if a file is missing or differs from the
    exported file, and PluginError if a plug-in that the model needs is missing.
    """
    manifest = check_bundle(path)
    registry = installed_registry()
    _check_plugins(path, manifest, registry)
    recipe, record = load_recipe(path / "recipe.yaml"), read_task(path / "task.json")
    if ONNX in manifest["files"]:
        uses_text = recipe.prompts is not None
        segmenter = Segmenter(OnnxNetwork(path / ONNX, uses_text=uses_text, engine=engine or "onnxruntime"))
    elif engine is not None:
        raise RunError(NO_ONNX.format(path, engine))
    else:
        with carried_configurations(path / HUB):
            segmenter = build_segmenter(recipe, registry, record.task)
        mismatch = f"'{path}': its weights don't fit the model of its recipe"
        load_weights(cast(nn.Module, segmenter.network), {"model": read_tensors(path / WEIGHTS)}, mismatch)
    name, fingerprint, segmenter = manifest["name"], manifest["fingerprint"], segmenter.eval().to(device)
    generator = prompt_generator(recipe, registry, record.task.atlas)
    texts = FrozenTexts(path, record.task.text_length or 0) if recipe.prompts else None
    return TrainedModel(name, fingerprint, recipe, record, segmenter, generator, texts, device)


class FrozenTexts:
    """Features of every text that template, interactive and predicted prompts can produce, from a bundle."""

    def __init__(self, path: Path, text_length: int) -> None:
        self.path = path
        tensors = read_tensors(path / "text.safetensors")
        texts = tuple(json.loads((path / "texts.json").read_text(encoding="utf-8")))
        counts = tensors["counts"].tolist()
        # The file holds the tokens of all texts one after the other, without padding.
        tokens = torch.zeros(len(texts), text_length, tensors["tokens"].shape[1], dtype=torch.float16)
        for row, features in zip(tokens, torch.split_with_sizes(tensors["tokens"], counts), strict=True):
            row[: len(features)] = features
        mask = torch.arange(text_length)[None] < tensors["counts"][:, None]
        self.table = TextTable(texts, tuple(counts), tokens, mask, tensors["pooled"], "", 0)
        self.known = set(texts)

    def __call__(self, texts: Sequence[str]) -> TextTable:
        """Return the table; raises PromptError for a text that the bundle lacks."""
        self.require(texts)
        return self.table

    def require(self, texts: Sequence[str]) -> None:
        """Raise PromptError for texts that the bundle has no features for."""
        if missing := [text for text in texts if text not in self.known]:
            raise PromptError(
                f"The bundle '{self.path}' holds no features for '{missing[0][:80]}...': it has those of prompts "
                "that name everything, or one stretch of the sequence with all that is outside the sequence. Name a "
                "stretch, such as 'FIRST to LAST', or predict with the run that the bundle comes from."
            )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors by name from a safetensors file."""
    from safetensors.torch import load_file

    return load_file(path)


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Write the manifest of a bundle with a seal, so that a change of the manifest itself is noticed, too."""
    plain = {key: value for key, value in manifest.items() if key != SEAL}
    seal = hashlib.sha256(json.dumps(plain, indent=1).encode()).hexdigest()
    return json.dumps({**plain, SEAL: seal}, indent=1) + "\n"


def check_bundle(path: Path) -> dict[str, Any]:
    """Read the manifest of a bundle; raise RunError where a file is missing or was changed."""
    try:
        text = (path / MANIFEST).read_bytes().decode()
        manifest: dict[str, Any] = json.loads(text)
        files, form, api = dict(manifest["files"]), manifest["format"], manifest["api"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"'{path / MANIFEST}' is damaged ({type(error).__name__}). Export the bundle again.") from error
    if form != FORMAT or not OLDEST_API_VERSION <= api <= API_VERSION:
        raise RunError(
            f"'{path}' is a bundle of format {form} and API {api}, and textseg {__version__} reads format {FORMAT}, "
            f"API {OLDEST_API_VERSION} to {API_VERSION}. Use the textseg that wrote it: {manifest.get('textseg')}."
        )
    if text != manifest_text(manifest):
        raise RunError(f"'{path / MANIFEST}' is not the file that was exported. Copy the bundle again.")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise RunError(f"'{path}' lacks '{name}'. Copy the whole bundle again.")
        if file_hash(file) != expected:
            raise RunError(f"'{file}' is not the file that was exported: its hash differs. Copy the bundle again.")
    return manifest


def _check_plugins(path: Path, manifest: dict[str, Any], registry: Registry) -> None:
    installed = {plugin.name: plugin for plugin in registry.plugins}
    for name, part in manifest["plugins"].items():
        if (plugin := installed.get(name)) is None:
            raise PluginError(
                f"The bundle '{path}' needs the plug-in '{name}', which is not installed. Install it: "
                + pip_install(f"{part['distribution']}=={part['version']}")
            )
        if plugin.error:
            raise PluginError(f"The bundle '{path}' needs {plugin.origin}, which is broken: {plugin.error}.")
