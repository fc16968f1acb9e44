"""Time of DSC, Jaccard, HD95 and ASD on one core: both kernels against medpy in the same run, then a whole campaign.

OMP_NUM_THREADS=1 TEXTSEG_DATA=/path/to/data python benchmarks/metrics.py

The campaign is 45 volumes x 13 methods x 4 metrics, as `textseg evaluate` computes them: structures and groups, per
volume, in millimetres. References are masks of SPIDER in turn, where TEXTSEG_DATA names some, and a synthetic spine
elsewhere; predictions are made from them by moving, shrinking and misnaming structures and by adding islands, each
method with its own share of mistakes. Making them and reading files is not part of the time. All times are those that
the process itself computed (`time.process_time`), so that what else the machine does counts little.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import find_objects, shift

from textseg.data.preparation import map_labels
from textseg.metrics.definitions import Kernel, score
from textseg.volumes.files import read_labels
from textseg_spine.atlas import lumbar_spider
from textseg_spine.spider import Spider

METRICS = ("dsc", "jaccard", "hd95", "asd")
STRUCTURES = range(1, 20)
KERNELS: tuple[Kernel, ...] = ("numpy", "numba")
VOLUMES, METHODS = (1, 2) if "--smallest" in sys.argv else (45, 13)


def spine(*, slices: int, side: int) -> np.ndarray[Any, Any]:
    """Return a label map [S, H, W] of 19 ellipsoids in two columns, at the positions of vertebrae, discs and canal."""
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
    """Return the shortest of `times` calls in ms, and the result of the call."""
    taken = []
    for _ in range(times):
        start = time.process_time()
        result = call()
        taken.append(1000 * (time.process_time() - start))
    return min(taken), result


def compare(cases: dict[str, tuple[Any, Any, tuple[float, ...], int, int]]) -> None:
    """Print a line for each pair of label maps: time of each kernel, and its speed relative to medpy."""
    print(f"{'':28}{'medpy ms':>12}" + "".join(f"{kernel + ' ms':>12}{'ratio':>8}" for kernel in KERNELS))
    worst = 0.0
    for name, (predicted, expected, spacing, times, medpy_times) in cases.items():
        theirs, known = fastest(partial(with_medpy, predicted, expected, spacing), times=medpy_times)
        line = f"{name:28}{theirs:12.1f}"
        for kernel in KERNELS:
            call = partial(score, predicted, expected, spacing=spacing, structures=STRUCTURES, metrics=METRICS)
            ours, scores = fastest(partial(call, kernel=kernel), times=times)
            line += f"{ours:12.1f}{theirs / ours:7.0f}x"
            for label, values in known.items():
                worst = max(worst, float(np.abs(np.subtract(list(scores[label].values.values()), values)).max()))
        print(line)
    print(f"largest difference from medpy: {worst:.0e}")


def first_call() -> None:
    """Print the seconds of the first score in a process, when numba compiles and when it finds compiled code."""
    code = (
        "import time, numpy as np; from textseg.metrics.definitions import score; a = np.ones((9, 9), np.uint8); "
        "start = time.process_time(); score(a, a, spacing=(1, 1), structures=[1], metrics=['hd95'], kernel='{}'); "
        "print(time.process_time() - start)"
    )
    with tempfile.TemporaryDirectory() as folder:
        for kernel, when in (("numpy", ""), ("numba", "once"), ("numba", "later")):
            command = [sys.executable, "-c", code.format(kernel)]
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            print(f"first call, {kernel} {when}: {float(done.stdout):.2f} s")


def references() -> list[tuple[np.ndarray[Any, Any], tuple[float, ...]]]:
    """Return label maps [S, H, W] and their spacing: SPIDER's masks, or the synthetic spine."""
    data = os.environ.get("TEXTSEG_DATA")
    if data is None:
        return [(spine(slices=20, side=640), (3.3, 0.47, 0.47))]
    dataset = Spider(folder=str(Path(data) / "spider"))
    label_maps = []
    for case in dataset.cases():
        if case.mask is not None:
            labels = read_labels(case.mask)
            label_maps.append((map_labels(labels, dataset.label_map(case), case), labels.spacing_mm))
    return label_maps


def mistaken(reference: np.ndarray[Any, Any], random: np.random.Generator, share: float) -> np.ndarray[Any, Any]:
    """Return a plausible prediction: each structure shifted on its own, some missed or misnamed, with islands."""
    reach = 3
    answer = np.pad(np.zeros_like(reference), reach)
    for label, box in enumerate(find_objects(reference), start=1):
        if box is None or random.random() < share / 2:
            continue
        name = label % 19 + 1 if random.random() < share / 2 else label
        steps = random.integers(-reach, reach + 1, 3) * (0, 1, 1)
        moved = tuple(slice(s.start + reach + d, s.stop + reach + d) for s, d in zip(box, steps, strict=True))
        answer[moved][reference[box] == label] = name
        if random.random() < share:
            corner = [random.integers(reach, length) for length in reference.shape]
            answer[tuple(slice(start, start + 6) for start in corner)] = name
    return np.ascontiguousarray(answer[reach:-reach, reach:-reach, reach:-reach])


def campaign() -> None:
    """Print the minutes for 45 volumes x 13 methods x 4 metrics, for structures and for groups of the atlas."""
    atlas, known = lumbar_spider(), references()
    groups, classes = atlas.collapsed()
    merge = np.array([classes[index] for index in sorted(classes)], dtype=np.uint8)
    seconds, worst = dict.fromkeys(KERNELS, 0.0), 0.0
    for volume in range(VOLUMES):
        reference, spacing = known[volume % len(known)]
        for method in range(METHODS):
            random = np.random.default_rng([volume, method])
            prediction = mistaken(reference, random, share=method / METHODS)
            values = []
            for kernel in KERNELS:
                start = time.process_time()
                for own, pair in (
                    (atlas, (prediction, reference)),
                    (groups, (merge[prediction], merge[reference])),
                ):
                    labels = [structure.index for structure in own.structures]
                    scores = score(*pair, spacing=spacing, structures=labels, metrics=METRICS, kernel=kernel)
                    values += [value for label in labels for value in scores[label].values.values()]
                seconds[kernel] += time.process_time() - start
            first, second = np.split(np.array(values), 2)
            worst = max(worst, float(np.nanmax(np.abs(first - second))))
            assert np.array_equal(np.isnan(first), np.isnan(second))
    shapes = sorted({"x".join(map(str, reference.shape)) for reference, _ in known})
    print(f"{VOLUMES} volumes x {METHODS} methods x {len(METRICS)} metrics, volumes of {', '.join(shapes)}:")
    for kernel in KERNELS:
        print(f"  {kernel}: {seconds[kernel] / 60:.2f} minutes")
    print(f"  largest difference between them: {worst:.0e}")


def main() -> None:
    reference = spine(slices=15, side=512)
    random = np.random.default_rng(0)
    prediction = shift(reference, (0, 2, -1), order=0)
    prediction[random.random(reference.shape) < 1e-4] = 0
    prediction[:, 500:504, 3:7] = 7  # a far island
    middle, spacing = 7, (3.3, 0.47, 0.47)
    compare(
        {
            "512 x 512": (prediction[middle], reference[middle], spacing[1:], 20, 3),
            "15 x 512 x 512 by volume": (prediction, reference, spacing, 3, 1),
        }
    )
    first_call()
    campaign()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
