"""Export of a run as a bundle: weights, recipe, frozen text, and a model card."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from textseg.contracts import PromptGenerator, Visibility
from textseg.errors import PromptError, RunError
from textseg.export.model_card import model_card
from textseg.export.onnx import Agreement, export_onnx
from textseg.inference.bundles import FORMAT, HUB, MANIFEST, ONNX, WEIGHTS, manifest_text
from textseg.inference.trained_model import TrainedModel
from textseg.recipe.loading import dump, required_components
from textseg.registry.discovery import installed_registry
from textseg.registry.kinds import TO_PREDICT
from textseg.registry.local_code import require_installed
from textseg.runs.experiment import build_segmenter
from textseg.runs.folder import RunFolder
from textseg.runs.task_record import write_task
from textseg.system.files import new_folder, write_atomically
from textseg.system.hub import CONFIGURATION, noting_models
from textseg.text.prompts import generate
from textseg.text.slice_text import MOST_TEXTS
from textseg.text.visibility import predicted_visibilities, template_visibility
from textseg.version import API_VERSION, __version__
from textseg.volumes.files import file_hash

STACK = 48  # slices of the largest stack whose positions are tried
POSITIONS = 16  # largest number of different texts for positions that a bundle holds


def export_bundle(folder: RunFolder, model: TrainedModel, output: Path, *, onnx: bool = False) -> str:
    """Write the model of a run as a bundle into the new folder `output`, or nothing; return a message for the user.

    With `onnx` its network is a graph for ONNX Runtime and OpenVINO. Raises RunError where `output` exists or can't be
    written, and where the graph would not be the same model.
    """
    needed = required_components(model.recipe, TO_PREDICT)
    used = [installed_registry().component(kind, spec.use) for kind, spec in needed]
    require_installed(used, "A bundle holds no code")
    with written_whole(output, "bundle") as bundle:
        agreement = _write_bundle(bundle, folder, model, onnx=onnx)
    return f"{output}\n{agreement}" if agreement else str(output)


@contextmanager
def written_whole(output: Path, kind: str) -> Iterator[Path]:
    """Yield a folder that becomes `output` when the block ends; raises RunError, which names the `kind`, on failure."""
    if output.exists():
        raise RunError(f"'{output}' exists. Name another folder for the {kind}.")
    try:
        with new_folder(output) as folder:
            yield folder
    except OSError as error:
        raise RunError(f"The {kind} '{output}' can't be written: {error.strerror or error}.") from error


def _write_bundle(bundle: Path, folder: RunFolder, model: TrainedModel, *, onnx: bool) -> Agreement | None:
    """Write the files of a bundle; the manifest comes last, with the hashes of all others."""
    write_atomically(bundle / "recipe.yaml", dump(model.recipe))
    write_task(bundle / "task.json", model.record)
    agreement, configurations = None, []
    if onnx:
        agreement = export_onnx(folder, model, bundle / ONNX)
    else:
        # The network's own state holds all weights; the segmenter's leaves out those that are read from elsewhere.
        network = cast(torch.nn.Module, model.segmenter.network)
        state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
        _write_tensors(bundle / WEIGHTS, state)
        configurations = _write_configurations(bundle / HUB, model)
    if model.generator is not None:
        _write_text(bundle, model)
    write_atomically(bundle / "README.md", model_card(folder, model, agreement, configurations))
    inside = sorted(path for path in bundle.rglob("*") if path.is_file())
    files = {path.relative_to(bundle).as_posix(): file_hash(path) for path in inside}
    needed = required_components(model.recipe, TO_PREDICT)
    used = [installed_registry().component(kind, spec.use) for kind, spec in needed]
    manifest = {
        "format": FORMAT,
        "name": model.name,
        "fingerprint": files[ONNX] if onnx else model.fingerprint,
        "textseg": __version__,
        "api": API_VERSION,
        "components": folder.read().get("components", {}),
        "plugins": {part.plugin: {"distribution": part.distribution, "version": part.version} for part in used},
        "files": files,
    }
    write_atomically(bundle / MANIFEST, manifest_text(manifest))
    return agreement


def _write_configurations(folder: Path, model: TrainedModel) -> list[str]:
    """Write the configurations that the network is built from, so that a bundle needs no hub; return their models."""
    with noting_models() as used:
        build_segmenter(model.recipe, installed_registry(), model.task)
    for source in used:
        write_atomically(folder / source.place / CONFIGURATION, (source.folder / CONFIGURATION).read_bytes())
    return sorted({source.name for source in used})


def _possible(model: TrainedModel) -> Iterator[str]:
    """Give every text that the model may read without an annotation, with the facts that its training knew.

    Reports are left out: they belong to patients. For an atlas without an order and with many structures, a person may
    name sets whose texts are not among them.
    """
    assert model.generator is not None
    assert model.recipe.prompts is not None
    generator, atlas = model.generator, model.atlas
    template = template_visibility(atlas, counted=model.recipe.prompts.template == "listed")
    positions = list(_positions(generator, template, model))
    stated = (visibility for visibility in atlas.visibilities() if visibility.source != "template")
    visibilities = (template, *stated, *predicted_visibilities(atlas))
    for visibility in (replace(plain, facts=facts) for facts in ({}, *model.record.facts) for plain in visibilities):
        for placed in (visibility, *(visibility.at(*position) for position in positions)):
            prompts = generate(generator, atlas, placed)
            yield from (prompts.holistic, *prompts.classwise)


def _positions(generator: PromptGenerator, template: Visibility, model: TrainedModel) -> Iterator[tuple[int, int]]:
    """Give positions (index, count) in a stack, one for each text that the generator writes for them."""
    seen = set()
    for count in range(1, STACK + 1):
        for index in range(count):
            prompts = generate(generator, model.atlas, template.at(index, count))
            if prompts not in seen:
                seen.add(prompts)
                yield index, count
            if len(seen) > POSITIONS:
                raise PromptError(
                    f"The prompt generator of '{model.name}' writes another text for each place in a stack, too many "
                    "to freeze in a bundle. Use a granularity without the place."
                )


def _write_text(folder: Path, model: TrainedModel) -> None:
    assert model.texts is not None
    texts = list(itertools.islice(dict.fromkeys(_possible(model)), MOST_TEXTS))  # those without facts come first
    table = model.texts(texts)
    rows = [table.index(text) for text in texts]
    counts = [table.token_counts[row] for row in rows]
    tokens = torch.cat([table.tokens[row, :count] for row, count in zip(rows, counts, strict=True)])
    write_atomically(folder / "texts.json", json.dumps(texts, ensure_ascii=False))
    tensors = {"tokens": tokens, "counts": torch.tensor(counts), "pooled": table.pooled[rows]}
    _write_tensors(folder / "text.safetensors", tensors)


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    write_atomically(path, save({name: value.clone().contiguous() for name, value in tensors.items()}))
