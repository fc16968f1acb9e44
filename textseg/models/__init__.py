"""Models: the segmenter around every network, attention, losses, stages and cost.

Imports `contracts`, `system` and below.
"""

from __future__ import annotations

from textseg.models.attention import Attention, WindowAttention, fuse_windows, plane_sinusoids, sinusoids
from textseg.models.losses import SegmentationLoss

__all__ = ["Attention", "SegmentationLoss", "WindowAttention", "fuse_windows", "plane_sinusoids", "sinusoids"]
