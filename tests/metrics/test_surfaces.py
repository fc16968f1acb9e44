"""Both kernels against SciPy's distance transform and SimpleITK's filters, by definition, on a thousand pairs.

The first 150 pairs belong to every session, the others to the nightly one.
"""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

from textseg.metrics import surfaces as borders
from textseg.metrics import surfaces_numba as compiled_borders

MODULES = {"numpy": borders, "numba": compiled_borders}


def pair_of(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...], int]:
    """Label maps of 1 to 40 structures: missing ones, single voxels, far islands, cut by the edge, anisotropic."""
    random = np.random.default_rng(seed)
    dimensions = 2 + seed % 2
    shape = tuple(random.integers(1, 40 if dimensions == 2 else 14, dimensions).tolist())
    structures = int(random.integers(1, 41))
    spacing = tuple((10 ** random.uniform(-1, 1, dimensions)).tolist())
    grid = np.indices(shape)
    pair = np.zeros((2, *shape), np.uint8 if seed % 3 else np.uint16)
    offset = 0 if seed % 3 else 300  # labels beyond a byte are another compiled type
    for label in range(1, structures + 1):
        centre, radius = random.uniform(-1, shape), random.uniform(0.6, max(1, max(shape) / 3), dimensions)
        for side in pair:
            kind = random.random()
            if kind < 0.1:
                continue
            if kind > 0.2:
                position = centre + random.normal(0, 1.5, dimensions)
                side[sum(((g - c) / r) ** 2 for g, c, r in zip(grid, position, radius, strict=True)) < 1] = (
                    offset + label
                )
            if kind < 0.4:
                side[tuple(random.integers(0, shape))] = offset + label
    return pair[0], pair[1], spacing, offset


def border_of(mask: np.ndarray) -> np.ndarray:
    return mask & ~binary_erosion(mask, generate_binary_structure(mask.ndim, 1))


@pytest.mark.parametrize(
    "seeds", [range(150), pytest.param(range(150, 1000), marks=pytest.mark.nightly)], ids=["first", "others"]
)
def test_distances_are_those_of_scipys_transform(seeds: range) -> None:
    compared = 0
    for seed in seeds:
        prediction, reference, spacing, offset = pair_of(seed)
        structures = range(offset + 1, offset + 41)
        comparisons = {
            name: module.compare_labels(prediction, reference, structures=structures, spacing=spacing)
            for name, module in MODULES.items()
        }
        first, second = comparisons["numpy"], comparisons["numba"]
        for counts in ("predicted", "expected", "common"):
            ours, theirs = getattr(first, counts), getattr(second, counts)
            np.testing.assert_array_equal(ours[offset + 1 :], theirs[offset + 1 :])
        assert first.distances.keys() == second.distances.keys()
        if first.distances:
            ours, theirs = (
                np.concatenate([side for sides in result.distances.values() for side in sides])
                for result in (first, second)
            )
            assert np.abs(ours - theirs).max() <= 1e-9
        for label in list(first.distances)[:2]:
            a, b = border_of(prediction == label), border_of(reference == label)
            there = distance_transform_edt(~b, sampling=spacing)[a]
            back = distance_transform_edt(~a, sampling=spacing)[b]
            for result in (first, second):
                for measured, expected in zip(result.distances[label], (there, back), strict=True):
                    assert np.abs(measured - expected).max() <= 1e-9
            compared += 1
    assert compared > 1.4 * len(seeds)


@pytest.mark.parametrize("kernel", MODULES)
def test_distances_are_those_of_simpleitks_filters(kernel: str) -> None:
    compared = 0
    for seed in range(100):
        prediction, reference, spacing, offset = pair_of(seed)
        structures = range(offset + 1, offset + 41)
        comparison = MODULES[kernel].compare_labels(prediction, reference, structures=structures, spacing=spacing)
        for label, (there, back) in list(comparison.distances.items())[:3]:
            images = []
            for labels in (prediction, reference):
                images.append(sitk.GetImageFromArray(border_of(labels == label).astype(np.uint8)))
                images[-1].SetSpacing(spacing[::-1])
            whole = sitk.HausdorffDistanceImageFilter()
            whole.Execute(*images)
            assert whole.GetHausdorffDistance() == pytest.approx(max(there.max(), back.max()), rel=1e-9, abs=1e-9)
            means = there.mean(), back.mean()
            assert whole.GetAverageHausdorffDistance() == pytest.approx(sum(means) / 2, rel=1e-9, abs=1e-9)
            signed = sitk.SignedMaurerDistanceMap(images[1], squaredDistance=False, useImageSpacing=True)
            outside = np.maximum(sitk.GetArrayFromImage(signed), 0)[border_of(prediction == label)]
            np.testing.assert_allclose(there, outside, rtol=1e-5, atol=1e-5)  # the filter computes in single precision
            compared += 1
    assert compared > 200


@pytest.mark.parametrize("kernel", MODULES)
def test_voxels_by_hand(kernel: str) -> None:
    prediction, reference = np.array([[1, 1, 0, 2, 0]], np.uint8), np.array([[0, 1, 1, 0, 3]], np.uint8)
    comparison = MODULES[kernel].compare_labels(prediction, reference, structures=[1, 2, 3], spacing=(1, 2))
    assert [table[1:4].tolist() for table in (comparison.predicted, comparison.expected, comparison.common)] == [
        [2, 1, 0],
        [2, 0, 1],
        [1, 0, 0],
    ]
    assert {label: [side.tolist() for side in sides] for label, sides in comparison.distances.items()} == {
        1: [[2, 0], [0, 2]]
    }


@pytest.mark.parametrize("kernel", MODULES)
def test_without_a_spacing_nothing_is_measured(kernel: str) -> None:
    labels = np.ones((3, 3), np.uint8)
    assert MODULES[kernel].compare_labels(labels, labels, structures=[1], spacing=None).distances == {}
