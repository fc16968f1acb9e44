"""Reader of SPIDER: lumbar MRI with vertebrae, discs and spinal canal."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from textseg.contracts import Case, LabelMap
from textseg.errors import DataError, suggestion
from textseg.system import (
    Progress,
    RemoteFile,
    Row,
    fetch_file,
    optional_file,
    read_table,
    shell,
    unknown_row,
    unpack_zip,
)
from textseg_spine.atlas import CANAL, DISCS, VERTEBRAE, lumbar_spider

LEVELS = range(1, 26)  # vertebrae and discs are counted from the bottom
CANAL_VALUE = 100
PARTIAL_OFFSET = 100
DISC_OFFSET = 200
LOWEST_LEVELS = {"L6": -1, "L5": 0, "L4": 1, "L3": 2, "L2": 3, "L1": 4}  # places above L5 of the vertebra called 1
SEQUENCES = {"t1": "T1", "t2": "T2", "t2_space": "T2 SPACE"}
SEXES = {"F": "female", "M": "male"}
SUBSETS = {"training": "train", "validation": "test"}
ZENODO = "https://zenodo.org/records/10159290/files/{}?download=1"
SERIES = 447
OVERVIEW, NUMBERING = "overview.csv", "numbering.csv"
STEM = re.compile(r"(?P<patient>\d+)_(?P<sequence>t1|t2|t2_space)", re.IGNORECASE)


def _published(name: str, md5: str, size: int | None = None) -> RemoteFile:
    return RemoteFile(name, ZENODO.format(name), md5, size)


class Spider:
    """The folder of SPIDER (van der Graaf et al., Scientific Data 11, 264, 2024; Zenodo record 10159290).

    Layout: images/<patient>_<t1|t2|t2_SPACE>.mha, masks/ with the same names, overview.csv. Names compare without
    regard to case. `partial_vertebrae`: whether vertebrae that the picture cuts (values 101 to 125) count as their
    level or as background.

    SPIDER counts vertebrae from the bottom, so its 1 is L5 in most patients. A file numbering.csv in the folder, with
    the columns patient and lowest_level, says where it is not: with L6 (a lumbarised S1) 1 is L6, which the atlas does
    not have, 2 is L5 and 202 is L5/S; with L4 (a sacralised L5) 1 is L4 and 201 is L4/L5.

    `channels: [T1, T2]` joins the series of a patient to one case whose channels they are; its id, its mask and its
    grid are those of the first of them. Patients without these series are no cases.

    Every method raises DataError where the folder or one of its tables is missing or damaged.
    """

    archives = (
        _published("images.zip", "7a9fa44aac0c72e2937bdef62cff88db", 3_700_562_886),
        _published("masks.zip", "49861ff25a0108b3b69d0ce808ae51dc"),
    )
    tables = (
        _published("overview.csv", "f9a808d2cf67844baa32114a1a769fde"),
        _published("radiological_gradings.csv", "a5b7a6ad7fb4daa0bfa650b716f026f6"),
    )

    def __init__(
        self,
        *,
        folder: str,
        partial_vertebrae: Literal["level", "background"] = "level",
        channels: tuple[Literal["T1", "T2", "T2 SPACE"], ...] = (),
    ) -> None:
        if len(set(channels)) < len(channels):
            raise DataError(f"dataset.channels: {', '.join(channels)} names a sequence twice. Name each once.")
        self.folder, self.channels = Path(folder), channels
        self.partial_vertebrae = partial_vertebrae
        self.atlas = lumbar_spider()

    def cases(self) -> Sequence[Case]:
        """Return every series, sorted by patient number and sequence; `mask` is None without a mask."""
        return self._cases

    def label_map(self, case: Case) -> LabelMap:
        """Class index of 0, 1..25, 100, 101..125 and 201..225; levels that the atlas does not have are background."""
        shift = self._shifts.get(case.patient, 0)
        classes = {0: 0, CANAL_VALUE: self.atlas[CANAL].index}
        for level in LEVELS:
            position = level - 1 + shift
            known = 0 <= position < len(VERTEBRAE)
            vertebra = self.atlas[VERTEBRAE[position]].index if known else 0
            classes[level] = vertebra
            classes[PARTIAL_OFFSET + level] = vertebra if self.partial_vertebrae == "level" else 0
            classes[DISC_OFFSET + level] = self.atlas[DISCS[position]].index if known else 0
        return classes

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        """SPIDER's own training ("train") and validation ("test") patients; None without overview.csv."""
        if not self._overview:
            return None
        path = self.folder / "overview.csv"
        subsets: dict[str, str] = {}
        for case in self._cases:
            subset = self._row(case.id).cells.get("subset", "").lower()
            if subset not in SUBSETS:
                raise DataError(
                    f"{path}: the subset of series '{case.id}' is '{subset}'. "
                    f"The official split needs one of {', '.join(SUBSETS)} for every series in {self.folder}: "
                    "use the overview.csv of Zenodo record 10159290, or another kind of split."
                )
            if subsets.setdefault(case.patient, subset) != subset:
                raise DataError(
                    f"{path}: patient {case.patient} is in both subsets, {' and '.join(SUBSETS)}. "
                    "Give all series of a patient the same subset."
                )
        return {
            name: tuple(patient for patient, subset in subsets.items() if SUBSETS[subset] == name)
            for name in SUBSETS.values()
        }

    def fetch(self, *, progress: Progress) -> str:
        """Download and unpack Zenodo record 10159290 (CC BY 4.0), and return a sentence on the result."""
        for table in self.tables:
            fetch_file(table, self.folder, progress=progress)
        for archive in self.archives:
            name = archive.name.removesuffix(".zip")
            if len(_volumes(self.folder / name)) < SERIES:
                path = fetch_file(archive, self.folder, progress=progress)
                unpack_zip(path, self.folder / name, renamed=_volume_name)
                path.unlink()
            if (count := len(_volumes(self.folder / name))) != SERIES:
                raise DataError(f"'{self.folder / name}' holds {count} volumes, and SPIDER has {SERIES}.")
        return (
            f"SPIDER: {SERIES} series with their masks in '{self.folder}'. CC BY 4.0, doi 10.1038/s41597-024-03090-w."
        )

    def doubts(self, values: Mapping[str, Collection[int]]) -> Mapping[str, Sequence[str]]:
        """Return doubts about the names of levels, by case id, from the `values` in the masks."""
        doubts: dict[str, list[str]] = {}
        levels = {case_id: _levels(values[case_id]) for case_id in values}
        for case in self._cases:
            if case.id not in levels or case.patient in self._shifts:
                continue
            vertebrae, discs = levels[case.id]
            sentences = doubts.setdefault(case.id, [])
            row = self._row(case.id).cells
            counted = {len(vertebrae), len([level for level in vertebrae if level in values[case.id]])}
            for column, numbers in (("num_vertebrae", counted), ("num_discs", {len(discs)})):
                count = row.get(column, "")
                if count.isdecimal() and int(count) not in numbers:
                    sentences.append(f"overview.csv says {column} {count}, and the mask has {max(numbers)}")
            if vertebrae and min(vertebrae) != 1:
                sentences.append(f"its lowest vertebra is {min(vertebrae)}, and SPIDER counts from 1")
            if vertebrae and max(vertebrae) > len(VERTEBRAE):
                sentences.append(
                    f"it shows {max(vertebrae)} vertebrae, one above {VERTEBRAE[-1]} if 1 is L5; or 1 is L6"
                )
            others = [
                relative.id for relative in self._cases if relative.patient == case.patient and relative.id in levels
            ]
            if unlike := [case_id for case_id in others if levels[case_id] != levels[case.id]]:
                sentences.append(f"the mask of {unlike[0]}, the same patient, has other levels")
        for stem in sorted(_volumes(self.folder / "masks").keys() - {case.id.lower() for case in self._series}):
            doubts[stem] = ["this mask has no image of its name"]
        for name, lines in self._rows_of_nobody():
            doubts[name] = lines
        advice = "if the names are shifted, say so in numbering.csv (patient, lowest_level)"
        return {
            case_id: [line if case_id not in levels else f"{line}: {advice}" for line in lines]
            for case_id, lines in doubts.items()
            if lines
        }

    @cached_property
    def _cases(self) -> tuple[Case, ...]:
        """Return each series, or the joined series of each patient who has one of the channels."""
        if not self.channels:
            return self._series
        patients: dict[str, dict[str, Case]] = {}
        for case in self._series:
            patients.setdefault(case.patient, {})[case.facts["sequence"]] = case
        joined = []
        for series in patients.values():
            if parts := {name: series[name] for name in self.channels if name in series}:
                first = next(iter(parts.values()))
                facts = {**first.facts, "sequence": " and ".join(parts)}
                joined.append(replace(first, image={name: part.first for name, part in parts.items()}, facts=facts))
        if not joined:
            raise DataError(f"dataset.channels: '{self.folder}' has no {' or '.join(self.channels)} series.")
        return tuple(joined)

    @cached_property
    def _series(self) -> tuple[Case, ...]:
        images = _volumes(self.folder / "images")
        if not images:
            download = shell("textseg", "data", "fetch", "spider", "--folder", self.folder)
            raise DataError(
                f"No SPIDER images in '{self.folder}' ({_what_is_there(self.folder)}). Expected: "
                "images/<patient>_<t1|t2|t2_SPACE>.mha, masks/ with the same names, overview.csv. "
                f"SPIDER is Zenodo record 10159290 (CC BY 4.0): `{download}` brings it; or set `dataset.folder` to "
                "where they are: --set dataset.folder=DIR"
            )
        masks = _volumes(self.folder / "masks")
        return tuple(self._case(image, masks.get(stem)) for stem, image in sorted(images.items(), key=_naturally))

    def _case(self, image_path: Path, mask_path: Path | None) -> Case:
        match = STEM.fullmatch(image_path.stem)
        if match is None:
            raise DataError(
                f"{image_path}: the name is not <patient>_<sequence>.mha. The sequence is one of t1, t2, t2_SPACE, the "
                "patient a number: rename the file or move it out of the folder."
            )
        facts = {"sequence": SEQUENCES[match["sequence"].lower()], "view": "sagittal"}
        sex = self._row(image_path.stem).cells.get("sex", "").upper()
        if sex in SEXES:
            facts["sex"] = SEXES[sex]
        return Case(id=image_path.stem, patient=match["patient"], image=image_path, mask=mask_path, facts=facts)

    @cached_property
    def _overview(self) -> Mapping[str, Row]:
        """Rows by lower-case stem; empty without the file."""
        return _table(self.folder / OVERVIEW, "new_file_name", "sex", "subset")

    def _row(self, case_id: str) -> Row:
        return self._overview.get(case_id.lower(), Row(0, {}))

    @cached_property
    def _numbering(self) -> Mapping[str, Row]:
        """Rows by patient; empty without the file."""
        return _table(self.folder / NUMBERING, "patient", "lowest_level")

    @cached_property
    def _shifts(self) -> Mapping[str, int]:
        """Levels by which a patient's vertebra 1 is above L5; empty without numbering.csv."""
        path = self.folder / NUMBERING
        shifts: dict[str, int] = {}
        patients = {case.patient for case in self._cases}
        for patient, row in self._numbering.items():
            level = row.cells["lowest_level"].upper()
            if level not in LOWEST_LEVELS:
                raise DataError(
                    f"{path}:{row.line}: the lowest_level of patient {patient} is '{level}'."
                    f"{suggestion(level, LOWEST_LEVELS)}"
                )
            # A spreadsheet writes 12.0 or 012 for 12; the names of that patient would silently stay as they are.
            number = re.sub(r"^0+(?=\d)|[.,]0*$", "", patient)
            if patient not in patients and number in patients:
                raise DataError(f"{path}:{row.line}: there is no patient '{patient}'. Write {number}.")
            shifts[patient] = LOWEST_LEVELS[level]
        return shifts

    def _rows_of_nobody(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the name of a table, and its rows that fit no series or patient of the folder."""
        stems, patients = {case.id.lower() for case in self._series}, {case.patient for case in self._series}
        kinds = ((NUMBERING, self._numbering, "patient", patients), (OVERVIEW, self._overview, "series", stems))
        for name, table, kind, known in kinds:
            if strangers := [key for key in table if key not in known]:
                first = unknown_row(self.folder / name, table[strangers[0]], strangers[0], kind, ())
                more = f" So it is with {len(strangers) - 1} more rows." if len(strangers) > 1 else ""
                yield name, [f"{first}{more}"]


def _volume_name(member: PurePosixPath) -> str | None:
    """Return the name of an MHA file in the archive without its folder; None for other files."""
    return member.name if member.suffix.lower() == ".mha" else None


def _levels(values: Collection[int]) -> tuple[set[int], set[int]]:
    """Return the numbers of the vertebrae (complete or cut by the image) and of the discs, from the bottom."""
    vertebrae = {level for level in LEVELS if level in values or PARTIAL_OFFSET + level in values}
    return vertebrae, {level for level in LEVELS if DISC_OFFSET + level in values}


def _volumes(folder: Path) -> Mapping[str, Path]:
    """MHA files by lower-case stem; hidden files, which macOS adds to archives, are left out."""
    volumes: dict[str, Path] = {}
    paths: Iterable[Path] = sorted(folder.iterdir()) if folder.is_dir() else ()
    for path in paths:
        if path.suffix.lower() != ".mha" or path.name.startswith("."):
            continue
        if (first := volumes.setdefault(path.stem.lower(), path)) is not path:
            raise DataError(
                f"{folder}: '{first.name}' and '{path.name}' differ only in case, and SPIDER's names compare without "
                "regard to case. Keep one."
            )
    return volumes


def _naturally(item: tuple[str, Path]) -> list[tuple[int, str]]:
    """Return a sort key that puts 9_t2 before 10_t1."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", item[0])]


def _table(path: Path, key: str, *columns: str) -> Mapping[str, Row]:
    """Return rows of a CSV file with at least these columns; empty without the file."""
    file = optional_file(path)
    return read_table(file, key, columns, fold=str.lower) if file else {}


def _what_is_there(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    names = sorted(path.name for path in folder.iterdir())
    return f"it holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"
