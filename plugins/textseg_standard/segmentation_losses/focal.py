"""The focal loss (Lin 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Task
from textseg.errors import RecipeError
from textseg.models import mean_of_counted


class Focal(nn.Module):
    """Cross-entropy in which correct pixels count less, averaged over pixels.

    This is K times the mean of MONAI's `FocalLoss(use_softmax=True)`, which also averages over the K classes, though
    only one of them has a loss at each pixel. MONAI's `DiceFocalLoss(softmax=True)` takes a focal loss of sigmoids.

    Args:
        task: not needed.
        gamma: exponent of the doubt, one minus the probability of the annotated class; 0 gives cross-entropy.

    Raises RecipeError for a negative gamma.
    """

    reads_ignored = True

    def __init__(self, task: Task, *, gamma: float = 2.0) -> None:
        super().__init__()
        if gamma < 0:
            raise RecipeError(f"focal: gamma is {gamma}, but must not be negative.")
        self.gamma = gamma

    def forward(self, logits: Tensor, mask: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Return a scalar for logits [B, K, H, W] and class indices [B, H, W]."""
        cross_entropy = F.cross_entropy(logits, mask, reduction="none")  # [B, H, W]
        doubt = -torch.expm1(-cross_entropy)  # 1 - p, exact where p is nearly 1
        # 0 ** gamma has no gradient for gamma < 1
        return mean_of_counted(doubt.clamp(min=1e-12) ** self.gamma * cross_entropy, ignored)
