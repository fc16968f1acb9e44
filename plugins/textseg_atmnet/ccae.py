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

    The paper's formula is lost, and its description, a pooled vector of the fused map for each class, allows three
    readings, which differ in what finds the structure and in whether the loss can fall without looking at the image:

    "mask" averages the C_0 channels of the finest fused map over the annotated pixels of k, and asks that L3 and L4
    look different, which is what a model of the spine confuses. Nothing but the image tells the vectors apart. But the
    annotation does the finding, and no gradient reaches the logits.
    "prediction" averages the same map with the model's own softmax of k as weights. The annotation only says which
    structures count, the model must find them, and the gradient reaches the logits.
    "grid" averages channel k of the logits over the cells of a grid. What meets the text is where the channel fires.

    "grid" and "prediction" have a solution that says nothing of the image: the vector of k comes from channel k of the
    logits, by which the projection recognises k. On noise through a random network that is not trained, where 14
    structures have a loss of ln 14 = 2.64 by chance, the loss falls to 2.64 with "mask", 1.45 with "prediction" (0.00
    with logits ten times as sharp) and 1.23 with "grid", after 600 steps: `python benchmarks/contrast.py --noise-only`,
    docs/decisions/0027-pooling-of-ccae.md.

    Differences from the paper's description: the K-1 structures are compared, without the background (it speaks of 20
    classes, which is K); LayerNorm on the text only, and L2 normalisation on both sides; both sides pass through a
    learned projection of `embedding_size`.

    Raises RecipeError for a setting out of range, and without text or class-wise text features.
    """

    def __init__(
        self,
        task: Task,
        features: Features,
        *,
        temperature: float = 0.07,
        embedding_size: int = 128,
        pooling: Literal["mask", "prediction", "grid"] = "mask",
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
        visual_size = grid * grid if pooling == "grid" else features.channels[0]
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
            if self.pooling == "grid":
                visual = F.adaptive_avg_pool2d(output.logits[:, 1:].float(), self.grid).flatten(2)  # [B, K-1, grid^2]
            else:
                weights = shown.float() if self.pooling == "mask" else output.logits.float().softmax(1)[:, 1:]
                visual = self.pool(output.fused_features[0].float(), weights)  # [B, K-1, C_0]
            visual = F.normalize(self.visual_projection(visual), dim=-1)
            text = F.normalize(self.text_projection(self.text_norm(output.text.classwise.float())), dim=-1)
            return self.contrast(visual, text, shown.flatten(2).any(-1))

    def pool(self, feature: Tensor, weights: Tensor) -> Tensor:
        """Mean of [B, C_0, H_0, W_0] with weights in [B, K-1, H, W], [B, K-1, C_0]; 0 where all weights are 0."""
        height, width = (side * self.stride for side in feature.shape[-2:])  # padded by the core, the weights are not
        padded = F.pad(weights, (0, width - weights.shape[-1], 0, height - weights.shape[-2]))
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
