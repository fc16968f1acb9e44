from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.contracts import IGNORED, Case
from textseg.data.checking import CaseCheck, DatasetCheck, check_case, check_dataset
from textseg.recipe.schema import ReportSettings
from textseg.registry.discovery import installed_registry
from textseg.volumes.scan import Scan, read_scan

LEVELS = 6  # vertebrae and discs of the small spines


def spine(seed: int) -> tuple[sitk.Image, sitk.Image]:
    """A small volume in SPIDER's labels: vertebrae and discs one above the other, the canal behind."""
    noise = np.random.default_rng(seed)
    labels = np.zeros((5, 70, 24), dtype=np.uint8)
    for level in range(1, LEVELS + 1):
        bottom = 68 - 11 * (level - 1)
        labels[:, bottom - 2 : bottom, 4:12] = 200 + level
        labels[:, bottom - 10 : bottom - 3, 4:12] = level
    labels[:, 2:66, 14:17] = 100
    image = (100 + 50 * (labels > 0) + 10 * noise.standard_normal(labels.shape)).astype(np.int16)
    made = []
    for array in (image, labels):
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing((0.5, 0.6, 3.0))
        volume.SetDirection(
            (0, 0, -1, 1, 0, 0, 0, -1, 0)
        )  # columns to posterior, rows to inferior, slices to the right
        volume.SetOrigin((10.0, -20.0, 30.0))
        made.append(volume)
    return made[0], made[1]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for number in (1, 2, 3):
        for part, volume in zip(("images", "masks"), spine(number), strict=True):
            sitk.WriteImage(volume, str(folder / part / f"{number}_t2.mha"), True)
    rows = "".join(f"{number}_t2,{LEVELS},{LEVELS},F,,training\r\n" for number in (1, 2, 3))
    (folder / "overview.csv").write_text("new_file_name,num_vertebrae,num_discs,sex,birth_date,subset\r\n" + rows)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "spider"))


def check(folder: Path, split: dict[str, list[str]] | None = None) -> DatasetCheck:
    return check_dataset(installed_registry().build("dataset", "spider", settings={"folder": str(folder)}), split)


def change(part: str, how: Callable[[sitk.Image], sitk.Image | None]) -> Callable[[Path], None]:
    """Rewrites the image or the mask of case 2_t2."""

    def plant(folder: Path) -> None:
        path = str(folder / part / "2_t2.mha")
        volume = sitk.ReadImage(path)
        sitk.WriteImage(how(volume) or volume, path, True)

    return plant


def relabel(*pairs: tuple[int, int]) -> Callable[[Path], None]:
    def swap(mask: sitk.Image) -> sitk.Image:
        array = sitk.GetArrayFromImage(mask)
        changed = array.copy()
        for old, new in pairs:
            changed[array == old] = new
        return like(mask, changed)

    return change("masks", swap)


def like(volume: sitk.Image, array: np.ndarray[Any, Any]) -> sitk.Image:
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(volume)
    return made


