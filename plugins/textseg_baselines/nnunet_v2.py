"""nnU-Net v2 (Isensee 2021, doi 10.1038/s41592-020-01008-z) in two dimensions: its planning rules, MONAI's blocks.

Restated from the paper and from what version 2 of its software documents; none of that code is used.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from monai.networks.blocks import UnetBasicBlock, UnetOutBlock, UnetUpBlock
from torch import Tensor, nn

from textseg.contracts import Batch, SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError

SHORTEST = 4  # positions along a side of the coarsest map
MEMORY = (85_000_000, 12)  # values in the maps of one image, and how many such images fit in 8 GB
SHARE = 0.05  # of the training slices that one batch may hold
SMALLEST_BATCH = 2
Pair = tuple[int, int]  # rows, columns
NORM = ("INSTANCE", {"affine": True})
ACTIVATION = ("LEAKYRELU", {"inplace": True, "negative_slope": 0.01})


@dataclass(frozen=True)
class Plan:
    """Network settings that nnU-Net derives from the data. Pairs are rows and columns; the finest stage comes first.

    The patch is the whole prepared slice: textseg brings slices to one size, where nnU-Net would bring them to one
    spacing and cut patches out. `batch_size` is what nnU-Net would take; the recipe's is what is used.
    """

    median_native_size: tuple[float, float] | None  # None where the fingerprint is empty
    median_native_spacing_mm: tuple[float, float] | None
    spacing_mm: tuple[float, float]  # median of the prepared slices
    patch: tuple[int, int]  # what the network sees: the prepared slice, padded
    size_multiple: int
    batch_size: int
    features: tuple[int, ...]  # channels of each stage
    strides: tuple[Pair, ...]  # on the way into each stage
    kernels: tuple[Pair, ...]


class NNUNetV2(nn.Module):
    """A plain U-Net whose depth, kernels and strides follow from the data, with deep supervision; reads no text.

    Coarser maps have heads of their own, in training only. nnU-Net gives the head of the coarsest the weight zero; it
    isn't built here.

    Args:
        task: gives C, K, the image size and the fingerprint.
        features: channels of the finest stage, doubled at each coarser one.
        max_features: maximum of channels in a stage.

    Raises RecipeError for channels out of range.
    """

    uses_text = False

    def __init__(self, task: Task, *, features: int = 32, max_features: int = 512) -> None:
        super().__init__()
        if not 1 <= features <= max_features:
            raise RecipeError(
                f"nnunet_v2: features is {features}, but must lie between 1 and max_features ({max_features})."
            )
        self.plan = make_plan(task, features=features, max_features=max_features)
        self.size_multiple = self.plan.size_multiple
        channels, kernels, strides = self.plan.features, self.plan.kernels, self.plan.strides
        self.encoder = nn.ModuleList(
            UnetBasicBlock(2, *ends, kernel, stride, NORM, ACTIVATION)
            for ends, kernel, stride in zip(pairwise((task.image_channels, *channels)), kernels, strides, strict=True)
        )
        self.decoder = nn.ModuleList(  # finest first
            UnetUpBlock(2, coarse, fine, kernel, 1, stride, NORM, ACTIVATION, trans_bias=True)
            for (fine, coarse), kernel, stride in zip(pairwise(channels), kernels[:-1], strides[1:], strict=True)
        )
        heads = max(1, len(self.decoder) - 1)
        self.heads = nn.ModuleList(UnetOutBlock(2, size, task.class_count) for size in channels[:heads])
        self.apply(_initialise)

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """[B, C, H, W] -> logits [B, K, H, W]; in training also deep logits [B, K, H_l, W_l] of the coarser maps."""
        skips = []
        for block in self.encoder:
            image = block(image)
            skips.append(image)
        maps = [skips.pop()]  # finest first
        for block in reversed(self.decoder):
            maps.insert(0, block(maps[0], skips.pop()))
        heads = self.heads if self.training else self.heads[:1]
        logits, *deep_logits = (head(feature) for head, feature in zip(heads, maps, strict=False))
        return SegmenterOutput(logits, deep_logits=tuple(deep_logits))

    def losses(
        self,
        output: SegmenterOutput,
        batch: Batch,
        segmentation_loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return the terms of the recipe's loss, each a mean over the resolutions with the weights 1/2^i; scalars."""
        maps = (output.logits, *output.deep_logits)
        terms: dict[str, Tensor] = {}
        for weight, logits in zip(deep_supervision_weights(len(maps)), maps, strict=True):
            mask = batch.mask if logits is output.logits else self._coarsened(batch.mask, logits)
            for name, term in segmentation_loss(logits, mask).items():
                terms[name] = terms[name] + weight * term if name in terms else weight * term
        return terms

    def _coarsened(self, mask: Tensor, logits: Tensor) -> Tensor:
        """Mask [B, H, W] -> [B, H_l, W_l]: padded as the core pads the image, then the nearest pixel of each."""
        height, width = mask.shape[-2:]
        multiple = self.size_multiple
        padded = F.pad(mask, (0, -width % multiple, 0, -height % multiple))
        return F.interpolate(padded[:, None].float(), logits.shape[-2:], mode="nearest-exact")[:, 0].long()


