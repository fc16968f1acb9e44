"""Models: the segmenter, which contains every network, and attention, losses, stages of training, and cost.

May import `recipe` and the packages below it, but not `text` or `metrics`. Offers plug-ins attention, position
encodings, the segmentation loss, sums over all processes, and pretrained weights for other channels.
"""

from __future__ import annotations

from textseg.models.attention import Attention, WindowAttention, fuse_windows, plane_sinusoids, sinusoids
from textseg.models.channels import spread_channels, spread_sentence, standardise
from textseg.models.losses import SegmentationTerms, mean_of_counted, segmentation_loss
from textseg.system.distributed import summed

__all__ = [
    "Attention",
    "SegmentationTerms",
    "WindowAttention",
    "fuse_windows",
    "mean_of_counted",
    "plane_sinusoids",
    "segmentation_loss",
    "sinusoids",
    "spread_channels",
    "spread_sentence",
    "standardise",
    "summed",
]
