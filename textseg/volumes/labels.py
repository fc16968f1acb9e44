"""Label maps as arrays: conversion of values between conventions, and the slice that shows most structures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scheme = Mapping[int, str]  # the name of each value


def convert_labels(
    labels: NDArray[Any], source: Scheme, target: Scheme
) -> tuple[NDArray[np.uint16], Mapping[int, str | None]]:
    """Convert values of `source` to values of `target`; also return what became background: value, name or None."""
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
