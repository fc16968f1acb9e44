from __future__ import annotations

import os
from pathlib import Path

import pytest

from textseg.data.preparation import map_labels
from textseg.errors import DataError
from textseg.volumes.files import read_labels
from textseg_spine.mrspineseg import MRSpineSeg


def lay_out(folder: Path, *names: str) -> MRSpineSeg:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return MRSpineSeg(folder=str(folder))


def test_cases_are_sorted_by_number_and_names_compare_without_case(tmp_path: Path) -> None:
    names = ("Train/MR/Case10.nii.gz", "Train/MR/case2.nii.gz", "Train/mask/MASK_Case2.nii.gz", "Train/MR/.x.nii.gz")
    reader = lay_out(tmp_path, *names, "Train/MR/readme.txt")
    assert [(case.id, case.patient) for case in reader.cases()] == [("Case2", "2"), ("Case10", "10")]
    masks = [case.mask for case in reader.cases()]
    assert masks == [tmp_path / "Train/mask/MASK_Case2.nii.gz", None]
    assert reader.cases()[0].facts == {"sequence": "T2", "view": "sagittal"}
    assert reader.official_split() is None


def test_values_are_those_of_the_challenge(tmp_path: Path) -> None:
    reader = lay_out(tmp_path, "train/MR/Case1.nii.gz")
    values = reader.label_map(reader.cases()[0])
    names = ("background", *reader.atlas.names)
    expected = {0: "background", 1: "S", 2: "L5", 6: "L1", 7: "T12", 10: "T9", 11: "L5/S", 15: "L1/L2", 16: "T12/L1"}
    assert {value: names[values[value]] for value in expected} == expected
    assert names[values[19]] == "T9/T10"
    assert sorted(values) == list(range(20))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "No MRSpineSeg images .* signed agreement"),
        (("train/MR/Case1.nii.gz", "train/MR/other.nii.gz"), "other.nii.gz: the name is none of MRSpineSeg's"),
        (("train/MR/Case1.nii.gz", "train/MR/case01.nii.gz"), "are both case 1"),
        (("train/MR/Case1.nii.gz", "train/Mask/mask_case3.nii.gz"), "has no image train/MR/Case3.nii.gz"),
    ],
)
def test_a_folder_that_is_not_mrspineseg(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        lay_out(tmp_path, *names).cases()


def test_fetch_says_where_to_get_it_or_that_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"train/{part}{number}.nii.gz" for part in ("MR/Case", "Mask/mask_case") for number in (1, 2)]
    reader = lay_out(tmp_path, *names)
    with pytest.raises(DataError, match=r"holds 2 cases with masks, and MRSpineSeg has 172. .* www.spinesegmentation"):
        reader.fetch(progress=lambda *_: None)
    monkeypatch.setattr("textseg_spine.mrspineseg.SERIES", 2)
    assert reader.fetch(progress=lambda *_: None).startswith("MRSpineSeg: 2 cases")


def test_a_real_volume_in_that_layout_holds_known_values_only() -> None:
    if not (data := os.environ.get("TEXTSEG_DATA")):
        pytest.skip("TEXTSEG_DATA names no folder of real scans")
    reader = MRSpineSeg(folder=f"{data}/mrspineseg")
    case = reader.cases()[0]
    assert case.mask is not None
    classes = map_labels(read_labels(case.mask), reader.label_map(case), case)
    assert {reader.atlas["L5"].index, reader.atlas["L5/S"].index} <= set(classes.ravel().tolist())
