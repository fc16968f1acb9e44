"""The metrics of textseg.

They follow medpy 0.5.2 with connectivity 1, so that numbers compare with papers that used it. Distances run between the
centres of border voxels: voxels of the structure with a face neighbour outside it; what lies beyond the edge of the
image is outside. `medpy` names the function of `medpy.metric.binary` that computes the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat

from textseg.metrics import Dice

Distances = NDArray[np.float64]


class DSC(Dice):
    """Dice similarity coefficient: twice the common voxels over the sum of both sides' voxels; 1 is best."""

    medpy = "dc"


class Jaccard:
    """Jaccard index: the common voxels over those of either side; 1 is best."""

    unit = ""
    higher_is_better = True
    missed = 0.0
    medpy = "jc"

    def from_counts(self, predicted: int, expected: int, common: int) -> float:
        """Return the ratio."""
        return common / (predicted + expected - common)


class _Distance:
    unit = "length"
    higher_is_better = False
    missed = None


class HD95(_Distance):
    """95 % Hausdorff distance over the pooled distances of both directions; 0 is best.

    It is one 95th percentile (linear interpolation) over the distances from each predicted border voxel to the nearest
    reference border voxel, and the other way round.
    """

    medpy = "hd95"

    def from_distances(self, there: Distances, back: Distances) -> float:
        """Return the percentile."""
        return percentile_95(np.concatenate((there, back)))


class HD95DirectedMax(_Distance):
    """The larger of the two directed 95 % Hausdorff distances, as MONAI and surface-distance define HD95; 0 is best.

    It is the 95th percentile of the distances from the prediction, or of those from the reference.
    """

    def from_distances(self, there: Distances, back: Distances) -> float:
        """Return the larger percentile."""
        return max(percentile_95(there), percentile_95(back))


class ASD(_Distance):
    """Average surface distance: mean distance from the predicted to the reference border only; 0 is best."""

    medpy = "asd"

    def from_distances(self, there: Distances, back: Distances) -> float:
        """Return the mean."""
        return float(there.mean())


class ASDReverse(_Distance):
    """Average surface distance the other way: mean distance from the reference to the predicted border; 0 is best."""

    def from_distances(self, there: Distances, back: Distances) -> float:
        """Return the mean."""
        return float(back.mean())


class ASSD(_Distance):
    """Average symmetric surface distance: mean over the pooled distances of both directions; 0 is best.

    Each border voxel is counted once.
    """

    medpy = "assd"

    def from_distances(self, there: Distances, back: Distances) -> float:
        """Return the mean."""
        return float(np.concatenate((there, back)).mean())


class NSD:
    """Normalised surface Dice: share of the border voxels of both sides within a tolerance of the other; 1 is best.

    Voxels count alike, where surface-distance weighs them by the area of the surface.

    Args:
        tolerance: in mm or pixels, as the recipe says.
    """

    unit = ""
    higher_is_better = True
    missed = 0.0

    def __init__(self, *, tolerance: PositiveFloat) -> None:
        self.tolerance = tolerance

    def from_distances(self, there: Distances, back: Distances) -> float:
        """Return the share."""
        return float(np.mean(np.concatenate((there, back)) <= self.tolerance))


def percentile_95(distances: Distances) -> float:
    """Return `np.percentile(distances, 95)`, several times as fast for the few values of a structure."""
    position = 0.95 * (len(distances) - 1)
    below = int(position)
    above = min(below + 1, len(distances) - 1)
    lower, upper = np.partition(distances, (below, above))[[below, above]]
    return float(lower + (upper - lower) * (position - below))
