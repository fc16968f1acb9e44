"""Label maps as arrays: conversion of values between conventions, and the slice that shows most structures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.contracts import IGNORED

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
    structures = [plane[(plane > 0) & (plane != IGNORED)] for plane in labels]
    shown = [(len(np.unique(pixels)), len(pixels)) for pixels in structures]
    return shown.index(max(shown))


def without_ignored(reference: NDArray[Any], *predictions: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return a reference and predictions of its shape with background where the reference is `IGNORED`."""
    ignored = reference == IGNORED
    if not ignored.any():
        return reference, *predictions
    return tuple(np.where(ignored, labels.dtype.type(0), labels) for labels in (reference, *predictions))
