from __future__ import annotations

import numpy as np

from textseg.contracts import IGNORED
from textseg.volumes.labels import fullest_slice, without_ignored


def test_the_fullest_slice_shows_most_structures_whatever_is_ignored() -> None:
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[0, 0], labels[1, 0, :2], labels[1, 1:] = 1, 2, IGNORED
    assert fullest_slice(labels) == 0


def test_what_a_reference_ignores_is_background_on_both_sides() -> None:
    reference, prediction = np.array([[0, 1, IGNORED, 2]], np.uint8), np.array([[1, 1, 2, 2]])
    first, second = without_ignored(reference, prediction)
    assert (first.tolist(), second.tolist()) == ([[0, 1, 0, 2]], [[1, 1, 0, 2]])
    assert (first.dtype, second.dtype) == (reference.dtype, prediction.dtype)
    whole = np.array([[0, 1]], np.uint8)
    assert without_ignored(whole, whole)[1] is whole
