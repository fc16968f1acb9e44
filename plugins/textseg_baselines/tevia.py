"""TeViA (Zeng 2025): alignment of text and image, and visual prototypes of the structures.

From "Harnessing Text Insights with Visual Alignment for Medical Image Segmentation", by its description. The network is
that of Ariadne's Thread; the paper has one foreground class, and what follows from having K - 1 structures is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Batch, SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError
from textseg.system import Progress
from textseg_baselines.convnext import STEM_STRIDE, ConvNeXt, fetch_weights, find_weights
from textseg_baselines.guide_decoder import GuideDecoder, SubPixelHead, guide_decoders, spoken


@dataclass(frozen=True, kw_only=True)
class TeViAOutput(SegmenterOutput):
    """The output of TeViA with the inputs of the alignment; E is the width of the finest level."""

    decoded: Tensor  # [B, E, H / 4, W / 4], what the head reads
    projected_text: tuple[Tensor, ...]  # [B, K-1, E] of each guided level


class TeViA(nn.Module):
    """Ariadne's Thread with text that is aligned to the image, and visual prototypes of the structures.

    - A learnable prompt p turns the text T into T + p T.
    - The holistic prompt guides as in Ariadne's Thread. The prompts of the structures take part in the alignment alone,
      so at test time they change nothing.
    - v_k is the mean of the map that the head reads over the annotated pixels of structure k. In training, the
      projected prompts of the structures that a slice shows are drawn to their v_k by the cosine, in every guided
      level. v_k has no gradient there: it supervises the projections of the text.
    - The prototype of structure k follows the v_k of each batch with a momentum. After a share of the epochs, each
      query and key of the attention to the text is weighed by one plus its cosine with the nearest prototype, below
      zero counted as zero. The projection that takes them to the prototypes is the one that takes the text there.

    Processes that train together have the same prototypes. Renumbered slices (`prompts.renumbering`) do not change
    them.

    Args:
        task: gives C, K, T and D.
        widths: channels of the encoder's levels, finest first, at strides 4, 8, 16 and so on.
        depths: the encoder's blocks in each level.
        text_tokens: number of tokens to which the holistic prompt is reduced at each guided level, coarsest first.
        self_heads: attention heads among image positions; must divide every width except the first.
        heads: attention heads from image to text; must divide every width except the first.
        alignment_weight: weight of the alignment in the loss.
        momentum: share of a prototype that stays in a step.
        prototype_start: share of the epochs after which prototypes are active; 0.2 of 100 is the paper's epoch 20.
        weights: weights of the encoder, a name on the Hugging Face hub or a folder; random by default.
        revision: branch, tag or commit on the hub.
        pickled_weights: read weights in PyTorch's older format if there are no safetensors.

    Raises RecipeError for a setting out of range, a recipe without text, and weights that do not fit.
    """

    uses_text = True
    prototypes: Tensor  # [K-1, E]
    known: Tensor  # [K-1] bool, the structures that training has seen
    weighing: Tensor  # bool, whether prototypes weigh

    def __init__(
        self,
        task: Task,
        *,
        widths: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (3, 3, 9, 3),
        text_tokens: tuple[int, ...] = (24, 12, 9),
        self_heads: int = 1,
        heads: int = 4,
        alignment_weight: float = 0.1,
        momentum: float = 0.99,
        prototype_start: float = 0.2,
        weights: str | None = None,
        revision: str | None = None,
        pickled_weights: bool = False,
    ) -> None:
        super().__init__()
        if alignment_weight < 0:
            raise RecipeError(f"tevia: alignment_weight is {alignment_weight}, but must not be below 0.")
        for name, share in (("momentum", momentum), ("prototype_start", prototype_start)):
            if not 0 <= share <= 1:
                raise RecipeError(f"tevia: {name} is {share}, but must lie between 0 and 1.")
        self.alignment_weight, self.momentum, self.prototype_start = alignment_weight, momentum, prototype_start
        self.decoders = guide_decoders(
            "tevia", task, widths=widths, depths=depths, text_tokens=text_tokens, self_heads=self_heads, heads=heads
        )
        self.encoder = ConvNeXt(
            task.image_channels, widths, depths, find_weights(weights, revision, pickled=pickled_weights)
        )
        self.size_multiple = self.encoder.size_multiple
        self.head = SubPixelHead(widths[0], task.class_count)
        self.structures = task.class_count - 1
        assert task.text_length is not None
        assert task.text_size is not None
        self.prompt = nn.Parameter(torch.zeros(task.text_length + self.structures, task.text_size))
        self.to_visual = nn.ModuleList(nn.Linear(width, widths[0]) for width in reversed(widths[1:]))
        self.register_buffer("prototypes", torch.zeros(self.structures, widths[0]))
        self.register_buffer("known", torch.zeros(self.structures, dtype=torch.bool))
        self.register_buffer("weighing", torch.tensor(False))

    @classmethod
    def fetch(
        cls,
        *,
        progress: Progress,
        weights: str | None = None,
        revision: str | None = None,
        pickled_weights: bool = False,
        **_: Any,
    ) -> str:
        """Download the encoder's weights, and return a sentence on the result. Raises RecipeError."""
        return fetch_weights(weights, revision, pickled=pickled_weights, progress=progress)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Activate the prototypes once their share of the epochs is reached."""
        self.weighing.fill_(epoch >= round(self.prototype_start * epochs))

    def forward(self, image: Tensor, text: TextFeatures | None) -> TeViAOutput:
        """[B, C, H, W], text -> logits [B, K, H, W]. Raises ValueError without text, RecipeError without class-wise."""
        tokens = spoken(text)
        if text is None or text.classwise is None:
            raise RecipeError("tevia needs class-wise text features, and the prompts of this recipe have none.")
        prompted = torch.cat([tokens, text.classwise], dim=1) * (1 + self.prompt)  # [B, T + K-1, D]
        tokens, structures = prompted[:, : -self.structures], prompted[:, -self.structures :]
        *skips, feature = self.encoder(image)
        projected = []
        decoders = cast(Iterable[GuideDecoder], self.decoders)
        for decoder, to_visual, skip in zip(decoders, self.to_visual, reversed(skips), strict=True):
            guide = decoder.guide(tokens, structures)  # [B, M + K-1, C_l]
            projected.append(to_visual(guide[:, -self.structures :]))
            feature = decoder(feature, skip, guide[:, : -self.structures], partial(self._reweighted, to_visual))
        return TeViAOutput(self.head(feature), decoded=feature, projected_text=tuple(projected))

    def _reweighted(self, to_visual: nn.Module, tokens: Tensor) -> Tensor:
        """Return tokens [B, N, C_l], times one plus their cosine with the nearest prototype once these are active."""
        places = F.normalize(to_visual(tokens).float(), dim=-1)  # [B, N, E]
        cosines = places @ F.normalize(self.prototypes, dim=-1).T  # [B, N, K-1]
        nearest = cosines.masked_fill(~self.known, 0).amax(-1, keepdim=True).clamp(min=0)
        return tokens * (1 + self.weighing * nearest)

    def losses(
        self,
        output: TeViAOutput,
        batch: Batch,
        segmentation_loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return the terms of the recipe's loss and the alignment as scalars, and update the prototypes."""
        with torch.autocast(batch.mask.device.type, enabled=False):
            total, area = self._sums(output.decoded.detach().float(), batch.mask)
            visual = total / area.where(area > 0, 1)[..., None]  # [B, K-1, E]
            cosines = [F.cosine_similarity(text.float(), visual, dim=-1) for text in output.projected_text]
            distance = 1 - torch.stack(cosines).mean(0)  # [B, K-1]
            shown = area > 0
            alignment = (distance * shown).sum() / shown.sum().clamp(min=1)
            if self.training:
                if batch.renumbered is not None:
                    # The names in such a slice are not those of the patient: it says nothing of how L4 looks.
                    total = total.masked_fill(batch.renumbered[:, None, None], 0)
                    area = area.masked_fill(batch.renumbered[:, None], 0)
                self._remember(total.sum(0), area.sum(0))
        terms = segmentation_loss(output.logits, batch.mask)
        return {**terms, "alignment": self.alignment_weight * alignment}

    def _sums(self, feature: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, E, H / 4, W / 4] summed over each structure of [B, H, W], [B, K-1, E], and its area, [B, K-1]."""
        height, width = (side * STEM_STRIDE for side in feature.shape[-2:])  # padded by the core, the mask is not
        padded = F.pad(mask, (0, width - mask.shape[-1], 0, height - mask.shape[-2]))
        indices = torch.arange(1, self.structures + 1, device=mask.device)[:, None, None]
        share = F.avg_pool2d((padded[:, None] == indices).float(), STEM_STRIDE)  # a fraction at its border
        return torch.einsum("bkhw,behw->bke", share, feature), share.flatten(2).sum(-1)

    @torch.no_grad()
    def _remember(self, total: Tensor, area: Tensor) -> None:
        """Update the prototypes in a batch from sums [K-1, E] and areas [K-1], summed over all processes."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
            torch.distributed.all_reduce(area)
        mean = total / area.where(area > 0, 1)[:, None]
        seen = (area > 0) & mean.isfinite().all(1)  # a step that overflows in half precision leaves nothing behind
        kept = self.momentum * self.known[:, None]  # a structure seen for the first time is taken as it is
        self.prototypes.copy_(torch.where(seen[:, None], kept * self.prototypes + (1 - kept) * mean, self.prototypes))
        self.known.logical_or_(seen)
