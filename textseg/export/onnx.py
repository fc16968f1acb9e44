"""Export of a trained model as an ONNX file, which is checked to give the same labels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from textseg.contracts import Task, TextFeatures, Visibility
from textseg.data.slice_geometry import PreparedVolume, SliceGeometry
from textseg.errors import RunError, TextsegError
from textseg.inference.onnx_networks import IMAGE, LOGITS, TEXT, OnnxNetwork, optional_package, text_inputs
from textseg.inference.trained_model import TrainedModel
from textseg.models.cost import empty_text
from textseg.models.segmenter import Segmenter
from textseg.registry.discovery import installed_registry
from textseg.runs.folder import RunFolder
from textseg.system.messages import counted
from textseg.text.visibility import template_visibility

SAME = 0.9999  # of the labels must be equal
SCANS, SLICES = 2, 8  # scans of the run, and slices of each, that are compared
OPSET = 18


@dataclass(frozen=True)
class Agreement:
    """Differences between an exported network and torch."""

    scans: int  # real ones; 0 where the data set is not at hand, and noise was taken
    slices: int
    difference: float  # the largest between two logits
    equal: float  # share of the pixels that got the same label

    def __str__(self) -> str:
        scans = counted(self.scans, "scan") if self.scans else "noise, for want of the run's scans"
        return (
            f"On {self.slices} slices of {scans}, {100 * self.equal:.4f} % of the labels are those of torch, and "
            f"logits differ by at most {self.difference:.1e}."
        )


def export_onnx(folder: RunFolder, model: TrainedModel, path: Path) -> Agreement:
    """Write the network of a model with all its weights to `path`, and compare it with torch on scans of its run.

    Raises RunError for a network that can't be written as a graph for any number of slices, and for one that gives
    other labels there; the file is then of no use.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        optional_package(package)
    write_graph(model.segmenter, model.task, path, model.name)
    exported = OnnxNetwork(path, uses_text=model.segmenter.uses_text)
    agreement = compare(model, replace(model, segmenter=Segmenter(exported)), list(_scans(folder, model)))
    if agreement.equal < SAME:
        raise RunError(f"The ONNX form of '{model.name}' is not the model: {agreement} Use --to bundle.")
    return agreement


class _Graph(nn.Module):
    """A segmenter whose inputs and output are tensors, as ONNX needs it."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, image: Tensor, *text: Tensor) -> Tensor:
        """Compute logits [B, K, H, W] from an image [B, C, H, W] and the four tensors of `TextFeatures`."""
        logits: Tensor = self.segmenter(image, TextFeatures(*text) if text else None).logits
        return logits


def write_graph(segmenter: Segmenter, task: Task, path: Path, name: str) -> None:
    """Write the graph of a segmenter, for any number of slices of the size of its task, into an ONNX file.

    Raises RunError, in which the model is called `name`, where there is no such graph.
    """
    if segmenter.batching != "slice":
        raise RunError(
            f"'{name}' reads whole volumes, and its graph would hold for one number of slices only. Use --to "
            "bundle, which runs it with torch."
        )
    if segmenter.reads_geometry or segmenter.context_slices > 1:
        read = "the spacing and the position" if segmenter.reads_geometry else "the neighbours"
        raise RunError(
            f"'{name}' reads {read} of each slice, which programs that run an ONNX file on single slices can't give. "
            "Use --to bundle, which runs it with torch."
        )
    slices = 2  # one would be taken for a constant
    image = torch.rand(slices, task.image_channels, *task.image_size)
    text = tuple(text_inputs(empty_text(task, image.device, slices)).values()) if segmenter.uses_text else ()
    names = [IMAGE, *(TEXT if text else ())]
    batch = torch.export.Dim("slices")
    free: tuple[Any, ...] = ({0: batch}, *([tuple({0: batch} for _ in text)] if text else []))
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(_Graph(segmenter).eval(), (image, *text), dynamic_shapes=free)
            written = torch.onnx.export(
                program, input_names=names, output_names=[LOGITS], opset_version=OPSET, dynamo=True, verbose=False
            )
            assert written is not None
            written.save(str(path), external_data=False)
        except Exception as error:  # what has no form in ONNX shows as any kind of error
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
            raise RunError(
                f"The network of '{name}' can't be written as ONNX: {reason[:300]}. Use --to bundle, which runs "
                "it with torch."
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log and the warnings of torch's exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def compare(ours: TrainedModel, theirs: TrainedModel, scans: Sequence[PreparedVolume]) -> Agreement:
    """Compare two forms of one model on slices of scans, or on noise; the second gets two slices at a time."""
    height, width = ours.task.image_size
    image = torch.rand(SLICES, ours.task.image_channels, height, width, generator=torch.Generator().manual_seed(0))
    noise = PreparedVolume(image, SliceGeometry(0, 0, height, width, (height, width)), (1.0, 1.0, 1.0), ())
    difference, equal, pixels, slices = 0.0, 0, 0, 0
    for prepared in scans or [noise]:
        for visibility in _visibilities(ours):
            expected = torch.cat(list(ours.logits(prepared, visibility)))
            logits = torch.cat(list(theirs.logits(prepared, visibility, batch_size=2)))
            difference = max(difference, float((expected - logits).abs().max()))
            equal += int((expected.argmax(1) == logits.argmax(1)).sum())
            pixels += expected[:, 0].numel()
        slices += len(prepared.image)
    return Agreement(len(scans), slices, difference, equal / pixels)


def _visibilities(model: TrainedModel) -> list[Visibility | None]:
    """Return two visibilities, so that a network that ignores its text is noticed."""
    if model.recipe.prompts_read is None:
        return [None]
    return [template_visibility(model.atlas), *list(model.atlas.visibilities())[1:][-1:]]


def _scans(folder: RunFolder, model: TrainedModel) -> Iterator[PreparedVolume]:
    """Give the middle slices of some test scans; none if the data set is not available."""
    spec, test = model.recipe.dataset, set(folder.read_split().get("test", ()))
    try:
        cases = installed_registry().build("dataset", spec.use, settings=spec.settings).cases()
        for case in [case for case in cases if case.patient in test][:SCANS]:
            prepared = model.prepare(model.read(case.image))
            first = max(0, (len(prepared.image) - SLICES) // 2)
            yield replace(prepared, image=prepared.image[first : first + SLICES])
    except TextsegError:
        return
