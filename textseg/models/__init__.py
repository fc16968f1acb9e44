"""Models: the segmenter, which contains every network, and attention, losses, stages of training, and cost.

May import `recipe` and the packages below it, but not `text` or `metrics`. Offers plug-ins attention, position
encodings and the segmentation loss.
"""

from __future__ import annotations

from textseg.models.attention import Attention, WindowAttention, fuse_windows, plane_sinusoids, sinusoids
from textseg.models.losses import SegmentationLoss

__all__ = ["Attention", "SegmentationLoss", "WindowAttention", "fuse_windows", "plane_sinusoids", "sinusoids"]
