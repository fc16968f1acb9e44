"""Label maps as arrays: values of one convention for those of another, and the slice that shows most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scheme = Mapping[int, str]  # the name of each value


def convert_labels(
    labels: NDArray[Any], source: Scheme, target: Scheme
) -> tuple[NDArray[np.uint16], Mapping[int, str | None]]:
    """Values of `target` for values of `source`, and what became background: its value, its name if it has one."""
    values = {name: value for value, name in sorted(target.items(), reverse=True)}
    converted = np.zeros(labels.shape, dtype=np.uint16)
    lost: dict[int, str | None] = {}
    for value in np.unique(labels).tolist():
        name = source.get(value)
        if name in values:
            converted[labels == value] = values[name]
        elif value:
            lost[value] = name
    return converted, lost


def fullest_slice(labels: NDArray[np.integer[Any]]) -> int:
    """Return the index of the slice of [S, H, W] with most structures, and among equals with the largest ones."""
    shown = [(len(np.unique(plane)), int((plane > 0).sum())) for plane in labels]
    return shown.index(max(shown))
