"""Metrics: their definitions, the table of scores, means over it, and statistics.

May import `recipe` and the packages below it, but not `text` or `models`. It needs no torch. Offers plug-ins functions
that read the scores of a run, each a `Score`, and compute means.
"""

from textseg.metrics.scores import Score, read_scores, summarise

__all__ = ["Score", "read_scores", "summarise"]
