"""The boundary loss (Kervadec 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from textseg.contracts import Task
from textseg.errors import RecipeError
from textseg.models import mean_of_counted


class Boundary(nn.Module):
    """The mean signed distance of predicted pixels from the annotated border: negative inside, positive outside.

    A structure that a slice does not show adds nothing there. Use it beside another term, which teaches the model what
    is absent.

    Args:
        task: not needed.
        reach: in pixels; what lies further from a border counts as if it lay there. The distances are computed on the
            CPU, in the box of each structure and this margin.

    Raises RecipeError for a reach below 1.
    """

    reads_ignored = True

    def __init__(self, task: Task, *, reach: int = 20) -> None:
        super().__init__()
        if reach < 1:
            raise RecipeError(f"boundary: reach is {reach}, but must be at least 1 pixel.")
        self.reach = reach

    def forward(self, logits: Tensor, mask: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Return a scalar for logits [B, K, H, W] and class indices [B, H, W]."""
        labels = mask.cpu().numpy()
        distances = np.stack([signed_distances(slice_, logits.shape[1], self.reach) for slice_ in labels])
        return mean_of_counted(logits.softmax(1)[:, 1:] * torch.from_numpy(distances).to(logits.device), ignored)


def signed_distances(mask: np.ndarray, class_count: int, reach: int) -> np.ndarray:
    """Return the distance of each pixel from the border of each structure, [K-1, H, W] for a mask [H, W].

    Inside a structure it is negative, and 0 in the pixels at its border. It is 0 everywhere for a structure that is
    absent or fills the slice, and never further from 0 than `reach`.
    """
    distances = np.zeros((class_count - 1, *mask.shape), np.float32)
    boxes: Sequence[tuple[slice, ...] | None] = ndimage.find_objects(mask, max_label=class_count - 1)
    for index, box in enumerate(boxes):
        if box is None:
            continue
        near = tuple(slice(max(0, side.start - reach - 1), side.stop + reach + 1) for side in box)
        inside = mask[near] == index + 1
        if inside.size == mask.size and inside.all():
            continue
        outwards = ndimage.distance_transform_edt(~inside)
        inwards = ndimage.distance_transform_edt(np.pad(inside, 1, constant_values=False))[1:-1, 1:-1]
        distances[index] = reach
        distances[index][near] = np.clip(np.where(inside, 1 - inwards, outwards), -reach, reach)
    return distances