def deep_supervision_weights(count: int) -> list[float]:
    """Return the weights 1/2^i of the i-th resolution, finest first, divided by their sum."""
    weights = [0.5**level for level in range(count)]
    return [weight / sum(weights) for weight in weights]


def make_plan(task: Task, *, features: int, max_features: int) -> Plan:
    """Return the plan for a task, by nnU-Net's rules for 2-D."""
    fingerprint = task.fingerprint
    spacing = _median(fingerprint.get("spacings_mm", ())) or (1.0, 1.0)
    strides, kernels = plan_stages(task.image_size, spacing)
    channels = tuple(min(features * 2**stage, max_features) for stage in range(len(strides)))
    multiple = max(2 ** sum(stride[axis] == 2 for stride in strides) for axis in (0, 1))
    patch = tuple(math.ceil(side / multiple) * multiple for side in task.image_size)
    values, images = MEMORY
    batch_size = round(values / count_values(patch, channels, strides, task.class_count) * images)
    if sizes := fingerprint.get("native_sizes"):
        slices = statistics.median(size[0] for size in sizes) * len(sizes)
        batch_size = min(batch_size, round(SHARE * slices))
    return Plan(
        median_native_size=_median(fingerprint.get("native_sizes", ())),
        median_native_spacing_mm=_median(fingerprint.get("native_spacings_mm", ())),
        spacing_mm=spacing,
        patch=(patch[0], patch[1]),
        size_multiple=multiple,
        batch_size=max(batch_size, SMALLEST_BATCH),
        features=channels,
        strides=strides,
        kernels=kernels,
    )


def plan_stages(size: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Return strides and kernels of the stages, for slices of H, W pixels with row and column distances.

    An axis is halved while it has at least 8 positions left (12, where it is the only one) and is no less than half as
    fine as the finest such axis. Its kernels grow from 1 to 3 where it comes within that factor of the finest axis.
    """
    sides, spacings = list(size), list(spacing_mm)
    strides, kernels, kernel = [(1, 1)], [], [1, 1]
    while True:
        halved = [axis for axis in (0, 1) if sides[axis] >= 2 * SHORTEST]
        finest = min((spacings[axis] for axis in halved), default=0.0)
        halved = [axis for axis in halved if spacings[axis] < 2 * finest]
        if not halved or (len(halved) == 1 and sides[halved[0]] < 3 * SHORTEST):
            break
        for axis in (0, 1):
            if spacings[axis] < 2 * min(spacings):
                kernel[axis] = 3
        kernels.append((kernel[0], kernel[1]))
        strides.append((1 + (0 in halved), 1 + (1 in halved)))
        for axis in halved:
            sides[axis], spacings[axis] = math.ceil(sides[axis] / 2), spacings[axis] * 2
    kernels.append((3, 3))
    return tuple(strides), tuple(kernels)


def count_values(patch: tuple[int, ...], features: tuple[int, ...], strides: tuple[Pair, ...], class_count: int) -> int:
    """Return the number of values in all convolution outputs for one image, nnU-Net's measure of memory."""
    height, width = patch
    total = class_count * height * width
    for stage, (channels, (rows, columns)) in enumerate(zip(features, strides, strict=True)):
        height, width = height // rows, width // columns
        maps = 2 if stage == len(features) - 1 else 5  # two down; one that is transposed, and two, up again
        total += maps * channels * height * width
    return total


def _median(rows: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Return the median over cases for rows and columns; the first entry, of slices, is left out."""
    if not rows:
        return None
    return statistics.median(row[1] for row in rows), statistics.median(row[2] for row in rows)


def _initialise(module: nn.Module) -> None:
    """Initialize the weights like nnU-Net (He 2015)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
