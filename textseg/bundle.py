"""A trained model as one folder that predicts offline: how it is read, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from textseg import API_VERSION, __version__
from textseg.build import build_segmenter
from textseg.compatibility import OLDEST_API_VERSION
from textseg.embeddings import TextTable
from textseg.errors import PluginError, PromptError, RunError
from textseg.recipe import load_recipe
from textseg.registry import Registry, installed_registry
from textseg.run_folder import first_line
from textseg.task_record import read_task
from textseg.trained import TrainedModel, prompt_generator
from textseg.volumes import file_hash

FORMAT = 1
MANIFEST = "bundle.json"


def open_bundle(path: Path, device: torch.device) -> TrainedModel:
    """The model of a bundle. Nothing is unpickled, and no text encoder is needed.

    Raises RunError where a file is missing or is not the one that was exported, PluginError where a plug-in that the
    model needs is missing.
    """
    manifest = check_bundle(path)
    registry = installed_registry()
    _check_plugins(path, manifest, registry)
    recipe, record = load_recipe(path / "recipe.yaml"), read_task(path / "task.json")
    segmenter = build_segmenter(recipe, registry, record.task)
    network: Any = segmenter.network
    try:
        network.load_state_dict(read_tensors(path / "weights.safetensors"))
    except RuntimeError as error:
        raise RunError(f"'{path}': its weights don't fit the model of its recipe: {first_line(error)}") from error
    return TrainedModel(
        name=manifest["name"],
        fingerprint=manifest["fingerprint"],
        recipe=recipe,
        record=record,
        segmenter=segmenter.eval().to(device),
        generator=prompt_generator(recipe, registry, record.task.atlas),
        texts=FrozenTexts(path, record.task.text_length or 0) if recipe.prompts else None,
        device=device,
    )


class FrozenTexts:
    """The features of every text that template, interactive and predicted prompts can produce, out of a bundle."""

    def __init__(self, path: Path, text_length: int) -> None:
        self.path = path
        tensors = read_tensors(path / "text.safetensors")
        texts = tuple(json.loads((path / "texts.json").read_text(encoding="utf-8")))
        counts = tensors["counts"].tolist()
        tokens = torch.zeros(len(texts), text_length, tensors["tokens"].shape[1], dtype=torch.float16)
        for row, features in zip(tokens, torch.split_with_sizes(tensors["tokens"], counts), strict=True):
            row[: len(features)] = features
        mask = torch.arange(text_length)[None] < tensors["counts"][:, None]
        self.table = TextTable(texts, tuple(counts), tokens, mask, tensors["pooled"], "", 0)
        self.known = set(texts)

    def __call__(self, texts: Sequence[str]) -> TextTable:
        """The table; raises PromptError for a text that the bundle lacks."""
        if missing := [text for text in texts if text not in self.known]:
            raise PromptError(
                f"The bundle '{self.path}' holds no features for '{missing[0][:80]}...': it knows prompts that name "
                "everything, or one stretch of the sequence. Name a stretch, or predict with the run it came from."
            )
        return self.table


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, out of a safetensors file."""
    from safetensors.torch import load_file

    return load_file(path)


def check_bundle(path: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are all there, as they were written."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files, form, api = dict(manifest["files"]), manifest["format"], manifest["api"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"'{path / MANIFEST}' is damaged ({error}). Export the bundle again.") from error
    if form != FORMAT or not OLDEST_API_VERSION <= api <= API_VERSION:
        raise RunError(
            f"'{path}' is a bundle of format {form} and API {api}, and textseg {__version__} reads format {FORMAT}, "
            f"API {OLDEST_API_VERSION} to {API_VERSION}. Use the textseg that wrote it: {manifest['textseg']}."
        )
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
        plugin = installed.get(name)
        if plugin is None:
            raise PluginError(
                f"The bundle '{path}' needs the plug-in '{name}', which is not installed. Install it: pip install "
                f"{part['distribution']}=={part['version']}"
            )
        if plugin.error:
            raise PluginError(f"The bundle '{path}' needs {plugin.origin}, which is broken: {plugin.error}.")
