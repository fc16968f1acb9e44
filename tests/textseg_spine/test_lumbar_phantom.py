from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, center_of_mass

from textseg.contracts import Case
from textseg.errors import DataError, RecipeError
from textseg_spine.lumbar_phantom import LUMBAR, LumbarPhantom, lumbar_anatomy, with_partial_vertebra
from textseg_spine.spider import Spider


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LumbarPhantom:
    return LumbarPhantom(folder=str(tmp_path_factory.mktemp("phantom")), cases=12)


def read(path: Path | None) -> NDArray[np.generic]:
    """[S, H, W] with slices to the right, rows to inferior, columns to posterior."""
    volume: NDArray[np.generic] = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "PIR"))
    return volume


def classes(dataset: LumbarPhantom, case: Case) -> NDArray[np.uint8]:
    table = np.full(256, 255, np.uint8)
    for value, index in dataset.label_map(case).items():
        table[value] = index
    return table[read(case.mask)]


@pytest.fixture(scope="module")
def masks(dataset: LumbarPhantom) -> dict[str, NDArray[np.uint8]]:
    return {case.id: classes(dataset, case) for case in dataset.cases()}


def files(folder: Path) -> Iterator[tuple[str, object]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".mha":
            yield path.name, sitk.GetArrayFromImage(sitk.ReadImage(str(path))).tobytes()
        elif path.is_file():
            yield path.name, path.read_bytes()


def test_it_gives_as_many_series_as_asked_for(dataset: LumbarPhantom) -> None:
    cases = dataset.cases()
    assert len(cases) == 12
    patients = {case.patient for case in cases}
    assert 8 <= len(patients) < 12
    assert {case.facts["sequence"] for case in cases} == {"T1", "T2", "T2 SPACE"}
    assert {case.facts["sex"] for case in cases} == {"female", "male"}
    split = dataset.official_split()
    assert split is not None
    assert set(split["train"]) | set(split["test"]) == patients
    assert 0 < len(split["test"]) < len(split["train"])


def test_volumes_have_the_asked_size_in_one_of_two_orientations(dataset: LumbarPhantom) -> None:
    orientations = set()
    for case in dataset.cases():
        image, mask = (sitk.ReadImage(str(path)) for path in (case.image, case.mask))
        assert image.GetSize() == mask.GetSize()
        assert image.GetDirection() == mask.GetDirection()
        orientations.add(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()))
        oriented = sitk.DICOMOrient(image, "PIR")
        assert oriented.GetSize() == (128, 160, 9)
        assert oriented.GetSpacing() == pytest.approx((1.9, 1.9, 6.0))
    assert orientations == {"PIR", "LPS"}


def test_labels_are_legal_and_the_bottom_of_the_spine_is_in_view(
    dataset: LumbarPhantom, masks: dict[str, NDArray[np.uint8]]
) -> None:
    index = {structure.name: structure.index for structure in dataset.atlas.structures}
    for mask in masks.values():
        present = set(np.unique(mask).tolist())
        assert present <= set(range(20))
        assert {index[name] for name in ("L5/S", "L5", "L4", "L3", "L2", "SC")} <= present


def test_partial_vertebrae_occur(dataset: LumbarPhantom) -> None:
    values = np.concatenate([np.unique(read(case.mask)) for case in dataset.cases()])
    assert ((values > 100) & (values < 126)).any()


def test_neighbours_touch_and_stand_in_order(dataset: LumbarPhantom, masks: dict[str, NDArray[np.uint8]]) -> None:
    atlas = dataset.atlas
    for name, mask in masks.items():
        middle = mask[4]
        discs = [n for n in atlas.sequence if "/" in n and (middle == atlas[n].index).any()]
        rows = [center_of_mass(middle == atlas[n].index)[0] for n in discs]
        assert rows == sorted(rows), name
        for upper, lower in zip(atlas.sequence, atlas.sequence[1:], strict=False):
            first, second = middle == atlas[upper].index, middle == atlas[lower].index
            if min(first.sum(), second.sum()) > 25:  # a level cut by the edge may show only what lies behind the canal
                assert (binary_dilation(first) & second).any(), f"{name}: {upper} does not touch {lower}"


def test_what_is_visible_differs_between_patients_and_slices(
    dataset: LumbarPhantom, masks: dict[str, NDArray[np.uint8]]
) -> None:
    assert len({int(mask[mask < 10].max()) for mask in masks.values()}) > 1
    canal = dataset.atlas["SC"].index
    for mask in masks.values():
        assert len({tuple(np.unique(plane)) for plane in mask}) > 1
        shown = (mask == canal).any(axis=(1, 2))
        assert shown.any()
        assert not shown.all()


