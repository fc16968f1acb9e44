from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.contracts import Atlas, Case
from textseg.errors import DataError, RunError
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import keeping, read_kept
from textseg.system.files import file_name
from textseg.volumes.files import write_labels
from textseg.volumes.geometry import Geometry

# Oblique and turned: what a scanner writes.
GEOMETRY = Geometry((4, 5, 3), (0.7, 0.9, 3.3), (-12.5, 40.25, 8.0), (0, 0, 1, 0.6, 0.8, 0, 0.8, -0.6, 0))
LABELS = {0: 0, 7: 1, 100: 4}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    values = np.random.default_rng(0).choice([0, 7, 100], GEOMETRY.shape)
    write_labels(values.astype(np.uint8), GEOMETRY, tmp_path / "m.mha")
    write_labels((values + 3).astype(np.uint16), GEOMETRY, tmp_path / "i.mha")
    return Case("a/b 1", "p", tmp_path / "i.mha", tmp_path / "m.mha")


def predicted() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 5, GEOMETRY.shape).astype(np.uint8)


def test_what_is_kept_is_read_back(case: Case, small_atlas: Atlas, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with keeping(folder, small_atlas) as keep:
        keep(case, predicted(), GEOMETRY, LABELS)
    kept = read_kept(folder)
    assert kept.names == {1: "L2", 2: "L1", 3: "L1/L2", 4: "SC"}
    saved = kept.cases["a/b 1"]
    array, geometry = saved.read_prediction()
    np.testing.assert_array_equal(array, predicted())
    assert geometry.differences(GEOMETRY) == []
    values = saved.read_image(geometry) - 3
    np.testing.assert_array_equal(saved.read_reference(), np.where(values == 7, 1, np.where(values == 100, 4, 0)))


def test_slices_of_another_plane_are_kept_as_such(case: Case, small_atlas: Atlas, tmp_path: Path) -> None:
    folder, axial = RunFolder(tmp_path / "run"), replace(GEOMETRY, plane="axial")
    assert axial.shape != GEOMETRY.shape
    axial_labels = np.random.default_rng(1).integers(0, 5, axial.shape).astype(np.uint8)
    with keeping(folder, replace(small_atlas, plane="axial")) as keep:
        keep(case, axial_labels, axial, LABELS)
    kept = read_kept(folder).cases[case.id]
    array, geometry = kept.read_prediction()
    np.testing.assert_array_equal(array, axial_labels)
    assert kept.read_image(geometry).shape == kept.read_reference().shape == axial.shape


def test_the_file_is_a_small_volume_that_lies_on_its_scan(case: Case, small_atlas: Atlas, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with keeping(folder, small_atlas) as keep:
        keep(case, predicted(), GEOMETRY, LABELS)
    image, scan = (
        sitk.ReadImage(str(folder.predictions / file_name("a/b 1", ".mha"))),
        sitk.ReadImage(str(case.image)),
    )
    assert image.GetPixelID() == sitk.sitkUInt8
    for read in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(image, read)(), getattr(scan, read)(), atol=1e-6)


def test_an_evaluation_that_is_cut_off_leaves_nothing_to_read(case: Case, small_atlas: Atlas, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with keeping(folder, small_atlas) as keep:
        keep(case, predicted(), GEOMETRY, LABELS)

    def interrupted() -> None:
        with keeping(folder, small_atlas) as keep:
            keep(case, predicted(), GEOMETRY, LABELS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(RunError, match=r"keeps no predictions to draw. Evaluate it again: textseg evaluate .*run"):
        read_kept(folder)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"cases": {}, "structures": {"1000000000000": "L1"}}',
        '{"structures": {}, "cases": {"a": {"prediction": "a.mha", "image": "", "mask": "", "labels": {"1": 999999}}}}',
        '{"cases": {"a": {}}, "structures": {}}',
        '{"cases": {}, "structures": {}, "plane": "oblique"}',
    ],
)
def test_a_damaged_table_is_named(content: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.predictions.mkdir()
    folder.predictions_index.write_text(content)
    with pytest.raises(RunError, match="cases.json' is damaged"):
        read_kept(folder)


def test_a_table_that_says_no_plane_is_of_sagittal_slices(case: Case, small_atlas: Atlas, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with keeping(folder, small_atlas) as keep:
        keep(case, predicted(), GEOMETRY, LABELS)
    content = json.loads(folder.predictions_index.read_text())
    assert content.pop("plane") == "sagittal"
    folder.predictions_index.write_text(json.dumps(content))
    np.testing.assert_array_equal(read_kept(folder).cases["a/b 1"].read_prediction()[0], predicted())


def test_a_table_cannot_point_out_of_its_folder(case: Case, small_atlas: Atlas, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with keeping(folder, small_atlas) as keep:
        keep(case, predicted(), GEOMETRY, LABELS)
    content = json.loads(folder.predictions_index.read_text())
    content["cases"]["a/b 1"]["prediction"] = "../../secret.mha"
    folder.predictions_index.write_text(json.dumps(content))
    assert read_kept(folder).cases["a/b 1"].prediction == folder.predictions / "secret.mha"


def test_another_scan_is_refused(case: Case, small_atlas: Atlas, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with keeping(folder, small_atlas) as keep:
        keep(case, predicted(), GEOMETRY, LABELS)
    moved = Geometry(GEOMETRY.size, GEOMETRY.spacing, (0.0, 0.0, 0.0), GEOMETRY.direction)
    write_labels(np.ones(moved.shape, np.uint8), moved, case.image)
    saved = read_kept(folder).cases["a/b 1"]
    with pytest.raises(DataError, match="i.mha' is not the scan that .* was made of: origin"):
        saved.read_image(saved.read_prediction()[1])
