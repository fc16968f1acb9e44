"""The segmentation loss of a recipe: its terms and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from textseg.contracts import IGNORED, ReadsIgnored, Task
from textseg.recipe.schema import LossTerm, written_out
from textseg.registry.discovery import Registry, installed_registry
from textseg.system.distributed import count, summed

CERTAIN = 50.0  # logit of the background in ignored pixels: its softmax is 1 and its cross-entropy 0 in float32


class SegmentationTerms(nn.Module):
    """The terms of a segmentation loss by name, each with its weight.

    Ignored pixels reach each term as background that is predicted with certainty, so no term gives them a gradient, and
    the logits there change no value. `ignores` is False for masks without such pixels, which saves time.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float], *, ignores: bool = True) -> None:
        super().__init__()
        self.terms, self.weights, self.ignores = nn.ModuleDict(terms), dict(weights), ignores

    def forward(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms by name, scalars in float32, for logits [B, K, H, W] and a mask [B, H, W]."""
        ignored = mask == IGNORED if self.ignores else None
        classes = mask if ignored is None else mask.masked_fill(ignored, 0)
        terms = {}
        with torch.autocast(logits.device.type, enabled=False):
            for name, weight in self.weights.items():
                term = self.terms[name]
                further = {"ignored": ignored} if isinstance(term, ReadsIgnored) and term.reads_ignored is True else {}
                # Each term gets a copy of its own, so that their gradients are added in the precision of the model.
                terms[name] = weight * term(_certain(logits.float(), ignored), classes, **further)
        return terms


def _certain(logits: Tensor, ignored: Tensor | None) -> Tensor:
    """Return logits [B, K, H, W] that predict the background with certainty in ignored pixels [B, H, W]."""
    if ignored is None:
        return logits
    background = logits.new_full((1, logits.shape[1], 1, 1), -CERTAIN)
    background[:, 0] = CERTAIN
    return torch.where(ignored[:, None], background, logits)


def mean_of_counted(pixels: Tensor, ignored: Tensor | None) -> Tensor:
    """Return the mean of losses [B, ..., H, W] over the pixels that are not ignored [B, H, W], 0 without such pixels.

    The losses of ignored pixels must be 0. Over several processes, pixels count alike.
    """
    if ignored is None:
        return pixels.mean()
    counted = summed((~ignored).sum().float()) / count()
    return pixels.sum() / (counted * (pixels.numel() // ignored.numel())).clamp(min=1)


def segmentation_loss(
    terms: Mapping[str, Any], task: Task, registry: Registry | None = None, *, ignores: bool = True
) -> SegmentationTerms:
    """Return a segmentation loss, given as in a recipe: `segmentation_loss({"dice": 1, "focal": {"gamma": 3}}, task)`.

    The components are those of `registry`, by default the installed ones. `ignores` as in `SegmentationTerms`. Raises
    RecipeError for wrong settings, and PluginError for a term that is not installed.
    """
    registry = installed_registry() if registry is None else registry
    specs = TypeAdapter(dict[str, LossTerm]).validate_python(written_out(dict(terms)))
    used = {name: spec for name, spec in specs.items() if spec.weight}
    built = {
        name: registry.build("segmentation_loss", spec.use, task, settings=spec.settings) for name, spec in used.items()
    }
    return SegmentationTerms(built, {name: spec.weight for name, spec in used.items()}, ignores=ignores)
