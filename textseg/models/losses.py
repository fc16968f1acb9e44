"""The terms of the segmentation loss: Dice, focal, cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.system.distributed import summed


def dice_loss(logits: Tensor, mask: Tensor, smooth: float = 1.0) -> Tensor:
    """Return one minus the soft Dice of the batch, averaged over the K - 1 structures.

    Sums run over the batch of all processes, in float32 (float16 overflows at 384 x 384). `smooth` gives a perfect
    score to a structure that is neither present nor predicted; without it, a perfect prediction of a slice with few
    structures would have a high loss.

    Args:
        logits: [B, K, H, W].
        mask: [B, H, W] class indices.
        smooth: pixels added to both sides of the ratio.
    """
    probabilities = logits.float().softmax(1)
    classes = torch.arange(logits.shape[1], device=mask.device)[:, None, None]
    reference = mask[:, None] == classes  # [B, K, H, W]; an eighth of the memory of `one_hot`
    shared = summed(torch.where(reference, probabilities, 0).sum((0, 2, 3)))  # [K]
    total = summed(probabilities.sum((0, 2, 3)) + reference.sum((0, 2, 3)))
    return 1 - ((2 * shared + smooth) / (total + smooth))[1:].mean()


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the focal loss (Lin 2017), in which correct pixels count less, averaged over pixels, in float32."""
    cross_entropy = F.cross_entropy(logits.float(), mask, reduction="none")  # [B, H, W]
    doubt = -torch.expm1(-cross_entropy)  # 1 - p, exact where p is nearly 1
    return (doubt.clamp(min=1e-12) ** gamma * cross_entropy).mean()  # 0 ** gamma has no gradient where gamma < 1


class SegmentationLoss(nn.Module):
    """The weighted sum of Dice, focal and cross-entropy; without weights, of Dice and focal."""

    def __init__(
        self, *, dice: float = 0.0, focal: float = 0.0, cross_entropy: float = 0.0, focal_gamma: float = 2.0
    ) -> None:
        super().__init__()
        weights = {"dice": dice, "focal": focal, "cross_entropy": cross_entropy}
        self.weights = {name: weight for name, weight in weights.items() if weight} or {"dice": 1.0, "focal": 1.0}
        self.focal_gamma = focal_gamma

    def forward(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms by name, scalars in float32, for logits [B, K, H, W] and a mask [B, H, W]."""
        terms = {
            "dice": lambda: dice_loss(logits, mask),
            "focal": lambda: focal_loss(logits, mask, self.focal_gamma),
            # The mean is a separate call: inside F.cross_entropy it has no deterministic form on CUDA.
            "cross_entropy": lambda: F.cross_entropy(logits.float(), mask, reduction="none").mean(),
        }
        return {name: weight * terms[name]() for name, weight in self.weights.items()}
