"""The cross-entropy of pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Task
from textseg.models import mean_of_counted


class CrossEntropy(nn.Module):
    """Cross-entropy, averaged over pixels."""

    reads_ignored = True

    def __init__(self, task: Task) -> None:
        super().__init__()

    def forward(self, logits: Tensor, mask: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Return a scalar for logits [B, K, H, W] and class indices [B, H, W]."""
        # The mean is a separate call: inside F.cross_entropy it has no deterministic form on CUDA.
        return mean_of_counted(F.cross_entropy(logits, mask, reduction="none"), ignored)
