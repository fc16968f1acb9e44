"""The cross-entropy of the hardest pixels (nnU-Net's TopKLoss; Wu 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Task
from textseg.errors import RecipeError


class TopKCrossEntropy(nn.Module):
    """Cross-entropy, averaged over the pixels of the batch where it is highest.

    Args:
        task: not needed.
        share: the share of the pixels that counts.

    Raises RecipeError for a share that is not above 0 and at most 1.
    """

    reads_ignored = True

    def __init__(self, task: Task, *, share: float = 0.1) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise RecipeError(f"top_k_cross_entropy: share is {share}, but must be above 0 and at most 1.")
        self.share = share

    def forward(self, logits: Tensor, mask: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Return a scalar for logits [B, K, H, W] and class indices [B, H, W]."""
        pixels = F.cross_entropy(logits, mask, reduction="none").flatten()
        counted = len(pixels) if ignored is None else int((~ignored).sum())  # the loss of an ignored pixel is 0
        return pixels.topk(max(1, int(self.share * counted)), sorted=False).values.mean()
