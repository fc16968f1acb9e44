"""Metrics: their definitions, the table of scores, means over it, and statistics.

May import `recipe` and the packages below it, but not `text` or `models`. It needs no torch. Offers plug-ins functions
that score two label maps, read the scores of a run, each a `Score`, and compute means.
"""

from textseg.metrics.definitions import score
from textseg.metrics.named import Dice, NamedMetric, build_metrics
from textseg.metrics.scores import Score, read_scores, summarise

__all__ = ["Dice", "NamedMetric", "Score", "build_metrics", "read_scores", "score", "summarise"]
