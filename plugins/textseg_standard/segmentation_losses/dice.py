"""The soft Dice loss (Milletari 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from textseg.contracts import Task
from textseg.models import summed


class Dice(nn.Module):
    """One minus the soft Dice of the batch, averaged over the structures.

    Sums run over the batch of all processes, in float32 (float16 overflows at 384 x 384).

    Args:
        task: not needed.
        smooth: pixels added to both sides of the ratio. It gives a perfect score to a structure that is neither present
            nor predicted; without it, a perfect prediction of a slice with few structures would have a high loss.
    """

    def __init__(self, task: Task, *, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return a scalar for logits [B, K, H, W] and class indices [B, H, W]."""
        probabilities = logits.softmax(1)
        classes = torch.arange(logits.shape[1], device=mask.device)[:, None, None]
        reference = mask[:, None] == classes  # [B, K, H, W]; an eighth of the memory of `one_hot`
        shared = summed(torch.where(reference, probabilities, 0).sum((0, 2, 3)))  # [K]
        total = summed(probabilities.sum((0, 2, 3)) + reference.sum((0, 2, 3)))
        return 1 - ((2 * shared + self.smooth) / (total + self.smooth))[1:].mean()
