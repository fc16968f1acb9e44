"""What training makes small: the terms of the loss, weighted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from textseg.contracts import Batch, SegmenterOutput
from textseg.errors import RunError
from textseg.models.losses import SegmentationLoss
from textseg.models.segmenter import Segmenter
from textseg.runs.folder import first_line


class Objective(nn.Module):
    """Batch in, weighted terms of the loss out: the one call that Fabric wraps."""

    def __init__(
        self,
        segmenter: Segmenter,
        auxiliary: nn.ModuleDict,
        segmentation_loss: SegmentationLoss,
        weights: Mapping[str, float],
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.segmenter, self.auxiliary = segmenter, auxiliary
        self.segmentation_loss, self.weights = segmentation_loss, weights
        # Of the function, not of the module: names in checkpoints stay, and validation runs what is not compiled.
        self.compiled = torch.compile(segmenter.forward) if compiled else None

    def forward(self, give_batch: Callable[[], Batch]) -> dict[str, Tensor]:
        batch = give_batch()
        output = self._segment(batch)
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

    def _segment(self, batch: Batch) -> SegmenterOutput:
        output: SegmenterOutput
        if self.compiled is None:
            output = self.segmenter(batch.image, batch.text)
            return output
        from torch._dynamo.exc import TorchDynamoException

        try:
            output = self.compiled(batch.image, batch.text)
        except TorchDynamoException as error:
            raise RunError(
                f"training.compile: the model could not be compiled here: {first_line(error)} Install the C++ compiler "
                "or Triton that torch.compile needs, or leave training.compile out."
            ) from error
        return output
