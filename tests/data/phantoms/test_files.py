from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.contracts import Atlas, Case, LabelMap, Structure
from textseg.data.phantoms import Anatomy, Level, SpinePhantom
from textseg.data.phantoms.files import PhantomFiles, check_settings, write_drawn
from textseg.errors import DataError, RecipeError


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


class OneFile(PhantomFiles):
    """Draws nothing but a number, and says how often it has done so."""

    def __init__(self, folder: str, *, number: int, atlas: Atlas) -> None:
        self.atlas, self.number, self.drawn = atlas, number, 0
        super().__init__(folder, [number])

    def write(self, folder: Path) -> None:
        self.drawn += 1
        (folder / "number.txt").write_text(str(self.number))
        if self.number < 0:
            raise OSError("no space left")

    def read(self, folder: Path) -> Reader:
        return Reader(folder, self.atlas)


class Reader:
    def __init__(self, folder: Path, atlas: Atlas) -> None:
        self.folder, self.atlas = folder, atlas

    def cases(self) -> Sequence[Case]:
        return [Case((self.folder / "number.txt").read_text(), "p", self.folder / "number.txt")]

    def label_map(self, case: Case) -> LabelMap:
        return {0: 0, 7: 1}

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        return {"train": [], "test": ["p"]}


def test_files_are_drawn_once_and_read_by_the_reader_of_their_layout(tmp_path: Path, small_atlas: Atlas) -> None:
    first, again, second = (OneFile(str(tmp_path), number=number, atlas=small_atlas) for number in (1, 1, 2))
    assert not list(tmp_path.iterdir())
    assert [case.id for case in first.cases()] == ["1"]
    assert first.label_map(first.cases()[0])[7] == 1
    assert first.official_split() == {"train": [], "test": ["p"]}
    assert again.cases() == first.cases()
    assert second.cases() != first.cases()
    assert (first.drawn, again.drawn, second.drawn) == (1, 0, 1)
    assert names_in(tmp_path) == {first.folder.name, second.folder.name}


def test_a_drawing_that_fails_leaves_nothing_behind(tmp_path: Path, small_atlas: Atlas) -> None:
    with pytest.raises(DataError, match=r"can't be written.*no space left.*dataset.folder"):
        OneFile(str(tmp_path), number=-1, atlas=small_atlas).cases()
    assert names_in(tmp_path) == set()


class Back(SpinePhantom):
    """Five equal vertebrae A to E, and the structures of an atlas among them."""

    slab_mm, drawing = 30.0, 1

    def __init__(self, folder: str, *, levels: str = "ABCDE", **ends: str | None) -> None:
        self.anatomy = Anatomy(
            levels=tuple(Level(name, f"{name}/", 20, 25, 30, 0.0, 6) for name in levels),
            anchor="C/",
            anchor_row=(0.5, 0.5),
        )
        sequence = ("B", "B/", "C", "C/", "D", "D/")
        structures = tuple(Structure(name, "part of the back", index) for index, name in enumerate(sequence, start=1))
        atlas = Atlas("back", structures, sequence)
        super().__init__(atlas, folder=folder, cases=2, slices=3, size=(40, 24), spacing_mm=3.0, seed=0, **ends)

    def write(self, folder: Path) -> None:
        for patient in self.patients():
            for series in self.series(patient):
                name = f"{patient.number}_{series.contrast.sequence}"
                for kind, volume in (("image", series.image), ("mask", series.mask)):
                    self.store(volume, folder / f"{name}_{kind}.mha", patient, first_row=series.first_row)

    def read(self, folder: Path) -> Reader:
        return Reader(folder, self.atlas)

    def drawn(self) -> dict[str, sitk.Image]:
        self._generate()
        return {path.stem: sitk.ReadImage(str(path)) for path in sorted(self.folder.glob("*.mha"))}


