"""Bundles: opening a trained model that was exported as one folder and predicts offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from textseg.errors import PluginError, PromptError, RunError
from textseg.inference.onnx_networks import Engine, OnnxNetwork
from textseg.inference.trained_model import TrainedModel, prompt_generator
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import Registry, installed_registry
from textseg.registry.kinds import TO_PREDICT
from textseg.runs.experiment import build_segmenter
from textseg.runs.folder import load_weights
from textseg.runs.identity import changes_since, warn_of_changes
from textseg.runs.task_record import read_task
from textseg.system.commands import pip_install
from textseg.system.hub import carried_configurations
from textseg.system.messages import counted
from textseg.system.own_files import damaged, read_json
from textseg.text.embeddings import TextTable
from textseg.version import API_VERSION, OLDEST_API_VERSION, __version__
from textseg.volumes.files import file_hash

FORMAT = 1
MANIFEST, WEIGHTS, ONNX = "bundle.json", "weights.safetensors", "network.onnx"
HUB = "hub"  # the configurations that the network is built from
SEAL = "sha256"  # the last key of a manifest: the hash of all keys before it
LARGEST = 2**33  # features of texts in a bundle, with their padding
AGAIN = "Copy the whole bundle again, or export it again."
NO_ONNX = "'{}' holds no ONNX network for {}. Make one: textseg export RUN --to onnx --output DIR."


def open_bundle(
    path: Path, device: torch.device, engine: Engine | None = None, *, trust_code: bool = False
) -> TrainedModel:
    """Open the model of a bundle. Nothing is unpickled, and no text encoder is needed.

    `engine` runs the network of a bundle that has it as ONNX. Raises RunError if a file is missing or differs from the
    exported file, and PluginError if a plug-in that the model needs is missing.
    """
    manifest = check_bundle(path)
    registry = installed_registry()
    _check_plugins(path, manifest, registry)
    builds = TO_PREDICT - {"text_encoder"}  # a bundle holds what the text encoder made of its texts
    recipe = load_recipe(path / "recipe.yaml", trust_code=trust_code, builds=builds)
    warn_of_changes(path, changes_since(manifest.get("components", {}), recipe, registry, frozen_text=True))
    record = read_task(path / "task.json")
    task = record.task
    texts = FrozenTexts(path, task.text_length or 0, task.text_size or 0) if recipe.prompts_read else None
    if ONNX in manifest["files"]:
        uses_text = recipe.prompts_read is not None
        segmenter = Segmenter(OnnxNetwork(path / ONNX, uses_text=uses_text, engine=engine or "onnxruntime"))
    elif engine is not None:
        raise RunError(NO_ONNX.format(path, engine))
    else:
        with carried_configurations(path / HUB):
            segmenter = build_segmenter(recipe, registry, task)
        mismatch = f"'{path}': its weights don't fit the model of its recipe"
        load_weights(cast(nn.Module, segmenter.network), {"model": read_tensors(path / WEIGHTS)}, mismatch)
    name, fingerprint, segmenter = manifest["name"], manifest["fingerprint"], segmenter.eval().to(device)
    generator = prompt_generator(recipe, registry, task.atlas)
    return TrainedModel(name, fingerprint, recipe, record, segmenter, generator, texts, device)


class _Distribution(BaseModel):
    distribution: str
    version: str


class _Manifest(BaseModel):
    """The content of bundle.json."""

    model_config = ConfigDict(strict=True)
    format: int
    api: int
    name: str
    fingerprint: str
    textseg: str
    plugins: dict[str, _Distribution]
    components: dict[str, dict[str, Any]] = {}
    files: dict[str, str]


class FrozenTexts:
    """Features of every text that prompts without a report can produce, from a bundle."""

    def __init__(self, path: Path, text_length: int, text_size: int) -> None:
        self.path = path
        tensors = read_tensors(path / "text.safetensors")
        texts = tuple(_read(path / "texts.json", list[str]))
        counts = _checked_counts(path / "text.safetensors", tensors, (len(texts), text_length, text_size))
        # The file holds the tokens of all texts one after the other, without padding.
        tokens = torch.zeros(len(texts), text_length, text_size, dtype=torch.float16)
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
                "that name everything, or one stretch of the sequence with all that is outside the sequence, with "
                "facts that stood together in its training. Name a stretch, such as 'FIRST to LAST', or predict with "
                "the run that the bundle comes from."
            )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors by name from a safetensors file. Raises RunError for a file that is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error), AGAIN) from error


def _read(path: Path, schema: Any) -> Any:
    try:
        return read_json(path, schema, AGAIN)
    except FileNotFoundError:
        raise RunError(f"'{path.parent}' lacks '{path.name}'. {AGAIN}") from None


def _checked_counts(path: Path, tensors: Mapping[str, torch.Tensor], sizes: tuple[int, int, int]) -> list[int]:
    """Return the number of tokens of each text; raises RunError unless the tensors hold the features of all texts.

    `sizes` are those of the table: texts, tokens, features.
    """
    texts, text_length, text_size = sizes
    try:
        tokens, counts, pooled = (tensors[name] for name in ("tokens", "counts", "pooled"))
    except KeyError as error:
        raise damaged(path, f"it lacks {error}", AGAIN) from None
    fits = counts.shape == (texts,) and counts.dtype == torch.int64 and tokens.dtype == pooled.dtype == torch.float16
    fits = fits and tokens.shape[1:] == (text_size,) and pooled.shape == (texts, text_size)
    fits = fits and texts * text_length * text_size <= LARGEST
    numbers: list[int] = counts.tolist() if fits else []
    if not fits or sum(numbers) != len(tokens) or not all(0 <= number <= text_length for number in numbers):
        raise damaged(path, f"it does not hold the features of {counted(texts, 'text')}", AGAIN)
    return numbers


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Write the manifest of a bundle with a seal, so that a change of the manifest itself is noticed, too."""
    plain = {key: value for key, value in manifest.items() if key != SEAL}
    seal = hashlib.sha256(json.dumps(plain, indent=1).encode()).hexdigest()
    return json.dumps({**plain, SEAL: seal}, indent=1) + "\n"