def test_two_series_of_a_patient_show_the_same_anatomy(dataset: LumbarPhantom) -> None:
    cases = {case.id: case for case in dataset.cases()}
    t1, t2 = cases["2_t1"], cases["2_t2"]
    assert np.array_equal(read(t1.mask), read(t2.mask))
    canal = classes(dataset, t2) == dataset.atlas["SC"].index
    bone = classes(dataset, t2) == dataset.atlas["L3"].index
    bright, dark = (read(case.image).astype(float) for case in (t2, t1))
    assert bright[canal].mean() > bright[bone].mean()
    assert dark[canal].mean() < dark[bone].mean()


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    settings = {"cases": 2, "slices": 3, "size": (40, 32), "spacing_mm": 7.6}
    same = [LumbarPhantom(folder=str(tmp_path / name), **settings) for name in ("a", "b")]  # type: ignore[arg-type]
    reseeded = LumbarPhantom(folder=str(tmp_path / "a"), seed=1, **settings)  # type: ignore[arg-type]
    for each in (*same, reseeded):
        assert len(each.cases()) == 2
    assert same[0].folder.name == same[1].folder.name != reseeded.folder.name
    assert list(files(same[0].folder)) == list(files(same[1].folder))
    assert dict(files(same[0].folder))["1_t2.mha"] != dict(files(reseeded.folder))["1_t2.mha"]


def test_files_are_written_once_and_racers_agree(tmp_path: Path) -> None:
    datasets = [LumbarPhantom(folder=str(tmp_path), cases=2, slices=2, size=(32, 24), spacing_mm=9) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda dataset: dataset.cases(), datasets)
    assert first == second
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == [datasets[0].folder.name]
    image = first[0].image
    image.write_bytes(b"as it was")
    LumbarPhantom(folder=str(tmp_path), cases=2, slices=2, size=(32, 24), spacing_mm=9).cases()
    assert image.read_bytes() == b"as it was"


def test_nothing_is_written_before_it_is_needed(tmp_path: Path) -> None:
    LumbarPhantom(folder=str(tmp_path / "later"))
    assert not (tmp_path / "later").exists()


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cases is 0, but must be above 0"):
        LumbarPhantom(folder=str(tmp_path), cases=0)
    with pytest.raises(RecipeError, match="seed is -1"):
        LumbarPhantom(folder=str(tmp_path), seed=-1)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"can't be written.*dataset.folder"):
        LumbarPhantom(folder=str(tmp_path / "file"), cases=1).cases()


def test_the_first_row_turns_the_highest_vertebra_into_a_partial_one() -> None:
    mask = np.array([[[0, 9], [1, 9], [201, 209], [100, 2]]], np.uint8)
    assert with_partial_vertebra(mask).tolist() == [[[0, 109], [1, 109], [201, 209], [100, 2]]]
    assert with_partial_vertebra(mask[:, 2:]).tolist() == [[[201, 209], [100, 2]]]


SMALL: dict[str, Any] = {"cases": 4, "slices": 3, "size": (96, 80), "spacing_mm": 3.0}


def levels_by_case(phantom: LumbarPhantom) -> dict[str, list[str]]:
    """Return the structures of the sequence in each mask, downwards, by the names of the reader."""
    shown = {case.id: np.unique(classes(phantom, case)) for case in phantom.cases()}
    return {
        name: [level for level in phantom.atlas.sequence if phantom.atlas[level].index in present]
        for name, present in shown.items()
    }


def test_default_settings_draw_the_masks_of_the_first_release(tmp_path: Path) -> None:
    phantom = LumbarPhantom(folder=str(tmp_path), **SMALL)
    digest = hashlib.sha256()
    for case in phantom.cases():
        digest.update(read(case.mask).tobytes())
    assert phantom.folder.name == "fc83b0bed478"
    assert digest.hexdigest()[:16] == "2ffbff01b5427bb0"


def test_pictures_that_end_above_l4_show_no_landmark(tmp_path: Path) -> None:
    whole = LumbarPhantom(folder=str(tmp_path), **SMALL)
    upper = LumbarPhantom(folder=str(tmp_path), **SMALL, ends_above="L4")
    lower = LumbarPhantom(folder=str(tmp_path), **SMALL, begins_below="L1")
    for name, levels in levels_by_case(upper).items():
        assert {"L3", "L2", "L1"} < set(levels) <= set(upper.atlas.between("T9", "L3/L4")), name
    for name, levels in levels_by_case(lower).items():
        assert levels[-4:] == ["L4", "L4/L5", "L5", "L5/S"], name
        assert set(levels) <= set(lower.atlas.between("L1/L2", "L5/S")), name
    for cut, case in zip(upper.cases(), whole.cases(), strict=True):
        assert (cut.id, cut.facts) == (case.id, case.facts)
        rows = read(cut.image).shape[1]
        np.testing.assert_array_equal(read(cut.image), read(case.image)[:, :rows])


