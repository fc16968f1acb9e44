from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from textseg.contracts import Atlas, Case
from textseg.drawing.side_by_side import best_median_worst, case_means, shared_slice, typical_cases
from textseg.errors import RunError
from textseg.metrics.scores import Score
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import KeptPredictions, keeping, read_kept
from textseg.volumes.files import write_labels
from textseg.volumes.geometry import Geometry

GEOMETRY = Geometry((3, 6, 5), (2.0, 0.5, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def row(case: str, structure: str, value: float, status: str = "ok", metric: str = "dsc") -> Score:
    return Score(case, case, None, structure, metric, "", "native", value, 0.0, status, "none")  # type: ignore[arg-type]


def kept(folder: Path, atlas: Atlas, value: int, geometry: Geometry = GEOMETRY) -> KeptPredictions:
    """Two cases whose annotation shows most in the third slice; the prediction is `value` in all of it."""
    mask = np.zeros(GEOMETRY.shape, np.uint8)
    mask[0, :, :3] = 1
    mask[2, 0, :2], mask[2, 1, 0] = 1, 2
    with keeping(RunFolder(folder), atlas) as keep:
        for name in ("a", "b"):
            write_labels(mask, GEOMETRY, folder / f"{name}_mask.mha")
            write_labels(mask * 9, GEOMETRY, folder / f"{name}_image.mha")
            case = Case(name, name, folder / f"{name}_image.mha", folder / f"{name}_mask.mha")
            keep(case, np.full(GEOMETRY.shape, value, np.uint8), geometry, {0: 0, 1: 1, 2: 4})
    return read_kept(RunFolder(folder))


def test_the_same_slice_under_every_method(small_atlas: Atlas, tmp_path: Path) -> None:
    methods = {"one": kept(tmp_path / "1", small_atlas, 1), "two": kept(tmp_path / "2", small_atlas, 3)}
    shared = shared_slice(methods, "b")
    assert (shared.case, shared.index, shared.count) == ("b", 2, GEOMETRY.shape[0])
    assert {method: set(np.unique(prediction)) for method, prediction in shared.predictions.items()} == {
        "one": {1},
        "two": {3},
    }
    assert set(np.unique(shared.reference)) == {0, 1, 4}
    np.testing.assert_array_equal(shared.image > 0, shared.reference > 0)
    assert shared.pixel_aspect == GEOMETRY.spacing_mm[1] / GEOMETRY.spacing_mm[2]
    assert list(shared.panels("x").masks) == ["image", "reference", "one", "two"]
    assert shared_slice(methods, "b", 0).index == 0


def test_what_does_not_fit_together_is_said(small_atlas: Atlas, tmp_path: Path) -> None:
    first = kept(tmp_path / "1", small_atlas, 1)
    with pytest.raises(RunError, match="'one' has no test case 'c'"):
        shared_slice({"one": first}, "c")
    with pytest.raises(RunError, match="Case 'a' has slices 1 to 3, and no 4"):
        shared_slice({"one": first}, "a", 3)
    renamed = KeptPredictions({1: "L5"}, first.cases)
    with pytest.raises(RunError, match="'two' names other structures than 'one'"):
        shared_slice({"one": first, "two": renamed}, "a")
    moved = Geometry(GEOMETRY.size, GEOMETRY.spacing, (9.0, 0.0, 0.0), GEOMETRY.direction)
    with pytest.raises(RunError, match="Case 'a' of 'two' lies on another grid: origin"):
        shared_slice({"one": first, "two": kept(tmp_path / "2", small_atlas, 1, moved)}, "a")


@pytest.mark.parametrize(
    ("dsc", "expected"),
    [
        ([], {}),
        ([0.5], {"0": "best"}),
        ([0.2, 0.5], {"1": "best", "0": "worst"}),
        ([0.2, 0.5, 0.4], {"1": "best", "2": "median", "0": "worst"}),
        ([0.1, 0.9, 0.3, 0.7, 0.5], {"1": "best", "4": "median", "0": "worst"}),
    ],
)
def test_best_median_and_worst(dsc: list[float], expected: dict[str, str]) -> None:
    ranks = best_median_worst({str(case): value for case, value in enumerate(dsc)})
    assert list(ranks.items()) == list(expected.items())


def test_a_miss_counts_in_the_mean_of_a_case_and_an_invention_does_not() -> None:
    scores = [row("a", "L1", 0.8), row("a", "L2", 0.0, "missed"), row("a", "SC", 0.0, "spurious")]
    scores += [row("a", "L1", 3.0, metric="hd95"), row("b", "L1", float("nan"))]
    assert case_means(scores) == {"a": 0.4}


def test_typical_cases_are_chosen_by_all_methods_together() -> None:
    first = [row("a", "L1", 0.9), row("b", "L1", 0.5), row("c", "L1", 0.1), row("d", "L1", 1.0)]
    second = [row("a", "L1", 0.1), row("b", "L1", 0.6), row("c", "L1", 0.8)]
    assert typical_cases({"one": first, "two": second}) == {"b": "best", "a": "median", "c": "worst"}
    assert typical_cases({"one": [row("x", "L1", 3.0, metric="hd95")]}) == {"x": "first"}
