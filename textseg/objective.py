"""What training makes small: the terms of the loss, weighted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from textseg.contracts import Batch
from textseg.losses import SegmentationLoss
from textseg.model import Segmenter


class Objective(nn.Module):
    """Batch in, weighted terms of the loss out: the one call that Fabric wraps."""

    def __init__(
        self,
        segmenter: Segmenter,
        auxiliary: nn.ModuleDict,
        segmentation_loss: SegmentationLoss,
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.segmenter, self.auxiliary = segmenter, auxiliary
        self.segmentation_loss, self.weights = segmentation_loss, weights

    def forward(self, give_batch: Callable[[], Batch]) -> dict[str, Tensor]:
        batch = give_batch()
        output = self.segmenter(batch.image, batch.text)
        own = self.segmenter.optional("losses")  # replaces the default
        terms: dict[str, Tensor] = (
            self.segmentation_loss(output.logits, batch.mask)
            if own is None
            else own(output, batch, self.segmentation_loss)
        )
        terms = dict(terms)
        for name, loss in self.auxiliary.items():  # one that is called like a term of the segmentation loss adds to it
            term = self.weights[name] * loss(output, batch)
            terms[name] = terms[name] + term if name in terms else term
        return terms
