"""Checks of metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from textseg.errors import PluginError
from textseg.metrics.definitions import fastest_kernel, score
from textseg.metrics.named import LENGTH, NamedMetric
from textseg.testing.conformance import Subject, check
from textseg.testing.promises import BrokenPromiseError, promise
from textseg.testing.surroundings import undisturbed

Masks = NDArray[np.uint8]
SPACING = (3.0, 1.0, 0.5)  # of slices, rows and columns


def _built(subject: Subject) -> NamedMetric:
    built = subject.build()
    try:
        return NamedMetric(subject.component.name, built)
    except PluginError as error:
        raise BrokenPromiseError("an object that keeps `textseg.contracts.Metric`", _reason(error)) from None


def _reason(error: PluginError) -> str:
    return str(error).partition("broken: ")[2].rstrip(".")


def _value(metric: NamedMetric, prediction: Masks, reference: Masks, about: str, scale: float = 1.0) -> float:
    spacing = [scale * distance for distance in SPACING[-prediction.ndim :]]
    try:
        scores = score(
            prediction, reference, spacing=spacing, structures=[1], metrics=[metric], where=lambda label: about
        )
    except PluginError as error:
        raise BrokenPromiseError(f"a finite number for {about}", _reason(error)) from error.__cause__
    return scores[1].values[metric.name]


def _box(shape: Sequence[int], size: int, *, at: int) -> Masks:
    """Return the mask of a box of `size` rows and columns, in all slices but the first, from row and column `at`."""
    mask = np.zeros(shape, np.uint8)
    mask[..., at : at + size, at : at + size] = 1
    if mask.ndim == 3:
        mask[0] = 0
    return mask


SHAPES = ((4, 24, 20), (24, 20))
PAIRS = {
    "two boxes": (8, 3, 9, 5),  # size and place of the prediction, then of the reference
    "boxes apart from each other": (4, 1, 6, 12),
    "one voxel in each slice": (1, 4, 1, 6),
    "a box at the edge": (6, 0, 6, 1),
}


@check("construction", "metric", fundamental=True)
def _construction(subject: Subject) -> None:
    """Check that the builder returns an object that can be called, with unit, direction and the value of a miss."""
    _built(subject)


@check("surroundings", "metric", tolerant=True)
def _surroundings(subject: Subject) -> None:
    """Construction and call touch no file and no network, and leave alone what all share."""
    fastest_kernel()  # which is compiled, or read, at its first use
    _value(_built(subject), _box(SHAPES[0], 8, at=3), _box(SHAPES[0], 9, at=5), "two boxes")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with undisturbed("construction", allowed=subject.settings.values()):
        metric = _built(subject)
    for shape in SHAPES:
        with undisturbed("a call", allowed=subject.settings.values()):
            _value(metric, _box(shape, 8, at=3), _box(shape, 9, at=5), "two boxes")
    promise(torch.equal(before, torch.get_rng_state()), "no random draw", "a draw from torch's random state")


@check("numbers", "metric")
def _numbers(subject: Subject) -> None:
    """Check that every pair of masks that show the structure gets a finite number, in two and in three dimensions."""
    metric = _built(subject)
    for shape in SHAPES:
        for name, (own, own_at, size, at) in PAIRS.items():
            about = f"{name} in {len(shape)} dimensions"
            _value(metric, _box(shape, own, at=own_at), _box(shape, size, at=at), about)
        _value(metric, np.ones(shape, np.uint8), _box(shape, 4, at=3), f"a full mask in {len(shape)} dimensions")


@check("best", "metric")
def _best(subject: Subject) -> None:
    """Check that equal masks get the best score, a miss a worse one, and that the direction is the declared one."""
    metric = _built(subject)
    better = "higher" if metric.metric.higher_is_better else "lower"
    sign = 1 if metric.metric.higher_is_better else -1
    for shape in SHAPES:
        reference = _box(shape, 8, at=3)
        perfect = _value(metric, reference, reference, "equal masks")
        for name, (size, at) in {"a smaller box": (6, 4), "a moved box": (8, 5)}.items():
            value = _value(metric, _box(shape, size, at=at), reference, name)
            expected = f"no better score for {name} than for equal masks ({perfect:g}; {better} is better)"
            promise(sign * (perfect - value) >= -1e-9 * max(1.0, abs(perfect)), expected, f"{value:g}")
        far = _value(metric, _box(shape, 2, at=17), reference, "a small box far away")
        expected = f"a worse score for a small box far away than for equal masks ({perfect:g}; {better} is better)"
        promise(sign * (perfect - far) > 0, expected, f"{far:g}")
        miss = metric.worst(shape, SPACING[-len(shape) :])
        expected = f"a worse value of a missed structure than that of equal masks ({perfect:g}; {better} is better)"
        promise(sign * (perfect - miss) > 0, expected, f"{miss:g}")


@check("spacing", "metric")
def _spacing(subject: Subject) -> None:
    """Check that a length is twice as long where all voxels are twice as far apart."""
    metric = _built(subject)
    if metric.metric.unit != LENGTH:
        return
    for shape in SHAPES:
        pair = _box(shape, 8, at=3), _box(shape, 9, at=5)
        once, twice = (_value(metric, *pair, "two boxes", scale) for scale in (1.0, 2.0))
        promise(abs(twice - 2 * once) <= 1e-6 * abs(twice), f"{2 * once:g} with twice the spacing", f"{twice:g}")


@check("function_of_the_masks", "metric")
def _function_of_the_masks(subject: Subject) -> None:
    """Check that the score depends on nothing but the masks and the spacing: not on earlier calls, not on the place."""
    metric = _built(subject)
    for shape in SHAPES:
        first = _box(shape, 6, at=3), _box(shape, 7, at=5)
        before = _value(metric, *first, "two boxes")
        _value(metric, _box(shape, 2, at=1), _box(shape, 9, at=8), "other boxes")
        again = _value(metric, *first, "two boxes")
        promise(before == again, "the same score in a second call", f"{before:g}, then {again:g}")
        fresh = _value(_built(subject), *first, "two boxes")
        promise(before == fresh, "the same score from another object with the same settings", f"{before:g}, {fresh:g}")
        elsewhere = _box(shape, 6, at=7), _box(shape, 7, at=9)
        moved = _value(metric, *elsewhere, "two boxes in another place")
        close = abs(moved - before) <= 1e-6 * max(1.0, abs(before))
        promise(close, "the same score for both masks in another place of the image", f"{before:g}, then {moved:g}")


CHECKS = (_surroundings, _construction, _numbers, _best, _spacing, _function_of_the_masks)
