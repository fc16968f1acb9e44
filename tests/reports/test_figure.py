from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import KDTree

from textseg.contracts import IGNORED
from textseg.errors import RunError
from textseg.reports.figure import (
    _tsne,
    draw_pixels,
    features_figure,
    named,
    predictions_figure,
    probabilities_figure,
    trained_runs,
)
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import read_kept
from textseg.volumes.files import write_labels

pytestmark = pytest.mark.usefixtures("stranger")


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def copy_of(run: Path, folder: Path, **facts: object) -> Path:
    """A run that differs in what run.json says; a prompt source puts it where those scores stand."""
    shutil.copytree(run, folder)
    RunFolder(folder).update(**facts)
    return folder


@pytest.fixture
def second(finished_run: Path, tmp_path: Path) -> Path:
    """The same run under another name, which predicted nothing in its first case."""
    folder = copy_of(finished_run, tmp_path / "seed1", name="other")
    case = next(iter(read_kept(RunFolder(folder)).cases.values()))
    array, geometry = case.read_prediction()
    write_labels(np.zeros_like(array), geometry, case.prediction)
    return folder


def test_panels_differ_where_predictions_differ_and_nowhere_else(finished_run: Path, second: Path) -> None:
    case = next(iter(read_kept(RunFolder(second)).cases))
    same = pixels(
        predictions_figure([finished_run, copy_of(finished_run, second.parent / "seed2", name="other")], cases=[case])
    )
    different = pixels(predictions_figure([finished_run, second], cases=[case]))
    assert same.shape[1] == different.shape[1]
    # The legend may be shorter, so the panels are compared from the top.
    height = min(len(same), len(different)) // 2
    columns = np.flatnonzero((same[:height] != different[:height]).any(axis=(0, 2)))
    assert len(columns)
    assert columns.min() > 0.7 * same.shape[1]  # image, reference and the first run are the same


def test_without_cases_the_typical_ones_are_drawn(finished_run: Path) -> None:
    single = pixels(predictions_figure([finished_run], cases=list(read_kept(RunFolder(finished_run)).cases)[:1]))
    assert len(pixels(predictions_figure([finished_run]))) > 1.4 * len(single)


def test_probabilities_are_those_of_the_checkpoint(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(
        "textseg.reports.figure.probability_png", lambda title, lines: drawn.update({title: lines}) or b""
    )
    probabilities_figure([finished_run], slice_number=2, structures=["l4", "vertebral canal"])
    ((title, (line,)),) = drawn.items()
    (trained,) = trained_runs([finished_run])
    prepared = trained.case(None)
    assert title == f"Probability in case {prepared.case.id}, slice 3 of {prepared.slice_count}"
    logits = np.concatenate([output.logits.numpy() for output in trained.outputs(prepared)])[2].astype(np.float64)
    expected = np.exp(logits - logits.max(0)) / np.exp(logits - logits.max(0)).sum(0)
    for name in ("L4", "SC"):
        np.testing.assert_allclose(line.maps[name], expected[trained.experiment.atlas[name].index], atol=1e-6)
    np.testing.assert_array_equal(
        line.references["SC"], np.asarray(prepared.mask)[2] == trained.experiment.atlas["SC"].index
    )


def test_features_are_the_fused_ones_where_the_pixels_lie(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def keep(points: np.ndarray) -> np.ndarray:
        seen["points"] = points
        return points[:, :2]

    monkeypatch.setattr("textseg.reports.figure._tsne", keep)
    monkeypatch.setattr("textseg.reports.figure.pixel_png", lambda title, maps, names: seen.update(maps=maps) or b"")
    (trained,) = trained_runs([finished_run])
    prepared = trained.case(None)
    features_figure([finished_run], cases=[prepared.case.id])
    fused = np.concatenate([output.fused_features[0].numpy() for output in trained.outputs(prepared)])
    mask = np.asarray(prepared.mask)
    (places,) = draw_pixels([mask], 1000)
    stride = mask.shape[1] // fused.shape[2]
    expected = [fused[s, :, r // stride, c // stride] for s, r, c in places]
    np.testing.assert_allclose(seen["points"], expected, atol=1e-6)
    assert seen["maps"][0].features == f"{fused.shape[1]} fused features"
    np.testing.assert_array_equal(seen["maps"][0].classes, mask[tuple(places.T)])


def test_pixels_are_drawn_evenly_from_the_structures() -> None:
    mask = np.zeros((2, 30, 30), np.uint8)
    mask[0, :10, :10], mask[1, 0, :4], mask[1, 20:] = 1, 2, IGNORED
    first, second = draw_pixels([mask[:1], mask[1:]], 60)
    classes = np.concatenate([mask[:1][tuple(first.T)], mask[1:][tuple(second.T)]])
    assert np.bincount(classes).tolist() == [20, 20, 4]


def test_runs_are_named_apart(finished_run: Path, tmp_path: Path) -> None:
    runs = [
        finished_run,
        copy_of(finished_run, tmp_path / "seed7", seed=7),
        copy_of(finished_run, tmp_path / "b", name="tall", evaluation={"prompts": "ground_truth"}),
        finished_run,
    ]
    seed = json.loads((finished_run / "run.json").read_text())["seed"]
    assert list(named(runs)) == [f"tiny, seed {seed}", "tiny, seed 7", "tall ORACLE"]
    same = copy_of(finished_run, tmp_path / "again")
    assert list(named([finished_run, same])) == [f"tiny, {finished_run}", f"tiny, {same}"]


def test_mistakes_are_said(finished_run: Path, second: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="'tiny' has no test case 'x'"):
        probabilities_figure([finished_run], case="x")
    with pytest.raises(RunError, match="--structures: atlas 'lumbar_spider' has no 'L44'. Did you mean 'L4'"):
        probabilities_figure([finished_run], structures=["L44"])
    with pytest.raises(RunError, match="has slices 1 to 5, and no 6"):
        probabilities_figure([finished_run], slice_number=5)
    RunFolder(second).update(predictions="masks")
    with pytest.raises(RunError, match="holds masks of another tool: there is no model to look into"):
        features_figure([second])
    shutil.rmtree(second / "predictions")
    with pytest.raises(RunError, match="keeps no predictions to draw"):
        predictions_figure([finished_run, second])


def test_groups_of_pixels_stay_groups_and_the_same_points_give_the_same_picture() -> None:
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(4), 20)
    points = random.normal(0, 6, (4, 20))[groups] + random.normal(0, 1, (len(groups), 20))
    places = _tsne(points)
    _, nearest = KDTree(places).query(places, k=6)
    assert (groups[nearest[:, 1:]] == groups[:, None]).mean() > 0.99
    np.testing.assert_array_equal(places, _tsne(points))


@pytest.mark.parametrize("points", [np.zeros((6, 3)), np.eye(3), np.ones((1, 2))])
def test_few_or_equal_points_still_have_places(points: np.ndarray) -> None:
    places = _tsne(points)
    assert places.shape == (len(points), 2)
    assert np.isfinite(places).all()


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(RunError, match=r"needs scikit-learn.* pip install 'textseg\[figures\]'"):
        _tsne(np.eye(5))
