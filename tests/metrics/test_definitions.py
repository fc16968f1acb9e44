import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from medpy.metric import binary

from textseg.errors import DataError, PluginError, RecipeError
from textseg.metrics import named
from textseg.metrics.definitions import POLICY, Kernel, StructureScore, fastest_kernel, score
from textseg.metrics.named import NamedMetric, build_metrics, metric_named
from textseg.recipe.schema import MetricSpec

ALL = ("dsc", "jaccard", "hd95", "asd", "assd")  # without those that need a tolerance or another definition
KERNELS: tuple[Kernel, ...] = ("numpy", "numba")
distances_of = getattr(binary, "__surface_distances")


def surface_dice(tolerance: float) -> NamedMetric:
    return build_metrics([MetricSpec.model_validate({"use": "nsd", "tolerance": tolerance})])[0]


def blobs(random: np.random.Generator, shape: tuple[int, ...], labels: int) -> np.ndarray:
    """Overlapping boxes and balls of every label, some cut by the edge of the image."""
    image = np.zeros(shape, np.uint8)
    grid = np.indices(shape)
    for label in random.permutation(np.arange(1, labels + 1)):
        centre = [random.integers(-1, length + 1) for length in shape]
        radius = [random.uniform(0.8, max(1.0, length / 3)) for length in shape]
        scaled = [np.abs(axis - c) / r for axis, c, r in zip(grid, centre, radius, strict=True)]
        inside = np.max(scaled, axis=0) < 1 if random.random() < 0.5 else np.sum(np.square(scaled), axis=0) < 1
        image[inside] = label
    return image