@pytest.mark.parametrize(("vertebrae", "lowest", "absent"), [(4, "L4", {"L5", "L5/S"}), (6, "L6", set())])
def test_names_are_counted_from_above_where_the_number_of_vertebrae_is_another(
    tmp_path: Path, vertebrae: Literal[4, 6], lowest: str, absent: set[str]
) -> None:
    phantom = LumbarPhantom(folder=str(tmp_path), **SMALL, lumbar_vertebrae=vertebrae)
    present = levels_by_case(phantom)
    for case in phantom.cases():
        values = read(case.mask)
        names = [level for level in phantom.atlas.sequence if level not in absent]
        assert present[case.id][-7:] == names[-7:]  # the upper end differs between patients
        counted = {value % 100 for value in np.unique(values).tolist() if value != 100 and 0 < value < 200}
        assert counted == set(range(1, max(counted) + 1))  # SPIDER's values, from the sacrum upwards
        true_l3 = np.isin(values, (vertebrae - 2, 100 + vertebrae - 2))
        np.testing.assert_array_equal(classes(phantom, case) == phantom.atlas["L3"].index, true_l3)
        # What is counted from the sacrum is wrong by one level, unless the table is read
        counting = Spider(folder=str(case.image.parent.parent))
        counting.__dict__["_shifts"] = {}
        wrong = counting.label_map(case)[vertebrae - 2]
        assert phantom.atlas.names[wrong - 1] == {4: "L4", 6: "L2"}[vertebrae]
    rows = (phantom.folder / "numbering.csv").read_text().splitlines()
    assert rows[0] == "patient,lowest_level"
    assert {row.partition(",")[2] for row in rows[1:]} == {lowest}
    assert not (LumbarPhantom(folder=str(tmp_path), **SMALL).folder / "numbering.csv").exists()


@pytest.mark.parametrize("vertebrae", [4, 6])
def test_the_names_of_other_numbers_of_vertebrae_run_from_t12_to_the_sacrum(vertebrae: int) -> None:
    anatomy = lumbar_anatomy(vertebrae)
    lumbar = anatomy.levels[8:-5]
    assert [level.name for level in lumbar] == [f"L{number}" for number in range(1, vertebrae + 1)]
    assert lumbar[-1].disc == anatomy.anchor == f"L{vertebrae}/S"
    assert [level.name for level in anatomy.levels[-5:]] == ["S1", "S2", "S3", "S4", "S5"]
    for level, usual in zip(lumbar[::-1][:4], LUMBAR.levels[8:13][::-1], strict=False):
        assert replace(level, name=usual.name, disc=usual.disc) == usual  # from the sacrum, all patients look alike


def test_a_structure_that_the_patients_lack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="ends_above is 'L5'"):
        LumbarPhantom(folder=str(tmp_path), lumbar_vertebrae=4, ends_above="L5")


def test_with_channels_a_case_is_a_patient_with_all_of_them(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"folder": str(tmp_path), "slices": 3, "size": (48, 40), "spacing_mm": 6.0}
    joined = LumbarPhantom(cases=3, channels=("T2", "T1"), **settings)
    cases = joined.cases()
    assert [case.id for case in cases] == ["1_t2", "2_t2", "3_t2"]
    assert {tuple(case.channels) for case in cases} == {("T2", "T1")}
    assert {case.facts["sequence"] for case in cases} == {"T2 and T1"}
    for case in cases:
        t2, t1 = (read(path).astype(float) for path in case.channels.values())
        assert t2.shape == t1.shape == read(case.mask).shape
        assert not np.array_equal(t2, t1)
    reader = joined.read(joined.folder)
    assert reader.doubts({case.id: {1, 201} for case in cases}).keys() <= {case.id for case in cases}
    Path(cases[1].channels["T1"]).unlink()
    lacking = Spider(folder=str(joined.folder), channels=("T2", "T1")).cases()
    assert [list(case.channels) for case in lacking] == [["T2", "T1"], ["T2"], ["T2", "T1"]]
    with pytest.raises(DataError, match="T1, T1 names a sequence twice"):
        Spider(folder=str(joined.folder), channels=("T1", "T1"))
