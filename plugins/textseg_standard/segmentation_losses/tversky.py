"""The Tversky loss (Salehi 2017), with the exponent of the focal Tversky loss (Abraham 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from textseg.contracts import Task
from textseg.errors import RecipeError
from textseg.models import summed


class Tversky(nn.Module):
    """One minus the Tversky index of the batch, averaged over the structures; sums run over the batch of all processes.

    With alpha and beta 0.5 it is the Dice loss. A beta above alpha counts a missed pixel more than a spurious one.

    Args:
        task: not needed.
        alpha: weight of spurious pixels.
        beta: weight of missed pixels.
        gamma: exponent of the loss of each structure; below 1, small errors count more.
        smooth: pixels added to both sides of the ratio, as in `dice`.

    Raises RecipeError for weights that are negative or both 0, and for a gamma or smooth that is not above 0.
    """

    def __init__(
        self, task: Task, *, alpha: float = 0.3, beta: float = 0.7, gamma: float = 1.0, smooth: float = 1.0
    ) -> None:
        super().__init__()
        if min(alpha, beta) < 0 or not alpha + beta:
            raise RecipeError(f"tversky: alpha is {alpha} and beta {beta}, but none may be negative, nor both 0.")
        if min(gamma, smooth) <= 0:
            raise RecipeError(f"tversky: gamma is {gamma} and smooth {smooth}, but both must be above 0.")
        self.alpha, self.beta, self.gamma, self.smooth = alpha, beta, gamma, smooth

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return a scalar for logits [B, K, H, W] and class indices [B, H, W]."""
        probabilities = logits.softmax(1)
        classes = torch.arange(logits.shape[1], device=mask.device)[:, None, None]
        reference = mask[:, None] == classes  # [B, K, H, W]
        shared = summed(torch.where(reference, probabilities, 0).sum((0, 2, 3)))  # [K]
        spurious = summed(probabilities.sum((0, 2, 3))) - shared
        missed = summed(reference.sum((0, 2, 3)).float()) - shared
        index = (shared + self.smooth) / (shared + self.alpha * spurious + self.beta * missed + self.smooth)
        loss = (1 - index[1:]).clamp(min=1e-7)  # rounding may leave less than 0, which has no power
        return (loss**self.gamma).mean()