def disturbed(random: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A prediction as models make them: moved a little, with noise, swapped labels and a far island."""
    moved = np.roll(image, [int(random.integers(-2, 3)) for _ in image.shape], axis=tuple(range(image.ndim)))
    noisy = random.random(image.shape) < random.choice([0.0, 0.02, 0.3])
    moved = np.where(noisy, random.permutation(image.ravel()).reshape(image.shape), moved).astype(np.uint8)
    if image.max():
        moved[tuple(random.integers(0, length) for length in image.shape)] = random.integers(1, image.max() + 1)
    return moved


def assert_equals_medpy(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> int:
    """Compares every structure, and says how many both sides contain."""
    binary = pytest.importorskip("medpy.metric.binary", reason="medpy is the independent implementation")
    structures = range(1, 22)
    scores, others = (
        score(prediction, reference, spacing=spacing, structures=structures, metrics=ALL, kernel=kernel)
        for kernel in KERNELS
    )
    compared = 0
    for label in structures:
        status, values = scores[label].status, scores[label].values
        assert others[label].status == status
        assert others[label].values == pytest.approx(values, rel=0, abs=1e-9, nan_ok=True)
        assert tuple(values) == ALL
        a, b = prediction == label, reference == label
        if a.any() and b.any():
            expected = {"dsc": binary.dc(a, b), "jaccard": binary.jc(a, b)}
            expected |= {name: getattr(binary, name)(a, b, voxelspacing=spacing) for name in ("hd95", "asd", "assd")}
            assert status == "ok"
            assert values == pytest.approx(expected, rel=0, abs=1e-9)
            compared += 1
        else:
            assert status == ("spurious" if a.any() else "missed" if b.any() else "absent")
            if a.any() or b.any():
                assert values["dsc"] == binary.dc(a, b) == 0
                assert values["jaccard"] == binary.jc(a, b) == 0
    return compared


@pytest.mark.parametrize("dimensions", [2, 3])
def test_random_label_maps_equal_medpy(dimensions: int) -> None:
    random = np.random.default_rng(dimensions)
    compared = 0
    for _ in range(160):
        shape = tuple(int(random.integers(1, 33 if dimensions == 2 else 13)) for _ in range(dimensions))
        reference = blobs(random, shape, labels=int(random.integers(1, 21)))
        prediction = disturbed(random, reference) if random.random() < 0.8 else blobs(random, shape, labels=20)
        spacing = tuple(random.choice([1.0, 0.46875, 3.3, 0.123456789], dimensions).tolist())
        compared += assert_equals_medpy(prediction, reference, spacing)
    assert compared > 500


def adversarial() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for shape in ((9, 11), (5, 9, 7), (1, 8, 6), (1, 1), (1, 1, 1), (1, 30)):
        full = np.ones(shape, np.uint8)
        yield f"all of the image {shape}", full, full
        corner, opposite = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        corner.flat[0] = opposite.flat[-1] = 1
        yield f"one voxel in opposite corners {shape}", corner, opposite
        yield f"one voxel against all {shape}", corner, full
        yield f"all against one voxel {shape}", full, corner
        checkers = (np.indices(shape).sum(axis=0) % 2 + 1).astype(np.uint8)
        yield f"checkerboard against its inverse {shape}", checkers, (3 - checkers).astype(np.uint8)
    shell = np.zeros((9, 9, 9), np.uint8)
    shell[1:8, 1:8, 1:8] = 1
    hollow = shell.copy()
    hollow[3:6, 3:6, 3:6] = 0
    filled = shell.copy()
    filled[3:6, 3:6, 3:6] = 2
    yield "a hollow against a solid box", hollow, shell
    yield "a solid against a hollow box", shell, hollow
    yield "a box with another inside against a hollow one", filled, hollow
    island = np.zeros((60, 60), np.uint8)
    island[2:12, 2:12] = 3
    far = island.copy()
    far[58:, 58:] = 3
    yield "a far island predicted", far, island
    yield "a far island overlooked", island, far
    stripes = np.repeat(np.arange(20, dtype=np.uint8) + 1, 3)[:, None] * np.ones((1, 17), np.uint8)
    yield "twenty stripes that touch", np.roll(stripes, 1, axis=0), stripes
    yield "twenty columns that touch, in 3-D", np.stack([stripes] * 4), np.stack([np.roll(stripes, 2, axis=1)] * 4)
    turned = np.asfortranarray(stripes.T[::-1])
    yield "arrays that are not contiguous", turned, turned[:, ::-1]


@pytest.mark.parametrize(("prediction", "reference"), [pytest.param(*pair, id=name) for name, *pair in adversarial()])
def test_adversarial_label_maps_equal_medpy(prediction: np.ndarray, reference: np.ndarray) -> None:
    for spacing in ((1.0, 1.0, 1.0), (3.3, 0.47, 0.9), (0.01, 20.0, 1.0)):
        assert_equals_medpy(prediction, reference, spacing[-prediction.ndim :])


def test_example_by_hand() -> None:
    """A bar of three pixels against one of four, moved by one along columns of 2 mm; every pixel is border."""
    prediction = np.array([[0, 5, 5, 5, 0, 0], [0, 0, 0, 0, 0, 0]])
    reference = np.array([[0, 0, 5, 5, 5, 5], [0, 0, 0, 0, 0, 0]])
    result = score(prediction, reference, spacing=(1.0, 2.0), structures=[5], metrics=ALL)[5]
    # prediction to reference: 2, 0, 0; reference to prediction: 0, 0, 2, 4; pooled and sorted: 0 0 0 0 2 2 4
    assert result.status == "ok"
    assert result.values == pytest.approx(
        {"dsc": 4 / 7, "jaccard": 2 / 5, "asd": 2 / 3, "assd": 8 / 7, "hd95": 2 + 0.7 * 2}, abs=1e-12
    )


def test_inner_voxels_do_not_count_and_the_edge_of_the_image_does() -> None:
    """A square that fills the image has its 16 outer pixels as border; the inner hole of the prediction is 1 away."""
    reference = np.ones((5, 5), np.uint8)
    prediction = reference.copy()
    prediction[2, 2] = 0
    values = score(prediction, reference, spacing=(1, 1), structures=[1], metrics=["asd"])[1].values
    assert values["asd"] == pytest.approx(4 * 1 / 20)  # the four neighbours of the hole are border too, 1 from the edge


def test_policy_for_missed_spurious_and_absent() -> None:
    prediction, reference = np.array([[1, 0, 2]]), np.array([[1, 3, 0]])
    scores = score(prediction, reference, spacing=(1, 1), structures=[1, 2, 3, 4], metrics=ALL)
    assert scores[1] == StructureScore("ok", {"dsc": 1.0, "jaccard": 1.0, "hd95": 0.0, "asd": 0.0, "assd": 0.0})
    assert [scores[label].status for label in (2, 3, 4)] == ["spurious", "missed", "absent"]
    for label in (2, 3):
        assert scores[label].values["dsc"] == scores[label].values["jaccard"] == 0
        assert all(math.isnan(scores[label].values[name]) for name in ("hd95", "asd", "assd"))
    assert all(math.isnan(value) for value in scores[4].values.values())
    for word in ("ok", "missed", "spurious", "absent", "NaN"):
        assert word in POLICY


def test_empty_label_maps_and_structures() -> None:
    empty = np.zeros((4, 5), np.uint8)
    assert score(empty, empty, spacing=(1, 1), structures=[1, 9], metrics=ALL)[9].status == "absent"
    assert score(empty, empty, spacing=(1, 1), structures=[], metrics=ALL) == {}
    assert score(empty, empty, spacing=(1, 1), structures=[1], metrics=[])[1].values == {}


def test_only_the_metrics_asked_for_in_their_order() -> None:
    image = np.ones((2, 2), np.uint8)
    assert list(score(image, image, spacing=(1, 1), structures=[1], metrics=["asd", "dsc"])[1].values) == ["asd", "dsc"]


def test_background_can_be_scored_too() -> None:
    binary = pytest.importorskip("medpy.metric.binary", reason="medpy is the independent implementation")
    random = np.random.default_rng(0)
    prediction, reference = (random.integers(0, 3, (12, 9)).astype(np.uint8) for _ in range(2))
    prediction[:4] = reference[-5:] = 0
    values = score(prediction, reference, spacing=(1, 2), structures=[0, 1], metrics=["hd95", "dsc"])[0].values
    a, b = prediction == 0, reference == 0
    assert values["hd95"] == pytest.approx(binary.hd95(a, b, voxelspacing=(1, 2)), abs=1e-9)
    assert values["dsc"] == pytest.approx(binary.dc(a, b))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.uint64])
def test_integer_types_do_not_matter(dtype: type) -> None:
    random = np.random.default_rng(1)
    prediction, reference = (random.integers(0, 4, (8, 9)) for _ in range(2))
    options = {"spacing": (1, 1), "structures": [1, 2, 3], "metrics": ALL}
    assert score(prediction.astype(dtype), reference, **options) == score(prediction, reference, **options)


def test_boolean_masks() -> None:
    mask = np.eye(5, dtype=bool)
    assert score(mask, mask, spacing=(1, 1), structures=[1], metrics=["dsc"])[1].values == {"dsc": 1.0}


def test_label_maps_are_left_as_they_are() -> None:
    random = np.random.default_rng(2)
    prediction, reference = (random.integers(0, 4, (8, 9)) for _ in range(2))
    before = prediction.copy(), reference.copy()
    score(prediction, reference, spacing=(1, 1), structures=[1], metrics=ALL)
    np.testing.assert_array_equal((prediction, reference), before)


def test_mistakes() -> None:
    image = np.ones((2, 2), np.uint8)
    with pytest.raises(PluginError, match=r"no metric 'hd59'. Did you mean 'hd95'\? Possible: asd, asd_reverse, assd"):
        score(image, image, spacing=(1, 1), structures=[1], metrics=["hd59"])
    with pytest.raises(DataError, match=r"\(2, 2\).*\(2, 3\)"):
        score(image, np.ones((2, 3), np.uint8), spacing=(1, 1), structures=[1], metrics=["dsc"])
    for spacing in ((1,), (1, 1, 1), (1, 0), (1, math.nan)):
        with pytest.raises(ValueError, match="spacing of 2 positive"):
            score(image, image, spacing=spacing, structures=[1], metrics=["dsc"])
    for labels in (image * 1.0, image.astype(int) * -1):
        with pytest.raises(ValueError, match="non-negative integers"):
            score(labels, image, spacing=(1, 1), structures=[1], metrics=["dsc"])


def test_the_worst_is_nothing_in_common_or_the_diagonal() -> None:
    assert [metric_named(name).worst((4, 5), (0.5, 2.0)) for name in ("dsc", "jaccard")] == [0, 0]
    assert metric_named("hd95").worst((4, 5), (0.5, 2.0)) == pytest.approx((1.5**2 + 8**2) ** 0.5)
    corners = np.zeros((2, 4, 5, 6), np.uint8)
    corners[0, 0, 0, 0] = corners[1, -1, -1, -1] = 1
    values = score(*corners, spacing=(3, 2, 1), structures=[1], metrics=["hd95", "asd"])[1].values
    assert values["asd"] == pytest.approx(metric_named("asd").worst(corners.shape[1:], (3, 2, 1)))


def cases(seeds: range) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, ...], int]]:
    """Random and adversarial pairs of label maps: missing, one voxel, far islands, at the border, anisotropic."""
    for seed in seeds:
        generator = np.random.default_rng(seed)
        dimensions = 2 + seed % 2
        shape = tuple(generator.integers(5, 28 if dimensions == 2 else 13, dimensions).tolist())
        structures = int(generator.integers(1, 41))
        spacing = tuple(generator.uniform(0.2, 5.0, dimensions).round(3).tolist())
        pair, grid = np.zeros((2, *shape), np.uint8), np.indices(shape)
        for label in range(1, structures + 1):
            centre, radius = generator.uniform(0, shape), generator.uniform(0.6, max(shape) / 3, dimensions)
            for side in range(2):
                away = centre + generator.normal(0, 1.5, dimensions) * side
                distance = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, away, radius, strict=True))
                kind = generator.random()
                if kind < 0.1:
                    continue  # missing
                if kind < 0.2:
                    pair[side][tuple(generator.integers(0, shape))] = label  # one voxel
                    continue
                pair[side][distance < 1] = label
                if kind < 0.3:
                    pair[side][tuple(np.array(shape) - 1)] = label  # an island in the corner
        yield pair[0], pair[1], spacing, structures


@pytest.mark.parametrize("shape", [(5, 14, 12), (20, 16)])
def test_metrics_by_medpy_are_its_own_and_equal_ours(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = dict.fromkeys(("dc", "jc", "hd95", "asd", "assd"), 0)

    def counted(name: str, function: Callable[..., float], *masks: np.ndarray, **spacing: Any) -> float:
        calls[name] += 1
        return function(*masks, **spacing)

    for name in calls:
        monkeypatch.setattr(binary, name, partial(counted, name, getattr(binary, name)))
    names = [*ALL, "asd_reverse", "hd95_directed_max", surface_dice(1.0)]
    random = np.random.default_rng(3)
    for _ in range(20):
        image = blobs(random, shape, 3)
        pair, spacing = (image, np.roll(image, 1, axis=-1)), tuple(random.uniform(0.3, 4, len(shape)))
        ours, theirs = (
            score(*pair, spacing=spacing, structures=[1, 2, 3, 9], metrics=names, kernel=kernel)
            for kernel in ("numpy", "medpy")
        )
        for label, expected in ours.items():
            assert theirs[label].status == expected.status
            assert theirs[label].values == pytest.approx(expected.values, rel=0, abs=1e-9, nan_ok=True)
    assert len({*calls.values()}) == 1
    assert calls["dc"] > 30


def test_medpy_does_not_compute_a_metric_that_a_subclass_defines_otherwise() -> None:
    class Half(type(metric_named("dsc").metric)):  # type: ignore[misc]
        def from_counts(self, predicted: int, expected: int, common: int) -> float:
            return common / (predicted + expected)

    image = np.ones((3, 3), np.uint8)
    half = NamedMetric("half", Half())
    values = score(image, image, spacing=(1, 1), structures=[1], metrics=[half, "dsc"], kernel="medpy")[1].values
    assert values == {"half": 0.5, "dsc": 1.0}


def test_a_missing_medpy_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "unmet", lambda requirement: ["medpy>=0.5.2"])
    with pytest.raises(RecipeError, match=r"evaluation.kernel: 'medpy' needs medpy.*pip install 'textseg\[medpy\]'"):
        build_metrics(["dsc"], kernel="medpy")


@pytest.mark.parametrize(
    "seeds", [range(400), pytest.param(range(400, 2000), marks=pytest.mark.nightly)], ids=["first", "others"]
)
def test_many_pairs_equal_medpy_and_follow_the_policy(seeds: range) -> None:
    names = ["dsc", "jaccard", "hd95", "asd", "asd_reverse", "assd", "hd95_directed_max", surface_dice(1.0)]
    seen = {"ok": 0, "missed": 0, "spurious": 0, "absent": 0}
    pairs = 0
    for number, (prediction, reference, spacing, structures) in zip(seeds, cases(seeds), strict=True):
        pairs += 1
        wanted = range(1, structures + 1)
        scores, other_kernel = (
            score(prediction, reference, spacing=spacing, structures=wanted, metrics=names, kernel=kernel)
            for kernel in KERNELS
        )
        # medpy takes far longer: every structure is checked for its status, a few for their values
        both = []
        checked = np.random.default_rng(number).permutation(list(wanted))[:3]
        for label in wanted:
            in_prediction, in_reference = prediction == label, reference == label
            status, values = scores[label].status, scores[label].values
            seen[status] += 1
            assert other_kernel[label].status == status
            both.append((list(values.values()), list(other_kernel[label].values.values())))
            assert (
                status
                == {(1, 1): "ok", (0, 1): "missed", (1, 0): "spurious", (0, 0): "absent"}[
                    in_prediction.any(), in_reference.any()
                ]
            )
            if status in ("missed", "spurious"):
                assert [values[name] for name in ("dsc", "jaccard", "nsd")] == [0, 0, 0]
            if status != "ok":
                assert all(
                    np.isnan(values[name]) for name in ("hd95", "asd", "asd_reverse", "assd", "hd95_directed_max")
                )
            elif label in checked:
                there = distances_of(in_prediction, in_reference, spacing, 1)
                back = distances_of(in_reference, in_prediction, spacing, 1)
                expected = {
                    "dsc": binary.dc(in_prediction, in_reference),
                    "jaccard": binary.jc(in_prediction, in_reference),
                    "hd95": binary.hd95(in_prediction, in_reference, voxelspacing=spacing),
                    "asd": binary.asd(in_prediction, in_reference, voxelspacing=spacing),
                    "asd_reverse": binary.asd(in_reference, in_prediction, voxelspacing=spacing),
                    "assd": np.concatenate([there, back]).mean(),
                    "hd95_directed_max": max(np.percentile(there, 95), np.percentile(back, 95)),
                    "nsd": np.mean(np.concatenate([there, back]) <= 1.0),
                }
                for name, value in expected.items():
                    assert values[name] == pytest.approx(value, rel=1e-9, abs=1e-9), (number, label, name)
        ours, theirs = zip(*both, strict=True)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert pairs == len(seeds)
    assert min(seen.values()) > 100


def test_nsd_by_hand_and_its_tolerance() -> None:
    first, second = np.zeros((2, 1, 20), np.uint8)
    first[0, 2:6] = second[0, 3:10] = 1

    def score_of(tolerance: float) -> float:
        metrics = [surface_dice(tolerance)]
        return score(first, second, spacing=(1, 1), structures=[1], metrics=metrics)[1].values["nsd"]

    # Each voxel of a line is border: 2..5 against 3..9
    assert score_of(0.5) == pytest.approx((3 + 3) / 11)
    assert score_of(1.0) == pytest.approx((4 + 4) / 11)
    assert score_of(4.0) == 1
    with pytest.raises(RecipeError, match="tolerance: required by metric 'nsd' but missing"):
        metric_named("nsd")
    with pytest.raises(RecipeError, match="tolerance: should be greater than 0"):
        surface_dice(0.0)


@pytest.fixture
def _undecided() -> Iterator[None]:
    fastest_kernel.cache_clear()
    yield
    fastest_kernel.cache_clear()


@pytest.mark.usefixtures("_undecided")
def test_the_compiled_kernel_is_used_where_numba_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest_kernel() == "numba"
    fastest_kernel.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fastest_kernel() == "numpy"


@pytest.mark.usefixtures("_undecided")
def test_a_numba_that_does_not_work_is_said_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textseg.metrics.surfaces_numba", None)
    monkeypatch.delattr("textseg.metrics.surfaces_numba", raising=False)
    with pytest.warns(UserWarning, match=r"numba can't be used \(.*\); metrics are computed without it"):
        assert fastest_kernel() == "numpy"
    image = np.ones((2, 2), np.uint8)
    assert score(image, image, spacing=(1, 1), structures=[1], metrics=["hd95"])[1].values == {"hd95": 0.0}
