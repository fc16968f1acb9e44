import numpy as np
import pytest

from textseg.metrics import surfaces as borders
from textseg.metrics import surfaces_numba as compiled_borders


@pytest.mark.parametrize("shape", [(40, 50), (9, 40, 30)])
def test_what_lies_far_is_left_to_the_tree_and_comes_out_the_same(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between every point by rows and every point by the tree, the distances don't change."""
    random = np.random.default_rng(0)
    sides = [(random.random(shape) < share).astype(np.uint8) for share in (0.01, 0.02)]
    spacing = (4.0, 0.7, 0.9)[-len(shape) :]
    expected = borders.compare_labels(*sides, structures=[1], spacing=spacing).distances[1]
    asked = []

    def counting(points: np.ndarray, others: np.ndarray) -> np.ndarray:
        asked.append(len(points))
        return borders.nearest(points, others)

    monkeypatch.setattr(compiled_borders, "nearest", counting)
    left = {}
    for rows in (0, 5, 10**6):
        monkeypatch.setattr(compiled_borders, "ROWS", rows)
        asked.clear()
        distances = compiled_borders.compare_labels(*sides, structures=[1], spacing=spacing).distances[1]
        left[rows] = sum(asked)
        np.testing.assert_allclose(np.concatenate(distances), np.concatenate(expected), rtol=0, atol=1e-9)
    assert left[0] == sum(map(len, expected))
    assert left[0] > left[5] > left[10**6] == 0


def test_two_types_are_compiled_whatever_the_arrays_hold() -> None:
    for kind in (np.uint8, np.int16, np.uint32, np.int64):
        labels = np.ones((4, 4), kind)
        fixed = labels.copy()
        fixed.flags.writeable = False  # as a memory map is
        compiled_borders.compare_labels(labels, fixed, structures=[1], spacing=(1, 1))
        assert labels.flags.writeable
        compiled_borders.compare_labels(labels, labels, structures=[1], spacing=(1, 1))
        compiled_borders.compare_labels(labels, labels, structures=[1, 1000], spacing=(1, 1))
        compiled_borders.compare_labels(labels[None], labels[None], structures=[1], spacing=(1, 1, 1))
    assert len(compiled_borders._count.signatures) == len(compiled_borders._border.signatures) == 2
    assert len(compiled_borders._search.signatures) == 1


def test_what_is_compiled_is_kept_for_the_next_process() -> None:
    for function in (compiled_borders._count, compiled_borders._border, compiled_borders._search):
        assert function._cache.cache_path
