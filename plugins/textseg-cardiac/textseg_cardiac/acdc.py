"""Reader of ACDC: short-axis cine MRI of the heart, the frames of end-diastole and end-systole annotated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from textseg.contracts import Atlas, Case, LabelMap
from textseg.errors import DataError
from textseg.system import read_text
from textseg.volumes import read_geometry
from textseg_cardiac.atlas import heart_acdc

PATIENT = re.compile(r"patient(?P<number>\d+)")
FRAME = re.compile(r"patient(?P<number>\d+)_frame(?P<frame>\d+)(?P<mask>_gt)?\.nii(\.gz)?")
LAYOUT = "training/patient001/patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz, Info.cfg; testing/ likewise"
SOURCE = "www.creatis.insa-lyon.fr/Challenge/acdc"
PHASES = {"ED": "end-diastole", "ES": "end-systole"}


class ACDC:
    """The folder of ACDC (Bernard et al., IEEE TMI 2018), in the layout of its challenge.

    Layout: a folder for each patient, all in `folder` or in its folders training and testing; in each the frames
    patient001_frame01.nii.gz, their masks with _gt, and Info.cfg. A frame is a case. Its facts are the sequence, the
    view, the phase and the group, as Info.cfg gives them. The headers say nothing of how the heart lay in the patient,
    so the order of slices is that of the files: `first_slice` is the end of the heart that they begin with, and the
    fact of that name the end at which the case begins when it is read. Every method raises DataError where the folder
    is missing or its names are not those of ACDC.
    """

    def __init__(self, *, folder: str, first_slice: Literal["base", "apex"] = "base") -> None:
        self.folder = Path(folder)
        self.first_slice = first_slice
        self.atlas: Atlas = heart_acdc()

    def cases(self) -> Sequence[Case]:
        """Return every frame, sorted by patient and frame; `mask` is None without a mask."""
        return self._cases

    def label_map(self, case: Case) -> LabelMap:
        """Class index of 0 (background), 1 (right ventricle), 2 (myocardium), 3 (left ventricle)."""
        return {index: index for index in range(self.atlas.class_count)}

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        """Return the patients of the folders training and testing; None without them."""
        parts = {"train": "training", "test": "testing"}
        patients = {
            part: sorted({case.patient for case in self._cases if Path(str(case.image)).parts[-3] == name})
            for part, name in parts.items()
        }
        return patients if all(patients.values()) else None

    @cached_property
    def _cases(self) -> tuple[Case, ...]:
        cases = [case for patient in self._patients() for case in self._frames(patient)]
        if not cases:
            raise DataError(f"No ACDC frames in '{self.folder}'. Expected: {LAYOUT}. Get it from {SOURCE}.")
        return tuple(cases)

    def _patients(self) -> Iterator[Path]:
        """Yield folders of patients, sorted by number. Raises DataError for two with the same number."""
        folders: dict[int, Path] = {}
        for parent in (self.folder, self.folder / "training", self.folder / "testing"):
            for path in sorted(parent.iterdir()) if parent.is_dir() else ():
                match = PATIENT.fullmatch(path.name)
                if match and path.is_dir() and (first := folders.setdefault(int(match["number"]), path)) is not path:
                    raise DataError(f"'{first}' and '{path}' are the same patient. Keep one.")
        yield from (folders[number] for number in sorted(folders))

    def _frames(self, folder: Path) -> Iterator[Case]:
        images: dict[int, Path] = {}
        masks: dict[int, Path] = {}
        for path in sorted(folder.iterdir()):
            if (match := FRAME.fullmatch(path.name)) is None:
                continue  # Info.cfg, the whole cine series, notes
            if f"patient{match['number']}" != folder.name:
                raise DataError(f"'{path}' bears the name of another patient than its folder. Move it there.")
            files, frame = masks if match["mask"] else images, int(match["frame"])
            if (first := files.setdefault(frame, path)) is not path:
                raise DataError(f"'{first}' and '{path}' are the same frame. Keep one.")
        if lonely := sorted(masks.keys() - images.keys()):
            raise DataError(f"'{masks[lonely[0]]}' has no image beside it. Restore it, or move the mask away.")
        information = _information(folder / "Info.cfg")
        for frame, path in sorted(images.items()):
            yield Case(
                id=f"{folder.name}_frame{frame:02}",
                patient=folder.name.removeprefix("patient"),
                image=path,
                mask=masks.get(frame),
                facts=self._facts(path, frame, information),
            )

    def _facts(self, path: Path, frame: int, information: Mapping[str, str]) -> dict[str, str]:
        (_, turned), *_ = read_geometry(path, self.atlas.plane).axes
        ends = {"base": "apex", "apex": "base"}
        facts = {
            "sequence": "cine",
            "view": "short axis",
            "first_slice": ends[self.first_slice] if turned else self.first_slice,
        }
        for key, phase in PHASES.items():
            if information.get(key) == str(frame):
                facts["phase"] = phase
        if "Group" in information:
            facts["group"] = information["Group"]
        return facts


def _information(path: Path) -> dict[str, str]:
    """The lines `key: value` of Info.cfg; empty without the file, which early test data lack."""
    lines = read_text(path).splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}
