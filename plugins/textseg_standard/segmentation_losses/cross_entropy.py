"""The cross-entropy of pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Task


class CrossEntropy(nn.Module):
    """Cross-entropy, averaged over pixels."""

    def __init__(self, task: Task) -> None:
        super().__init__()

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return a scalar for logits [B, K, H, W] and class indices [B, H, W]."""
        # The mean is a separate call: inside F.cross_entropy it has no deterministic form on CUDA.
        return F.cross_entropy(logits, mask, reduction="none").mean()