def voxels(part: str, how: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Callable[[Path], None]:
    return change(part, lambda volume: like(volume, how(sitk.GetArrayFromImage(volume))))


def truncate(part: str, share: float) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / part / "2_t2.mha"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return plant


def flip_bytes(folder: Path) -> None:
    path = folder / "images/2_t2.mha"
    content = bytearray(path.read_bytes())
    content[-400:-200] = bytes(255 - byte for byte in content[-400:-200])
    path.write_bytes(bytes(content))


def with_nan(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array = array.astype(np.float32)
    array[2, 3, 4] = np.nan
    return array


def fraction(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.where(array == 3, 3.5, array).astype(np.float32)


def one_voxel(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array[0, 0, 0] = 77
    return array


def nearly_gone(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array[array == LEVELS] = 0
    array[2, 1, 8] = LEVELS
    return array


def miscounted(folder: Path) -> None:
    table = folder / "overview.csv"
    table.write_text(table.read_text().replace(f"2_t2,{LEVELS}", f"2_t2,{LEVELS + 1}"))


def moved(volume: sitk.Image) -> None:
    volume.SetOrigin((10.0, -20.0, 33.0))


def mirrored(volume: sitk.Image) -> None:
    volume.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))


def stretched(volume: sitk.Image) -> None:
    volume.SetSpacing((0.51, 0.6, 3.0))


def no_voxels(folder: Path) -> None:
    path = folder / "images/2_t2.mha"
    path.write_bytes(re.sub(rb"DimSize = .*", b"DimSize = 0 8 8", path.read_bytes(), count=1))


def same_image(folder: Path) -> None:
    shutil.copy(folder / "images/1_t2.mha", folder / "images/2_t2.mha")


def same_voxels(folder: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(folder / "images/1_t2.mha")), str(folder / "images/2_t2.mha"), False)


def text_file(folder: Path) -> None:
    (folder / "images/2_t2.mha").write_text("this is no volume\n")


def colour(volume: sitk.Image) -> sitk.Image:
    return sitk.Compose(volume, volume, volume)


def four_dimensions(volume: sitk.Image) -> sitk.Image:
    return sitk.JoinSeries([volume, volume])


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "image truncated": (truncate("images", 0.6), "can't be read as a volume"),
    "mask truncated": (truncate("masks", 0.8), "can't be read as a volume"),
    "image header only half there": (truncate("images", 0.01), "can't be read as a volume"),
    "image empty file": (truncate("images", 0), "can't be read as a volume"),
    "compressed voxels damaged": (flip_bytes, "can't be read as a volume"),
    "text with the name of a volume": (text_file, "can't be read as a volume"),
    "image in colour": (change("images", colour), "has the channels image 0, image 1, image 2, the others image"),
    "image of four dimensions": (change("images", four_dimensions), "has 4 dimensions"),
    "NaN in the image": (voxels("images", with_nan), "NaN or infinite"),
    "constant image": (voxels("images", np.zeros_like), "is 0 everywhere"),
    "mask with fractions": (voxels("masks", fraction), "no whole numbers"),
    "empty mask": (voxels("masks", np.zeros_like), "shows no structure"),
    "mask is the image": (lambda f: shutil.copy(f / "images/2_t2.mha", f / "masks/2_t2.mha"), r"holds \d+ values: "),
    "mask of another size": (change("masks", lambda v: v[:, 1:, :]), "size 24 x 70 x 5 against 24 x 69 x 5"),
    "image as mask": (
        voxels("masks", lambda a: np.arange(a.size).reshape(a.shape).astype(np.uint16)),
        r"holds 8323 values: 26 in 1 voxel, .* 30 in 1 voxel, and 8318 more, which the",
    ),
    "image without a voxel": (no_voxels, "."),
    "mask spacing 2 % off": (change("masks", stretched), "spacing 0.5 x 0.6 x 3 mm against 0.51 x 0.6 x 3 mm"),
    "mask one slice away": (change("masks", moved), "origin 10 x -20 x 30 mm against 10 x -20 x 33 mm"),
    "mask direction mirrored": (change("masks", mirrored), "direction .* against"),
    "unknown value in one voxel": (voxels("masks", one_voxel), "holds the value 77 in 1 voxel"),
    "a vertebra missing between two": (relabel((3, 0)), "label gap: L3 missing between T12 and L5$"),
    "a disc missing between two": (relabel((204, 0)), "label gap: L2/L3 missing"),
    "neighbours swapped": (relabel((2, 3), (3, 2)), "wrong order: L3 lies .* mm below L4"),
    "discs swapped": (relabel((202, 203), (203, 202)), "wrong order: L3/L4 lies .* mm below L4/L5"),
    "numbered from the top": (relabel(*((i, LEVELS + 1 - i) for i in range(1, LEVELS + 1))), "wrong order: T12 lies"),
    "the same file as another patient's": (same_image, "the same file as that of 1_t2, of another patient"),
    "the same voxels as another patient's": (same_voxels, "the same voxels as that of 1_t2, of another patient"),
}


def test_a_sound_folder_is_clean(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    dataset = installed_registry().build("dataset", "spider", settings={"folder": str(folder)})
    result = check_dataset(dataset, progress=lambda done, total: calls.append((done, total)))
    assert result.findings == ()
    assert result.clean
    assert result.sound == ["1_t2", "2_t2", "3_t2"]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert result.cases[0].slices["L5"] == 5


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_the_others_stay_sound(folder: Path, name: str) -> None:
    plant, message = FAULTS[name]
    plant(folder)
    result = check(folder)
    faults = [finding for finding in result.findings if finding.severity == "fault"]
    assert {finding.case for finding in faults} == {"2_t2"}
    assert any(re.search(message, finding.what) for finding in faults), [finding.what for finding in faults]
    assert all(finding.remedy for finding in faults)
    assert not result.clean
    assert result.sound == ["1_t2", "3_t2"]
    stored = json.loads(result.as_json())
    assert stored["leave_out"] == ["2_t2"]
    assert {finding["case"] for finding in stored["findings"] if finding["severity"] == "fault"} == {"2_t2"}


@pytest.mark.parametrize(
    "how", [lambda m: sitk.Flip(m, [True, False, False]), lambda m: sitk.PermuteAxes(m, (1, 0, 2))]
)
def test_a_mask_on_the_grid_of_its_image_is_sound_however_its_axes_are_stored(
    folder: Path, how: Callable[[sitk.Image], sitk.Image]
) -> None:
    change("masks", how)(folder)
    assert check(folder).findings == ()


def test_a_mask_elsewhere_has_no_command_that_would_empty_it(folder: Path) -> None:
    FAULTS["mask direction mirrored"][0](folder)
    [finding] = [finding for finding in check(folder).findings if "do not lie" in finding.what]
    assert finding.remedy == "only 20% of it lies inside the image: export it again from the program that drew it"


def rotated(mask: sitk.Image) -> sitk.Image:
    """The same mask on a turned grid that contains the image."""
    turn = sitk.Euler3DTransform(mask.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in mask.GetSize()]))
    turn.SetRotation(0.0, 0.0, 0.02)
    direction = np.reshape(turn.GetMatrix(), (3, 3)) @ np.reshape(mask.GetDirection(), (3, 3))
    origin = turn.TransformPoint(mask.GetOrigin())
    nearest = sitk.sitkNearestNeighbor
    return sitk.Resample(
        mask, mask.GetSize(), sitk.Transform(), nearest, origin, mask.GetSpacing(), direction.ravel(), 0
    )