@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        ({"ends_above": "D"}, {"B", "B/", "C", "C/"}),
        ({"begins_below": "B"}, {"B/", "C", "C/", "D", "D/"}),
        ({"begins_below": "B", "ends_above": "D/"}, {"B/", "C", "C/", "D"}),
    ],
)
def test_a_cut_picture_has_the_pixels_of_the_whole_one_in_the_same_place(
    tmp_path: Path, ends: dict[str, str], shown: set[str]
) -> None:
    whole, cut = Back(str(tmp_path)), Back(str(tmp_path), **ends)
    pictures, windows = whole.drawn(), cut.drawn()
    assert whole.folder != cut.folder
    assert list(windows) == list(pictures)
    for name, window in windows.items():
        corner = pictures[name].TransformPhysicalPointToIndex(window.GetOrigin())
        assert corner[0] == corner[2] == 0
        assert window.GetSize()[1] < pictures[name].GetSize()[1]
        part = sitk.RegionOfInterest(pictures[name], window.GetSize(), corner)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(part), sitk.GetArrayFromImage(window))
        if name.endswith("mask"):
            values = set(np.unique(sitk.GetArrayFromImage(window)).tolist()) - {0}
            assert {cut.atlas.names[value - 1] for value in values} == shown


def test_ends_between_which_nothing_lies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"ends_above is 'E'.*Possible: B, B/, C, C/, D, D/"):
        Back(str(tmp_path), ends_above="E")
    with pytest.raises(RecipeError, match="begin below C and end above C/, and nothing lies between them"):
        Back(str(tmp_path), begins_below="C", ends_above="C/")
    with pytest.raises(DataError, match=r"patient 1 that begins below C and ends above D is less than 20 mm high"):
        Back(str(tmp_path), begins_below="C", ends_above="D").drawn()


def test_an_anatomy_that_lacks_a_structure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no D, D/, which atlas 'back' has in its sequence"):
        Back(str(tmp_path), levels="ABC").drawn()


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from textseg.data.phantoms.files import PhantomFiles

class Killed(PhantomFiles):
    def write(self, folder):
        (folder / "number.txt").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    def read(self, folder):
        raise NotImplementedError

Killed(sys.argv[1], [1]).cases()
"""


def test_what_a_killed_process_had_drawn_is_removed_by_the_next(tmp_path: Path, small_atlas: Atlas) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    phantom = OneFile(str(tmp_path), number=1, atlas=small_atlas)
    (left,) = names_in(tmp_path)
    assert left.startswith(".textseg-")
    (tmp_path / ".of_somebody_else").mkdir()
    assert [case.id for case in phantom.cases()] == ["1"]
    assert names_in(tmp_path) == {phantom.folder.name, ".of_somebody_else"}


def test_two_that_draw_at_once_draw_once(tmp_path: Path, small_atlas: Atlas) -> None:
    phantoms = [OneFile(str(tmp_path), number=1, atlas=small_atlas) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        result = list(pool.map(lambda phantom: [case.id for case in phantom.cases()], phantoms))
    assert result == [["1"]] * 4
    assert sum(phantom.drawn for phantom in phantoms) == 1
    assert names_in(tmp_path) == {phantoms[0].folder.name}


def test_a_volume_is_stored_as_it_was_placed_also_when_turned(tmp_path: Path) -> None:
    volume = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    direction = (0, 0, -1, 1, 0, 0, 0, -1, 0)
    for orientation in (None, "LPS", "RAS"):
        path = tmp_path / f"{orientation}.nii.gz"
        write_drawn(
            volume, path, spacing_mm=(6, 2, 1.5), origin=(1, 2, 3), direction=direction, orientation=orientation
        )
        image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "PIR")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume)
        assert image.GetSpacing() == pytest.approx((1.5, 2, 6))
        assert image.GetOrigin() == pytest.approx((1, 2, 3))


def test_settings_that_draw_nothing_are_refused() -> None:
    check_settings(seed=0, cases=1, spacing_mm=0.5)
    with pytest.raises(RecipeError, match="spacing_mm is 0, but must be above 0"):
        check_settings(seed=0, cases=1, spacing_mm=0)
    with pytest.raises(RecipeError, match="seed is -2, but must not be below 0"):
        check_settings(seed=-2, cases=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spacing_mm": 1e300}, r"spacing_mm is 1e\+300, but must be 0.01 to 100 mm"),
        ({"cases": 10**30}, "cases, but must have at most 100,000"),
        ({"slices": 10**8, "size": (160, 128)}, "100000000 x 160 x 128 voxels"),
        ({"slices": 1, "size": (100_000, 100_000)}, "1 x 100000 x 100000 voxels; 134,217,728 are possible"),
        ({"size": (5, 0)}, "size is 0, but must be above 0"),
    ],
)
def test_a_phantom_that_no_memory_can_hold_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_settings(seed=0, **settings)
