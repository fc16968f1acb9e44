"""The segmentation loss of a recipe: its terms and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from textseg.contracts import Task
from textseg.recipe.schema import LossTerm, written_out
from textseg.registry.discovery import Registry, installed_registry


class SegmentationTerms(nn.Module):
    """The terms of a segmentation loss by name, each with its weight."""

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.terms, self.weights = nn.ModuleDict(terms), dict(weights)

    def forward(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms by name, scalars in float32, for logits [B, K, H, W] and a mask [B, H, W]."""
        with torch.autocast(logits.device.type, enabled=False):
            # Each term gets a copy of its own, so that their gradients are added in the precision of the model.
            return {name: weight * self.terms[name](logits.float(), mask) for name, weight in self.weights.items()}


def segmentation_loss(terms: Mapping[str, Any], task: Task, registry: Registry | None = None) -> SegmentationTerms:
    """Return a segmentation loss, given as in a recipe: `segmentation_loss({"dice": 1, "focal": {"gamma": 3}}, task)`.

    The components are those of `registry`, by default the installed ones. Raises RecipeError for wrong settings, and
    PluginError for a term that is not installed.
    """
    registry = installed_registry() if registry is None else registry
    specs = TypeAdapter(dict[str, LossTerm]).validate_python(written_out(dict(terms)))
    used = {name: spec for name, spec in specs.items() if spec.weight}
    built = {
        name: registry.build("segmentation_loss", spec.use, task, settings=spec.settings) for name, spec in used.items()
    }
    return SegmentationTerms(built, {name: spec.weight for name, spec in used.items()})
