"""The training domain: spacings, fields of view and intensities that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from textseg.contracts import Task
from textseg.volumes.scan import Scan

LENGTH_BEYOND = 1.5  # times beyond what the training cases span, from which a length is called unlike
MASK_VALUES = 64  # different values that a mask may have; the intensities of a scan have hundreds
MEDIAN_BEYOND = 0.15  # of the range of intensities, by which a median may lie outside of those of the training


def few_values(image: NDArray[np.float32]) -> list[float]:
    """Return the values of a volume that looks like a mask: whole numbers, not many of them; else nothing."""
    for part in (image[:1], image):  # a slice of a scan already has more
        values = np.unique(part)
        if len(values) > MASK_VALUES or (values != np.rint(values)).any():
            return []
    return [float(value) for value in values]


def outside_domain(task: Task, scan: Scan, intensities: Sequence[Sequence[float]]) -> list[str]:
    """Return sentences on an image outside the range of the training: spacing, field of view, intensities.

    `intensities` are percentiles of each channel from low to high, as `textseg.data.slice_geometry` takes them. Their
    unit means nothing in MRI, so what is compared is where the median lies between the lowest and the highest.
    """
    fingerprint = task.fingerprint
    spacings = np.array(fingerprint.get("native_spacings_mm", ()), dtype=float)
    sizes = np.array(fingerprint.get("native_sizes", ()), dtype=float)
    if not len(spacings):
        return []
    remarks = []
    views = sizes * spacings
    spacing_mm = np.array(scan.spacing_mm)
    for quantity, known, value in (
        ("distance of its slices", spacings[:, 0], spacing_mm[0]),
        ("size of its pixels", spacings[:, 1:].max(axis=1), spacing_mm[1:].max()),
        ("height of its field of view", views[:, 1], scan.array.shape[-2] * spacing_mm[1]),
        ("width of its field of view", views[:, 2], scan.array.shape[-1] * spacing_mm[2]),
    ):
        low, high = float(known.min()), float(known.max())
        if not low / LENGTH_BEYOND <= value <= high * LENGTH_BEYOND:
            span = _span(low, high, ".4g")
            remarks.append(f"the {quantity} is {value:.4g} mm, and the training cases have {span} mm")
    known_channels = zip(*fingerprint.get("intensities", ()), strict=True)
    for name, known, percentiles in zip(scan.channel_names, known_channels, intensities, strict=False):
        medians = [_median(case) for case in known]
        low, high, value = min(medians), max(medians), _median(percentiles)
        if not low - MEDIAN_BEYOND <= value <= high + MEDIAN_BEYOND:
            part = "it" if len(intensities) == 1 else f"channel '{name}'"
            remarks.append(
                f"half of {part} lies below {value:.0%} of its range of intensities, of the training cases below "
                f"{_span(low, high, '.0%')}"
            )
    return remarks


def _median(percentiles: Sequence[float]) -> float:
    """Return where the middle of an odd number of percentiles lies, from 0 (the first) to 1 (the last)."""
    low, middle, high = percentiles[0], percentiles[len(percentiles) // 2], percentiles[-1]
    return (middle - low) / (high - low or 1.0)


def _span(low: float, high: float, form: str) -> str:
    return f"{low:{form}}" if np.isclose(low, high) else f"{low:{form}} to {high:{form}}"
