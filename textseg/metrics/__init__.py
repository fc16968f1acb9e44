"""Metrics, the table of scores, and the statistics on it.

Imports `levels` and below. It needs no torch.
"""

from __future__ import annotations

from textseg.metrics.scores import read_scores, summarise

__all__ = ["read_scores", "summarise"]
