"""The centreline Dice loss (Shit 2021)."""

from __future__ import annotations

import torch
from monai.losses.cldice import soft_skel
from torch import Tensor, nn

from textseg.contracts import Task
from textseg.errors import RecipeError, suggestion
from textseg.models import summed


class ClDice(nn.Module):
    """One minus the Dice of soft centrelines, averaged over structures: for structures that must not be interrupted.

    Sums run over the batch of all processes.

    Args:
        task: gives the names of the structures.
        structures: structures with a centreline, such as the spinal canal; without names, all.
        iterations: steps of thinning; at least half the width of the structures in pixels.
        smooth: pixels added to both sides of the ratios, as in `dice`.

    Raises RecipeError for an unknown structure, and for fewer than 1 iteration.
    """

    def __init__(
        self, task: Task, *, structures: tuple[str, ...] = (), iterations: int = 3, smooth: float = 1.0
    ) -> None:
        super().__init__()
        names = task.atlas.names
        if unknown := [name for name in structures if name not in names]:
            raise RecipeError(f"cldice: there is no structure '{unknown[0]}'.{suggestion(unknown[0], names)}")
        if iterations < 1:
            raise RecipeError(f"cldice: iterations is {iterations}, but must be at least 1.")
        self.classes = [task.atlas[name].index for name in structures or names]
        self.iterations, self.smooth = iterations, smooth

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return a scalar for logits [B, K, H, W] and class indices [B, H, W]."""
        predicted = logits.softmax(1)[:, self.classes]
        classes = torch.tensor(self.classes, device=mask.device)[:, None, None]
        annotated = (mask[:, None] == classes).to(predicted.dtype)
        thin, reference = soft_skel(predicted, self.iterations), soft_skel(annotated, self.iterations)
        precision, sensitivity = self._share(thin, annotated), self._share(reference, predicted)
        return 1 - (2 * precision * sensitivity / (precision + sensitivity)).mean()

    def _share(self, line: Tensor, area: Tensor) -> Tensor:
        """Return the share of each centreline that lies in an area; [B, N, H, W] twice -> [N]."""
        inside, whole = summed((line * area).sum((0, 2, 3))), summed(line.sum((0, 2, 3)))
        return (inside + self.smooth) / (whole + self.smooth)
