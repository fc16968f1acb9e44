"""Time of DSC, Jaccard, HD95 and ASD of 19 structures on one core, against medpy in the same run.

OMP_NUM_THREADS=1 python benchmarks/metrics.py
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.ndimage import shift

from textseg.metrics import score

METRICS = ("dsc", "jaccard", "hd95", "asd")
STRUCTURES = range(1, 20)


def spine(*, slices: int, side: int) -> np.ndarray[Any, Any]:
    """[S, H, W]: 19 ellipsoids in two columns, as bodies with discs between them and a canal would lie."""
    s, h, w = np.ogrid[:slices, :side, :side]
    labels = np.zeros((slices, side, side), np.uint8)
    for index in STRUCTURES:
        row = side * (0.05 + 0.047 * index)
        column = side * (0.42 + 0.05 * np.sin(index / 3) + (0.1 if index % 5 == 0 else 0))
        radius = side * np.array([0.026, 0.07 if index % 2 else 0.05])
        depth = ((s - slices / 2 + 0.5) / (slices * 0.55)) ** 2
        labels[depth + ((h - row) / radius[0]) ** 2 + ((w - column) / radius[1]) ** 2 < 1] = index
    return labels


def with_medpy(prediction: np.ndarray[Any, Any], reference: np.ndarray[Any, Any], spacing: tuple[float, ...]) -> Any:
    from medpy.metric import binary

    scores = {}
    for label in STRUCTURES:
        a, b = prediction == label, reference == label
        if a.any() and b.any():
            distances = binary.hd95(a, b, voxelspacing=spacing), binary.asd(a, b, voxelspacing=spacing)
            scores[label] = (binary.dc(a, b), binary.jc(a, b), *distances)
    return scores


def fastest(call: Callable[[], Any], *, times: int) -> tuple[float, Any]:
    """Shortest of `times` calls in ms, and what the call gives."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        result = call()
        taken.append(1000 * (time.perf_counter() - start))
    return min(taken), result


def main() -> None:
    reference = spine(slices=15, side=512)
    random = np.random.default_rng(0)
    prediction = shift(reference, (0, 2, -1), order=0)
    prediction[random.random(reference.shape) < 1e-4] = 0
    prediction[:, 500:504, 3:7] = 7  # a far island
    middle, spacing = 7, (3.3, 0.47, 0.47)
    cases = {
        "512 x 512": (prediction[middle], reference[middle], spacing[1:], 20, 3),
        "15 x 512 x 512 by volume": (prediction, reference, spacing, 3, 1),
    }
    print(f"{'':28}{'textseg ms':>12}{'medpy ms':>12}{'ratio':>8}{'largest difference':>20}")
    for name, (predicted, expected, distance, times, medpy_times) in cases.items():
        ours, scores = fastest(
            partial(score, predicted, expected, spacing=distance, structures=STRUCTURES, metrics=METRICS), times=times
        )
        theirs, known = fastest(partial(with_medpy, predicted, expected, distance), times=medpy_times)
        worst = max(
            float(np.abs(np.subtract(list(scores[label].values.values()), values)).max())
            for label, values in known.items()
        )
        print(f"{name:28}{ours:12.1f}{theirs:12.1f}{theirs / ours:7.0f}x{worst:20.1e}")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
