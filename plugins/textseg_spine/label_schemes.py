"""Label schemes: the mask values that data sets and tools of the field use for the levels of the spine."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

CERVICAL = tuple(f"C{number}" for number in range(1, 8))
THORACIC = tuple(f"T{number}" for number in range(1, 13))
LUMBAR = tuple(f"L{number}" for number in range(1, 6))
DOWNWARDS = (*CERVICAL, *THORACIC, *LUMBAR)
DISCS_DOWNWARDS = (*(f"{upper}/{lower}" for upper, lower in pairwise(DOWNWARDS[1:])), "L5/S")  # none above C2

Scheme = Mapping[int, str]


def spider() -> Scheme:
    """SPIDER: counted from the bottom, the lowest vertebra taken for L5; "(part)" is cut by the edge of the image."""
    upwards = tuple(reversed(DOWNWARDS))
    return {
        **dict(enumerate(upwards, start=1)),
        100: "SC",
        **{value: f"{name} (part)" for value, name in enumerate(upwards, start=101)},
        **dict(enumerate(reversed(DISCS_DOWNWARDS), start=201)),
    }


def mrspineseg() -> Scheme:
    """MRSpineSeg: the sacrum, ten vertebrae and nine discs from the bottom."""
    vertebrae, discs = tuple(reversed(DOWNWARDS))[:9], tuple(reversed(DISCS_DOWNWARDS))[:9]
    return dict(enumerate(("S", *vertebrae, *discs), start=1))


def totalspineseg() -> Scheme:
    """TotalSpineSeg (second step, from version 20241005): a block of values for each region."""
    vertebrae = {**dict(enumerate(CERVICAL, 11)), **dict(enumerate(THORACIC, 21)), **dict(enumerate(LUMBAR, 41))}
    cervical, thoracic, lumbar = DISCS_DOWNWARDS[:5], DISCS_DOWNWARDS[5:17], DISCS_DOWNWARDS[17:22]
    discs = {**dict(enumerate(cervical, 63)), **dict(enumerate(thoracic, 71)), **dict(enumerate(lumbar, 91))}
    return {1: "spinal cord", 2: "SC", **vertebrae, 50: "S", **discs, 100: "L5/S"}


def totalsegmentator() -> Scheme:
    """The spine of TotalSegmentator 2, task `total`: no discs, the cord and not its canal."""
    return {25: "S", 26: "S1", **dict(enumerate(reversed(DOWNWARDS), start=27)), 79: "spinal cord"}


def all_schemes() -> Mapping[str, Scheme]:
    """Return all label schemes by name."""
    return {scheme.__name__: scheme() for scheme in (spider, mrspineseg, totalspineseg, totalsegmentator)}
