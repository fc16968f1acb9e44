"""Channel-wise Contrastive Anatomy-aware Enhancement (ATM-Net, arXiv 2504.03476), restored from its description."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Batch, Features, SegmenterOutput, Task


class CCAE(nn.Module):
    """Draws what the image shows of each structure to that structure's prompt, and from the prompts of the others.

    For each image, the structures in the annotation give a visual vector v_k and a text vector t_k; the symmetric
    InfoNCE over them has the diagonal as positives. Absent structures are left out of rows and columns before any
    division; an image with fewer than two structures adds nothing. Similarities are in float32 under autocast.

    Args:
        task: gives K and D.
        features: the fused pyramid.
        temperature: divides the cosine similarities.
        embedding_size: of the space in which both sides meet.
        pooling: "mask" averages the finest fused map over each structure's annotated pixels; "grid" pools the K
            channels of the logits to `grid` x `grid` cells. The paper's formula allows both readings.
        grid: cells along each side, for "grid".
    """

    def __init__(
        self,
        task: Task,
        features: Features,
        *,
        temperature: float = 0.07,
        embedding_size: int = 128,
        pooling: Literal["mask", "grid"] = "mask",
        grid: int = 16,
    ) -> None:
        super().__init__()
        if task.text_size is None:
            raise ValueError("ccae needs text: the recipe has no prompts.")
        self.temperature, self.pooling, self.grid = temperature, pooling, grid
        self.stride = features.strides[0]
        visual_size = features.channels[0] if pooling == "mask" else grid * grid
        self.visual_projection = nn.Linear(visual_size, embedding_size)
        self.text_projection = nn.Linear(task.text_size, embedding_size)
        self.text_norm = nn.LayerNorm(task.text_size)

    def forward(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        """Scalar: mean over the images that show at least two structures."""
        if output.text is None or output.text.classwise is None:
            raise ValueError("ccae needs class-wise text features.")
        class_count = output.logits.shape[1]
        with torch.autocast(batch.mask.device.type, enabled=False):
            membership = self.membership(output, batch.mask, class_count)  # [B, K-1, H_0, W_0]
            area = membership.flatten(2).sum(-1)  # [B, K-1]
            if self.pooling == "mask":
                feature = output.fused_features[0].float()
                visual = torch.einsum("bkhw,bchw->bkc", membership, feature) / area.clamp(min=1)[..., None]
            else:
                visual = F.adaptive_avg_pool2d(output.logits[:, 1:].float(), self.grid).flatten(2)  # [B, K-1, grid^2]
            visual = F.normalize(self.visual_projection(visual), dim=-1)
            text = F.normalize(self.text_projection(self.text_norm(output.text.classwise.float())), dim=-1)
            return self.contrast(visual, text, area > 0)

    def membership(self, output: SegmenterOutput, mask: Tensor, class_count: int) -> Tensor:
        """Share of each structure in each position of the finest fused map, [B, K-1, H_0, W_0]."""
        height, width = (side * self.stride for side in output.fused_features[0].shape[-2:])
        padded = F.pad(mask, (0, width - mask.shape[-1], 0, height - mask.shape[-2]))
        one_hot = F.one_hot(padded, class_count).movedim(-1, 1)[:, 1:].float()
        return F.avg_pool2d(one_hot, self.stride) if self.stride > 1 else one_hot

    def contrast(self, visual: Tensor, text: Tensor, present: Tensor) -> Tensor:
        """Unit vectors [B, K-1, E] twice, present [B, K-1] -> scalar."""
        similarity = visual @ text.transpose(1, 2) / self.temperature  # [B, K-1, K-1]
        pair = present[:, :, None] & present[:, None, :]
        similarity = similarity.masked_fill(~pair, -1e4)  # finite: -inf rows would give NaN gradients
        diagonal = similarity.diagonal(dim1=1, dim2=2)
        loss = (similarity.logsumexp(1) + similarity.logsumexp(2)) / 2 - diagonal  # [B, K-1]
        counts = present.sum(1)
        per_image = (loss * present).sum(1) / counts.clamp(min=1)
        useful = counts >= 2
        return (per_image * useful).sum() / useful.sum().clamp(min=1)