def check_bundle(path: Path) -> dict[str, Any]:
    """Read the manifest of a bundle; raise RunError where a file is missing or was changed."""
    manifest: dict[str, Any] = _read(path / MANIFEST, _Manifest)
    files, form, api = manifest["files"], manifest["format"], manifest["api"]
    if form != FORMAT or not OLDEST_API_VERSION <= api <= API_VERSION:
        raise RunError(
            f"'{path}' is a bundle of format {form} and API {api}, and textseg {__version__} reads format {FORMAT}, "
            f"API {OLDEST_API_VERSION} to {API_VERSION}. Use the textseg that wrote it: {manifest.get('textseg')}."
        )
    if (path / MANIFEST).read_bytes() != manifest_text(manifest).encode():
        raise RunError(f"'{path / MANIFEST}' is not the file that was exported. Copy the bundle again.")
    network = ONNX if ONNX in files else WEIGHTS
    for name, expected in {**dict.fromkeys(("recipe.yaml", "task.json", network), ""), **files}.items():
        file = path / name
        if not file.is_file():
            raise RunError(f"'{path}' lacks '{name}'. Copy the whole bundle again.")
        if file_hash(file) != expected:
            raise RunError(f"'{file}' is not the file that was exported: its hash differs. Copy the bundle again.")
    return manifest


def _check_plugins(path: Path, manifest: dict[str, Any], registry: Registry) -> None:
    for name, part in manifest["plugins"].items():
        plugins = [plugin for plugin in registry.plugins if plugin.name == name]
        plugin = next(
            (each for each in plugins if each.distribution == part["distribution"]), next(iter(plugins), None)
        )
        if plugin is None:
            raise PluginError(
                f"The bundle '{path}' needs the plug-in '{name}', which is not installed. Install it: "
                + pip_install(f"{part['distribution']}=={part['version']}")
            )
        if plugin.error:
            raise PluginError(f"The bundle '{path}' needs {plugin.origin}, which is broken: {plugin.error}.")
