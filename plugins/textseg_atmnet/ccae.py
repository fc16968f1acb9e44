"""Channel-wise Contrastive Anatomy-aware Enhancement (ATM-Net, arXiv 2504.03476), reconstructed from the text."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Batch, Features, SegmenterOutput, Task
from textseg.errors import RecipeError


class CCAE(nn.Module):
    """A contrastive loss that moves each structure's image features towards its prompt and away from other prompts.

    For each image, the structures in the annotation give a visual vector v_k and a text vector t_k; the symmetric
    InfoNCE over them has the diagonal as positives. Absent structures are left out of rows and columns before any
    division; an image with fewer than two structures adds nothing. Similarities are in float32 under autocast.

    Args:
        task: gives K and D.
        features: the fused pyramid.
        temperature: divisor of the cosine similarities.
        embedding_size: dimensions of the shared space of image and text.
        pooling: source of v_k before its projection; see below.
        grid: cells along each side, for "grid".

    The paper's formula is lost, and its description, a pooled vector of the fused map for each class, allows two
    readings. "mask" averages the C_0 channels of the finest fused map over the annotated pixels of k: it asks that L3
    and L4 look different, which is what a model of the spine confuses. But the annotation does the finding, so this is
    far easier than segmenting: measured in training, the loss falls to about 0 within some 100 steps, and guides
    nothing from then on. "grid" averages channel k of the logits over the cells of a grid: the annotation only says
    which structures count, the model must find them, and what meets the text is where each channel fires. Which of the
    two segments better has not been measured.

    Raises RecipeError for a setting out of range, and without text or class-wise text features.
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
            raise RecipeError("ccae compares with text, and the recipe has no prompts. Add prompts, or remove ccae.")
        for name, value in (("temperature", temperature), ("embedding_size", embedding_size), ("grid", grid)):
            if value <= 0:
                raise RecipeError(f"ccae: {name} is {value}, but must be above 0.")
        self.temperature, self.pooling, self.grid = temperature, pooling, grid
        self.stride = features.strides[0]
        visual_size = features.channels[0] if pooling == "mask" else grid * grid
        self.visual_projection = nn.Linear(visual_size, embedding_size)
        self.text_projection = nn.Linear(task.text_size, embedding_size)
        self.text_norm = nn.LayerNorm(task.text_size)

    def forward(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        """Scalar: mean over the images that show at least two structures."""
        if output.text is None or output.text.classwise is None:
            raise RecipeError("ccae needs class-wise text features, and the prompts of this recipe have none.")
        structures = torch.arange(1, output.logits.shape[1], device=batch.mask.device)[:, None, None]
        shown = batch.mask[:, None] == structures  # [B, K-1, H, W]
        with torch.autocast(batch.mask.device.type, enabled=False):
            if self.pooling == "mask":
                visual = self.pool_by_mask(output.fused_features[0].float(), shown.float())
            else:
                visual = F.adaptive_avg_pool2d(output.logits[:, 1:].float(), self.grid).flatten(2)  # [B, K-1, grid^2]
            visual = F.normalize(self.visual_projection(visual), dim=-1)
            text = F.normalize(self.text_projection(self.text_norm(output.text.classwise.float())), dim=-1)
            return self.contrast(visual, text, shown.flatten(2).any(-1))

    def pool_by_mask(self, feature: Tensor, shown: Tensor) -> Tensor:
        """Mean of [B, C_0, H_0, W_0] over the pixels of each structure in [B, K-1, H, W], [B, K-1, C_0]; 0 if none."""
        height, width = (side * self.stride for side in feature.shape[-2:])  # padded by the core, the mask is not
        padded = F.pad(shown, (0, width - shown.shape[-1], 0, height - shown.shape[-2]))
        share = F.avg_pool2d(padded, self.stride) if self.stride > 1 else padded  # [B, K-1, H_0, W_0]
        area = share.flatten(2).sum(-1)  # [B, K-1]; a fraction where a structure is smaller than one position
        total = torch.einsum("bkhw,bchw->bkc", share, feature)
        return total / area.where(area > 0, 1)[..., None]

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