@pytest.mark.parametrize("name", ["mask spacing 2 % off", "mask one slice away", "mask on a turned grid"])
def test_the_command_beside_a_fault_of_geometry_mends_it(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    {**FAULTS, "mask on a turned grid": (change("masks", rotated), "")}[name][0](folder)
    remedy = next(finding.remedy for finding in check(folder).findings)
    assert ("Resample" in remedy) == (name == "mask on a turned grid")
    command = remedy.partition(": ")[2]
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    (tmp_path / "mended_2_t2.mha").replace(folder / "masks/2_t2.mha")
    assert check(folder).clean


def test_patients_on_two_sides_of_a_split(folder: Path) -> None:
    result = check(folder, {"train": ["1", "2"], "validation": ["3"], "test": ["2"]})
    assert [finding.what for finding in result.findings] == ["split: patient 2 is in both train and test"]
    assert not result.clean
    assert result.sound == ["1_t2", "2_t2", "3_t2"]


def test_a_patient_in_both_official_subsets(folder: Path) -> None:
    for part in ("images", "masks"):
        shutil.copy(folder / part / "2_t2.mha", folder / part / "2_t1.mha")
    with (folder / "overview.csv").open("a") as file:
        file.write(f"2_t1,{LEVELS},{LEVELS},F,,validation\r\n")
    whats = [finding.what for finding in check(folder).findings if finding.severity == "fault"]
    assert any("patient 2 is in both subsets" in what for what in whats)
    assert any("the same file as that of 2_t1, of the same patient" in what for what in whats)


@pytest.mark.parametrize(
    ("plant", "case", "message"),
    [
        (lambda f: (f / "masks/2_t2.mha").unlink(), "2_t2", "there is no mask for"),
        (lambda f: (f / "images/2_t2.mha").unlink(), "2_t2", "this mask has no image of its name"),
        (relabel((LEVELS, LEVELS + 1)), "2_t2", "label gap"),
        (voxels("masks", nearly_gone), "2_t2", "T12 has 1 voxel only"),
        (miscounted, "2_t2", "num_vertebrae 7, and the mask has 6"),
    ],
)
def test_what_is_only_suspicious_or_follows_from_it(
    folder: Path, plant: Callable[[Path], Any], case: str, message: str
) -> None:
    plant(folder)
    result = check(folder)
    assert any(finding.case == case and message in finding.what for finding in result.findings)


def test_a_level_that_may_lie_in_ignored_voxels_is_only_suspicious(sound: Path) -> None:
    dataset = installed_registry().build("dataset", "spider", settings={"folder": str(sound)})
    case = dataset.cases()[0]
    result = check_case(case, {**dataset.label_map(case), 3: IGNORED}, dataset.atlas)
    assert [(finding.severity, finding.what) for finding in result.findings] == [
        ("doubt", "label gap: L3 missing between T12 and L5")
    ]


def test_reports_of_a_recipe_are_checked_with_its_cases(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "reports.csv"
    table.write_text("case,levels\n1_t2,T12 to L5\n2_t2,L5 to T12\n9_t2,L5\n")
    dataset = installed_registry().build("dataset", "spider", settings={"folder": str(folder)})
    result = check_dataset(dataset, reports=ReportSettings(file=table, visible="levels"))
    findings = [(finding.case, finding.severity, finding.what) for finding in result.findings]
    assert findings[0][:2] == ("2_t2", "fault")
    assert "its report can't be read: 'L5 to T12'" in findings[0][2]
    assert ("3_t2", "doubt", "it has no report") in findings
    assert any(case is None and "has reports of 9_t2, which are no cases" in what for case, _, what in findings)
    missing = check_dataset(dataset, reports=ReportSettings(file=table, visible="history"))
    assert "no column 'history'" in missing.findings[0].what


def test_doubts_do_not_make_a_data_set_unclean(folder: Path) -> None:
    (folder / "masks/2_t2.mha").unlink()
    for volume in spine(2)[:1]:
        volume.SetSpacing((0.1, 0.6, 3.0))
        sitk.WriteImage(volume, str(folder / "images/2_t2.mha"))
    result = check(folder)
    assert {finding.severity for finding in result.findings} == {"doubt"}
    assert any("its column distance is 0.1 mm, and the median is 0.5 mm" in finding.what for finding in result.findings)
    assert result.clean


def test_a_damaged_numbering_file_is_a_fault_of_every_case(folder: Path) -> None:
    (folder / "numbering.csv").write_text("patient,lowest_level\n1,X9\n")
    result = check(folder)
    assert result.faulty == ["1_t2", "2_t2", "3_t2"]
    assert "the lowest_level of patient 1 is 'X9'" in result.findings[0].what
    [line] = [line for line in result.lines if "X9" in line]  # told once
    assert line.startswith("fault  1_t2, 2_t2, 3_t2: ")


def test_an_image_in_place_of_a_mask_is_one_finding(folder: Path) -> None:
    FAULTS["image as mask"][0](folder)
    result = check(folder)
    assert [finding.remedy for finding in result.findings if finding.severity == "fault"] == ["is it an image?"]


def test_a_case_that_breaks_a_library_or_ends_its_process_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = installed_registry().build("dataset", "spider", settings={"folder": str(folder)})

    def crash(path: Path, plane: str, *, resample: bool) -> Scan:
        if path.name == "2_t2.mha":
            raise ZeroDivisionError("of a library")
        return read_scan(path, "sagittal")

    monkeypatch.setattr("textseg.data.checking.read_scan", crash)
    assert check_dataset(dataset).sound == ["1_t2", "3_t2"]
    monkeypatch.undo()

    class Pool:
        """Runs in this process, and is broken by the second case."""

        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...
        def map(self, function: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
            return map(self.call, *arguments)

        def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
            future: Future[Any] = Future()
            try:
                future.set_result(self.call(*arguments))
            except BrokenProcessPool as error:
                future.set_exception(error)
            return future

        def call(self, case: Case, *arguments: Any) -> CaseCheck:
            if case.id == "2_t2":
                raise BrokenProcessPool
            return check_case(case, *arguments)

    monkeypatch.setattr("textseg.data.checking.ProcessPoolExecutor", Pool)
    monkeypatch.setattr("textseg.data.checking.FEW_CASES", 2)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    result = check_dataset(dataset)
    assert [check.case for check in result.cases] == ["1_t2", "2_t2", "3_t2"]
    assert result.faulty == ["2_t2"]
    assert "ended the process" in result.findings[0].what


def test_checks_of_the_reader_that_fail_cost_no_other_finding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = installed_registry().build("dataset", "spider", settings={"folder": str(folder)})
    monkeypatch.setattr(type(dataset), "doubts", lambda self, values: 1 / 0)
    result = check_dataset(dataset)
    assert [finding.what for finding in result.findings] == [
        "the reader's own checks failed: ZeroDivisionError: division by zero."
    ]
    assert len(result.sound) == 3


def test_many_cases_are_checked_in_other_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textseg.data.checking.FEW_CASES", 2)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    FAULTS["NaN in the image"][0](folder)
    result = check(folder)
    assert result.faulty == ["2_t2"]


def test_compressed_nifti_that_ends_early(tmp_path: Path) -> None:
    for part, volume in zip(("MR/Case", "Mask/mask_case"), spine(1), strict=True):
        path = tmp_path / "train" / f"{part}1.nii.gz"
        path.parent.mkdir(parents=True)
        sitk.WriteImage(volume, str(path))
    image = tmp_path / "train/MR/Case1.nii.gz"
    content = gzip.decompress(image.read_bytes())
    image.write_bytes(gzip.compress(content[:-1000]))
    result = check_dataset(installed_registry().build("dataset", "mrspineseg", settings={"folder": str(tmp_path)}))
    assert "can't be read as a volume" in result.findings[0].what
    assert result.findings[0].case == "Case1"


@pytest.mark.parametrize("name", ["spider", "mrspineseg"])
def test_the_real_folders_are_clean(name: str) -> None:
    if not (data := os.environ.get("TEXTSEG_DATA")):
        pytest.skip("TEXTSEG_DATA names no folder of real scans")
    result = check_dataset(installed_registry().build("dataset", name, settings={"folder": f"{data}/{name}"}))
    assert result.findings == ()
    assert len(result.sound) == {"spider": 14, "mrspineseg": 6}[name]


def test_a_format_that_is_not_read_is_one_line_for_all_cases(folder: Path) -> None:
    dataset = installed_registry().build("dataset", "spider", settings={"folder": str(folder)})
    cases = []
    for case in dataset.cases():
        Path(case.image).with_suffix(".jpg").write_bytes(b"a picture")
        cases.append(replace(case, image=Path(case.image).with_suffix(".jpg")))
    dataset.cases = lambda: cases
    checked = check_dataset(dataset)
    assert checked.sound == []
    (line,) = checked.lines
    assert "it has .jpg files, and textseg reads .mha, .nrrd, .nii.gz, .nii, .png and DICOM series" in line
    assert "convert them, or let the reader give arrays" in line


def test_a_case_that_lacks_a_channel_is_a_line_and_a_channel_on_another_grid_is_refused(folder: Path) -> None:
    dataset = installed_registry().build("dataset", "spider", settings={"folder": str(folder)})
    cases = list(dataset.cases())
    pairs = [replace(case, image={"T2": case.image, "T1": case.image}) for case in cases]
    pairs[0] = replace(cases[0], image={"T2": cases[0].image})
    dataset.cases = lambda: pairs
    checked = check_dataset(dataset)
    assert checked.faulty == [cases[0].id]
    assert "has no channel 'T1'; the others have T2, T1." in checked.lines[0]
    image = sitk.ReadImage(str(cases[1].image))
    image.SetOrigin([value + 1 for value in image.GetOrigin()])
    sitk.WriteImage(image, str(folder / "moved.mha"))
    pairs[:] = [replace(case, image={"T2": case.image, "T1": folder / "moved.mha"}) for case in cases]
    assert "does not lie on channel 'T2'" in check_dataset(dataset).findings[0].what
    assert not any("does not lie" in finding.what for finding in check_dataset(dataset, resample=True).findings)
