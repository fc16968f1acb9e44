"""Slices of a case with prompts; for `predicted` ones, a first pass of the model finds the structures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from textseg.contracts import Atlas, Source, Visibility
from textseg.data.preparation import PreparedCase
from textseg.data.slice_geometry import highest
from textseg.data.slices import SliceStack
from textseg.inference.slices import slice_logits
from textseg.models.segmenter import Segmenter
from textseg.runs.experiment import Experiment
from textseg.system.files import write_atomically
from textseg.system.user_files import csv_text
from textseg.text.visibility import ground_truth_visibility, predicted_visibilities, statement

SMALL = 0.25  # share of the usual size in its group, below which confidence is reduced in proportion to size


def prompted_slices(
    experiment: Experiment, segmenter: Segmenter, prepared: PreparedCase, source: Source | None, device: torch.device
) -> tuple[SliceStack, Visibility | None]:
    """Return the slices of a case with the prompts of a source, and the visibility that these state.

    The visibility is None without text, and if it differs between slices. `segmenter` is in evaluation mode.
    """
    if source is None or experiment.text is None:
        return experiment.slices(prepared, None), None
    if source != "predicted":
        first = experiment.text.prompts[prepared.case.id][source][0].visibility
        return experiment.slices(prepared, source), first if first.scope == "volume" else None
    assert experiment.recipe.prompts is not None
    stack, batch_size = experiment.slices(prepared, "template"), experiment.recipe.training.batch_size
    logits = slice_logits(segmenter, stack, device=device, batch_size=batch_size)
    confidence = find_structures(logits, experiment.atlas)
    threshold, facts = experiment.recipe.prompts.predicted_threshold, prepared.case.facts
    visibility = predicted_visibility(confidence, experiment.atlas, threshold, facts)
    return experiment.slices_stating(prepared, visibility), visibility


def find_structures(logits: Iterable[Tensor], atlas: Atlas) -> dict[str, float]:
    """Return the confidence of a model in each structure of a volume, from 0 to 1; `logits` are its batches.

    It is the mean probability over the voxels of the structure. A structure much smaller than the others of its group,
    such as a stray island, counts in proportion to its size.
    """
    finder = StructureFinder(atlas)
    for batch in logits:
        finder.add(batch)
    return finder.confidence()


class StructureFinder:
    """The confidence of a model in each structure, computed from one batch of slices after another."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        self.voxels = torch.zeros(atlas.class_count, dtype=torch.float64)
        self.probability = torch.zeros(atlas.class_count, dtype=torch.float64)

    def add(self, logits: Tensor) -> None:
        """Add the logits [B, K, H, W] of further slices."""
        values, indices = highest(logits.unbind(1))
        # The softmax of the highest class is 1 / sum(exp(logit - highest)); class by class it needs little memory.
        total = torch.zeros_like(values)
        for plane in logits.unbind(1):
            total += (plane - values).exp()
        indices, probability = indices.flatten().cpu(), (1 / total).flatten().double().cpu()
        self.voxels += torch.bincount(indices, minlength=self.atlas.class_count)
        self.probability += torch.bincount(indices, probability, minlength=self.atlas.class_count)

    def confidence(self) -> dict[str, float]:
        """Return the confidence in each structure, from 0 to 1: see `find_structures`."""
        mean = self.probability / self.voxels.clamp(min=1)
        sizes = {structure.name: float(self.voxels[structure.index]) for structure in self.atlas.structures}
        sure = {structure.name: float(mean[structure.index]) for structure in self.atlas.structures}
        # From these sizes on, the confidence is not reduced.
        full = {name: SMALL * _usual_size(name, sizes, self.atlas) for name in sizes}
        return {name: sure[name] * min(1.0, sizes[name] / full[name]) for name in sizes}


def _usual_size(name: str, sizes: Mapping[str, float], atlas: Atlas) -> float:
    """Return the median size of the structures found in the group; for a structure without a group, its own size."""
    group = next((group for group in atlas.groups.values() if name in group), (name,))
    found_sizes = [sizes[member] for member in group if sizes[member]]
    return float(np.median(found_sizes)) if found_sizes else 1.0


def predicted_visibility(
    confidence: Mapping[str, float], atlas: Atlas, threshold: float, facts: Mapping[str, str] = {}
) -> Visibility:
    """Return the visibility that agrees most with the confidence of a first pass.

    In an ordered atlas this is the part of the sequence with the greatest sum of (confidence - threshold). It includes
    a gap between certain structures, and leaves out an uncertain end. If no structure is found, it names every
    structure, like the template.
    """
    margin = {name: confidence[name] - threshold for name in (atlas.sequence or atlas.names)}
    best, agreement = atlas.names, 0.0
    for visibility in predicted_visibilities(atlas, facts):
        gained = sum(margin.get(name, 0.0) for name in visibility.visible)
        if gained > agreement:
            best, agreement = visibility.visible, gained
    return Visibility(best, source="predicted", scope="volume", facts=facts)


def write_visible(path: Path, atlas: Atlas, visibilities: Sequence[tuple[PreparedCase, Visibility]]) -> dict[str, int]:
    """Write the stated and the annotated structures of each volume; return how often the ends of the row agree.

    The columns `case` and `visible` are those that `textseg evaluate --visible` reads.
    """
    row, rows = atlas.sequence or atlas.names, []
    right = {"cases": 0, "first_right": 0, "last_right": 0, "all_right": 0}
    for prepared, visibility in visibilities:
        present = {index for plane in prepared.present for index in plane}
        annotated = ground_truth_visibility(atlas, present).visible
        rows.append((prepared.case.id, statement(atlas, visibility.visible), statement(atlas, annotated)))
        levels, wanted = ([n for n in row if n in names] for names in (visibility.visible, annotated))
        right["cases"] += 1
        right["first_right"] += levels[:1] == wanted[:1]
        right["last_right"] += levels[-1:] == wanted[-1:]
        right["all_right"] += levels == wanted
    write_atomically(path, csv_text(("case", "visible", "annotated"), rows))
    return right
