"""The mean DSC over cases that several processes share."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from textseg.contracts import Atlas
from textseg.system import distributed


class MeanDice(Metric):
    """The mean DSC over structures and over those of each group; the mean of a structure counts each case once.

    `compute` takes the cases of all processes together.
    """

    full_state_update = False
    higher_is_better = True
    update_called = True  # a process may have no case
    sums: Tensor
    counts: Tensor

    def __init__(self, atlas: Atlas) -> None:
        super().__init__(process_group=distributed.group())
        self.groups = {group: [atlas[name].index - 1 for name in members] for group, members in atlas.groups.items()}
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(len(atlas.names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Mapping[int, float]) -> None:
        """Add the DSC of a case, by the index of the structure, from 1."""
        for index, value in values.items():
            self.sums[index - 1] += value
            self.counts[index - 1] += 1

    def compute(self) -> tuple[float, dict[str, float]]:
        """Return the mean, NaN without values, and that of each group with values."""
        means = self.sums / self.counts
        groups = {group: float(means[indices].nanmean()) for group, indices in self.groups.items()}
        return float(means.nanmean()), {group: mean for group, mean in groups.items() if not math.isnan(mean)}
