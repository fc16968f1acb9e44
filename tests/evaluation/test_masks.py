from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medpy.metric import binary

from textseg.cli import entry as cli
from textseg.comparison.compare import compare
from textseg.comparison.text import as_text
from textseg.contracts import Dataset
from textseg.errors import DataError, RunError
from textseg.evaluation.masks import compare_moved_masks, evaluate_masks
from textseg.metrics.scores import read_scores
from textseg.recipe.schema import EvaluationSettings
from textseg.registry.discovery import installed_registry
from textseg.volumes.files import read_labels, write_labels
from textseg.volumes.geometry import Geometry

SETTINGS = EvaluationSettings()


@pytest.fixture(scope="module", params=[3, pytest.param(None, marks=pytest.mark.nightly)], ids=["some", "all"])
def references(request: pytest.FixtureRequest, spider_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a few real scans of SPIDER, or with all of them."""
    folder = tmp_path_factory.mktemp("references")
    masks = sorted((spider_folder / "masks").glob("*.mha"))[: request.param]
    for part in ("images", "masks"):
        (folder / part).mkdir()
        for name in (path.name for path in masks):
            (folder / part / name).symlink_to(spider_folder / part / name)
    for table in spider_folder.glob("*.csv"):
        (folder / table.name).symlink_to(table)
    return folder


@pytest.fixture
def dataset(references: Path) -> Dataset:
    built: Dataset = installed_registry().build("dataset", "spider", settings={"folder": str(references)})
    return built


def predict(dataset: Dataset, folder: Path, rows: int = 1, *, suffix: str = ".nii.gz") -> Path:
    """The references, a few rows lower."""
    for case in dataset.cases():
        if case.mask_path is not None:
            labels = read_labels(case.mask_path)
            write_labels(np.roll(labels.array, rows, axis=1), labels.geometry, folder / f"{case.id.upper()}{suffix}")
    return folder


def first_case(dataset: Dataset) -> str:
    return next(case.id for case in dataset.cases() if case.mask_path is not None)


def test_scores_are_those_of_medpy(dataset: Dataset, tmp_path: Path) -> None:
    predictions = predict(dataset, tmp_path / "other_tool", rows=3)
    scores, missing, extra = evaluate_masks(predictions, dataset, "other", SETTINGS, tmp_path / "out")
    assert missing == extra == []
    assert repr(read_scores(tmp_path / "out/scores.csv")) == repr(scores)  # NaN is not equal to itself
    case = next(case for case in dataset.cases() if case.mask_path is not None)
    assert case.mask_path is not None
    reference = read_labels(case.mask_path)
    prediction = np.roll(reference.array, 3, axis=1)
    values = {row.metric: row.value for row in scores if (row.case, row.structure) == (case.id, "L5")}
    assert values["dsc"] == pytest.approx(binary.dc(prediction == 1, reference.array == 1))
    for metric, function in (("hd95", binary.hd95), ("asd", binary.asd)):
        distance = function(prediction == 1, reference.array == 1, voxelspacing=reference.spacing_mm)
        assert values[metric] == pytest.approx(distance, rel=1e-5)
    assert {row.structure for row in read_scores(tmp_path / "out/group_scores.csv")} == {"vertebrae", "discs", "canal"}


def test_a_missing_mask_is_a_miss_of_everything_and_a_foreign_one_is_named(dataset: Dataset, tmp_path: Path) -> None:
    predictions, case = predict(dataset, tmp_path / "masks"), first_case(dataset)
    moved = predictions / "999_t2.nii.gz"
    (predictions / f"{case.upper()}.nii.gz").rename(moved)
    scores, missing, extra = evaluate_masks(predictions, dataset, "other", SETTINGS, tmp_path / "out")
    assert (missing, extra) == ([case], [str(moved)])
    rows = [row for row in scores if row.case == case]
    assert {row.status for row in rows} == {"missed", "absent"}
    assert json.loads((tmp_path / "out/run.json").read_text())["missing_files"] == [case]


def test_two_tools_are_compared_and_a_run_is_told_apart(
    dataset: Dataset, tmp_path: Path, finished_run: Path, stranger: None
) -> None:
    for name, rows in (("near", 1), ("far", 3)):
        evaluate_masks(predict(dataset, tmp_path / f"masks_{name}", rows), dataset, name, SETTINGS, tmp_path / name)
    board = as_text(compare([tmp_path / "far", tmp_path / "near"]))
    assert board.index("near") < board.index("far")
    with pytest.raises(RunError, match="hashes.data: .* has '.*', .* has '.*'"):
        compare([tmp_path / "near", finished_run])


def test_only_the_patients_asked_for(dataset: Dataset, tmp_path: Path) -> None:
    predictions = predict(dataset, tmp_path / "masks")
    patients = sorted({case.patient for case in dataset.cases()})[:1]
    scores, missing, extra = evaluate_masks(
        predictions, dataset, "other", SETTINGS, tmp_path / "out", patients=patients
    )
    assert {row.patient for row in scores} == set(patients)
    assert missing == extra == []


def test_what_can_not_be_scored(dataset: Dataset, tmp_path: Path, finished_run: Path) -> None:
    predictions, case = predict(dataset, tmp_path / "masks"), first_case(dataset)
    path = predictions / f"{case.upper()}.nii.gz"
    labels = read_labels(path)
    g = labels.geometry
    write_labels(labels.array, Geometry(g.size, g.spacing, (g.origin[0] + 3, *g.origin[1:]), g.direction), path)
    with pytest.raises(DataError, match=r"does not lie on its reference .*: origin .* Resample it"):
        evaluate_masks(predictions, dataset, "x", SETTINGS, tmp_path / "out")
    write_labels(np.where(labels.array == 1, 77, labels.array), g, path)
    with pytest.raises(DataError, match="holds 77, and the data set's labels name only"):
        evaluate_masks(predictions, dataset, "x", SETTINGS, tmp_path / "out")
    shutil.copy(path, predictions / f"{case}.nii")
    with pytest.raises(DataError, match="are masks of the same case"):
        evaluate_masks(predictions, dataset, "x", SETTINGS, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="bears the name of a case; these are"):
        evaluate_masks(tmp_path / "empty", dataset, "x", SETTINGS, tmp_path / "out")
    with pytest.raises(DataError, match="There is no folder"):
        evaluate_masks(tmp_path / "nowhere", dataset, "x", SETTINGS, tmp_path / "out")
    with pytest.raises(DataError, match="is the folder of a run"):
        evaluate_masks(predictions, dataset, "x", SETTINGS, finished_run)
    with pytest.raises(DataError, match="scored in their own grid"):
        evaluate_masks(predictions, dataset, "x", EvaluationSettings(space="prepared"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["textseg", "score", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def move(dataset: Dataset, folder: Path, levels: int) -> Path:
    """The references with names moved by some levels; a structure without a successor keeps its name."""
    atlas = dataset.atlas
    for case in dataset.cases():
        if case.mask_path is not None:
            labels, meaning = read_labels(case.mask_path), dataset.label_map(case)
            value_of = {index: value for value, index in meaning.items()}
            array = labels.array.copy()
            for value, index in meaning.items():
                successor = atlas.neighbour(atlas.names[index - 1], levels) if index else None
                if successor and atlas[successor].index in value_of:
                    array[labels.array == value] = value_of[atlas[successor].index]
            write_labels(array, labels.geometry, folder / f"{case.id}.nii.gz")
    return folder


def test_the_obedience_of_masks_under_a_moved_text(dataset: Dataset, tmp_path: Path) -> None:
    right, up = predict(dataset, tmp_path / "right", rows=2), move(dataset, tmp_path / "up", -1)
    pictures, left_out = compare_moved_masks(right, up, dataset, -1)
    assert left_out == []
    assert [picture.case for picture in pictures] == [c.id for c in dataset.cases() if c.mask_path is not None]
    assert {picture.obedience.value for picture in pictures} == {1.0}
    assert {picture.landmark for picture in pictures} == {True}  # each shows L5/S
    evaluate_masks(right, dataset, "other", SETTINGS, tmp_path / "out", compared=pictures)
    record = json.loads((tmp_path / "out/run.json").read_text())["obedience"]
    assert record["summaries"][0]["obedience"] == 1.0
    assert (tmp_path / "out/obedience.csv").read_text().count("\n") == 1 + len(pictures)
    # The names are those of the right text: a tool that ignores its text.
    (up / f"{first_case(dataset)}.nii.gz").unlink()
    pictures, left_out = compare_moved_masks(right, right, dataset, -1)
    assert {picture.obedience.value for picture in pictures} == {0.0}
    pictures, left_out = compare_moved_masks(right, up, dataset, -1)
    assert left_out == [first_case(dataset)]
    # A later score without the moved masks says nothing about obedience.
    evaluate_masks(right, dataset, "other", SETTINGS, tmp_path / "out")
    assert json.loads((tmp_path / "out/run.json").read_text())["obedience"] is None
    assert not (tmp_path / "out/obedience.csv").exists()


def test_moved_masks_that_can_not_be_compared(
    dataset: Dataset,
    references: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right, case = predict(dataset, tmp_path / "right"), first_case(dataset)
    alone = tmp_path / "alone"
    alone.mkdir()
    (right / f"{case.upper()}.nii.gz").rename(alone / f"{case}.nii.gz")
    (tmp_path / "foreign").mkdir()
    shutil.copy(alone / f"{case}.nii.gz", tmp_path / "foreign" / "999_t2.nii.gz")
    monkeypatch.chdir(tmp_path)
    options = ("right", "--dataset", "spider", "--references", str(references))
    for arguments, message in (
        (("--moved", "alone", "--levels", "1"), "'right' and 'alone' have no case in common"),
        (("--moved", "foreign", "--levels", "1"), "No file in 'foreign' bears the name of a case"),
        (("--moved", "nowhere", "--levels", "1"), "There is no folder 'nowhere'"),
        (("--moved", "right", "--levels", "0"), "moved by 0 levels is the right one"),
        (("--moved", "right"), "--moved and --levels go together"),
        (("--levels", "1"), "--moved and --levels go together"),
    ):
        assert call(monkeypatch, *options, *arguments) == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not (tmp_path / "runs").exists()
    unordered = replace(dataset.atlas, sequence=())
    monkeypatch.setattr(dataset, "atlas", unordered)
    with pytest.raises(DataError, match="has no order of levels"):
        compare_moved_masks(right, right, dataset, 1)


def test_the_command_line(
    dataset: Dataset,
    references: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predictions = predict(dataset, tmp_path / "other_tool")
    (predictions / f"{first_case(dataset).upper()}.nii.gz").unlink()
    monkeypatch.chdir(tmp_path)
    options = ("other_tool", "--dataset", "spider", "--references", str(references))
    assert call(monkeypatch, *options, "--moved", "other_tool", "--levels", "-1") == 0
    out = capsys.readouterr().out
    assert f"not in both folders, so not in the obedience: {first_case(dataset)}" in out
    assert ": the names do not follow the text\n" in out
    assert "| one level up | with a landmark | 0.00" in out
    assert f"every structure is missed: {first_case(dataset)}" in out
    assert "structures in the references" in out
    assert (tmp_path / "runs/other_tool/scores.csv").exists()
    for wrong in ((), ("other_tool",), ("--dataset", "spider")):
        assert call(monkeypatch, *wrong) == 2
