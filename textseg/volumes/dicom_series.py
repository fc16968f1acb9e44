"""DICOM files: the series in a folder, and the volume of a series, assembled by the positions of its slices."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from textseg.contracts import Plane
from textseg.errors import DataError
from textseg.system.files import file_name
from textseg.volumes.geometry import Geometry
from textseg.volumes.integrity import numbers, require_real_volume, require_room, require_whole_dicom
from textseg.volumes.itk import UnreadableError, itk_name, quietly, sitk

SUFFIXES = (".dcm", ".dicom", ".ima")  # files of other names are known by the letters DICM at their byte 128
NO_IMAGE = tuple(  # SOP classes of what lies beside images: reports, presentation states, segmentations, plans, ...
    f"1.2.840.10008.5.1.4.1.1.{kind}." for kind in ("9", "11", "66", "88", "104", "481")
)
DIRECTORY = "1.2.840.10008.1.3.10"
APART = 0.01  # of the usual distance between slices, plus 0.01 mm: by how much one may differ from it
ASKEW = 1e-3  # by how much cosines may differ, and slices lie beside the line through them, per mm of it

LARGE = 1 << 25  # pixels, above which a file must be large enough to hold them

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DicomSeries:
    """The files of one series in one folder. `name` is what a mask of it is called."""

    folder: Path
    name: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return str(self.folder) if self.name == self.folder.resolve().name else f"{self.folder} (series {self.name})"


@dataclass(frozen=True)
class _Slice:
    file: Path
    size: tuple[int, int]
    spacing: tuple[float, float]  # columns, rows
    position: Vector
    across: Vector  # along a row
    down: Vector
    thickness: float


def is_dicom(path: Path) -> bool:
    """Return True if a file seems to hold a DICOM image, not another object such as a report or a segmentation."""
    try:
        if not path.is_file():  # to open a pipe would wait for ever
            return False
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:  # a slice that can't be read must not be missing without a word
        start = b""
    if start[128:132] != b"DICM":
        return path.suffix.lower() in SUFFIXES
    kind = start.partition(b"\x02\x00\x02\x00UI")[2]
    named = kind[2 : 2 + int.from_bytes(kind[:2], "little")].decode("ascii", "replace").rstrip("\0 ")
    return named != DIRECTORY and not f"{named}.".startswith(NO_IMAGE)


def find_series(files: Iterable[Path]) -> list[DicomSeries]:
    """Find the series among DICOM files, folder by folder.

    A file without a readable header belongs to the series of its folder where there is but one, so that reading this
    names it, and else stands for itself.
    """
    folders: defaultdict[Path, list[Path]] = defaultdict(list)
    for file in files:
        folders[file.parent].append(file)
    series_list = []
    for folder, inside in folders.items():
        series: defaultdict[tuple[str, str], list[Path]] = defaultdict(list)
        damaged = []
        for file in sorted(inside):
            try:
                header = _header(file)
                series[header.get("0020|000e", ""), header.get("0020|0011", "0")].append(file)
            except (UnreadableError, DataError):
                damaged.append(file)
        if len(series) <= 1:
            members = [file for files_of_series in series.values() for file in files_of_series]
            series_list.append(DicomSeries(folder, folder.resolve().name, (*damaged, *members)))
            continue
        numbers_given = Counter(number for _, number in series)
        for (unique, number), members in series.items():
            name = f"{folder.resolve().name}_{number}"  # of a header that anybody may have written
            if numbers_given[number] > 1:
                name += f"_{unique.rpartition('.')[2]}"
            series_list.append(DicomSeries(folder, file_name(name), tuple(members)))
        series_list += [
            DicomSeries(folder, file_name(f"{folder.resolve().name}_{file.stem}"), (file,)) for file in damaged
        ]
    return series_list


def only_series(folder: Path) -> DicomSeries:
    """Return the series of a folder. Raises DataError where it holds none or several."""
    series_list = find_series(file for file in sorted(folder.iterdir()) if file.is_file() and is_dicom(file))
    if not series_list:
        raise DataError(f"{folder} is not a file, and no folder of a DICOM series.")
    if len(series_list) > 1:
        names = ", ".join(series.name for series in series_list)
        raise DataError(f"{folder} holds {len(series_list)} DICOM series ({names}); give each a folder of its own.")
    return series_list[0]


def series_hash(series: DicomSeries) -> str:
    """Return the SHA-256 of the content of its files; their order and names do not change it. Raises DataError."""
    try:
        parts = sorted(hashlib.sha256(file.read_bytes()).digest() for file in series.files)
    except OSError as error:
        raise DataError(f"{series} can't be read: {error.strerror}.") from error
    return hashlib.sha256(b"".join(parts)).hexdigest()


def in_order(series: DicomSeries) -> tuple[list[Path], Geometry]:
    """Return the files of a series in the order of its slices, and their geometry; no pixel is read.

    Raises DataError where they form no volume: a file can't be read, or slices are missing, doubled, differ in their
    direction, or lie beside one another.
    """
    slices = []
    for file in series.files:
        try:
            slices.append(_slice(file))
        except UnreadableError as error:
            raise _unreadable(series, file, error) from error
    first = slices[0]
    for current in slices:
        for quantity, expected, actual in (
            ("size", first.size, current.size),
            ("pixel spacing", first.spacing, current.spacing),
            ("orientation", (*first.across, *first.down), (*current.across, *current.down)),
        ):
            if not np.allclose(expected, actual, rtol=0, atol=ASKEW):
                raise DataError(
                    f"{series}: {first.file.name} and {current.file.name} differ in their {quantity} "
                    f"({numbers(expected)} against {numbers(actual)}), so the series is no volume; take it apart."
                )
    # Order the slices along the normal of their plane.
    normal = np.cross(first.across, first.down)
    slices.sort(key=lambda current: float(current.position @ normal))
    first, last = slices[0], slices[-1]
    distance, line = first.thickness, normal
    if len(slices) > 1:
        _require_even(series, slices, normal)
        span = last.position - first.position
        distance = float(np.linalg.norm(span)) / (len(slices) - 1)
        line = span / np.linalg.norm(span)
        if np.abs(line - normal).max() > ASKEW:
            raise DataError(
                f"{series}: its slices lie beside one another (a tilted gantry?) and are no block; resample it."
            )
    directions = np.stack([first.across, first.down, line], axis=1)
    size, spacing = (*first.size, len(slices)), (*first.spacing, distance)
    origin, direction = tuple(first.position.tolist()), tuple(directions.ravel().tolist())
    geometry = Geometry(size, spacing, origin, direction)
    if geometry.fault:
        raise DataError(f"{series}: {geometry.fault}")
    return [current.file for current in slices], geometry


def read_series(series: DicomSeries, plane: Plane) -> tuple[npt.NDArray[Any], Geometry]:
    """Read the voxels of a series in file order (slices first), rescaled as each file says, and their geometry.

    Raises DataError as `in_order` does, and for pixels that are missing or have a colour.
    """
    files, placed = in_order(series)
    planes = []
    for file in files:
        try:
            reader = _opened(file)
            require_real_volume(file, reader, channels=False)
            planes.append(sitk.GetArrayFromImage(quietly(reader.Execute))[0])
        except UnreadableError as error:
            raise _unreadable(series, file, error) from error
    return np.stack(planes), replace(placed, plane=plane)


def _opened(file: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_name(file))
    try:
        require_whole_dicom(file)
    except OSError as error:
        raise UnreadableError(error.strerror) from error
    quietly(reader.ReadImageInformation)
    if math.prod(reader.GetSize()) > LARGE:
        require_room(file, math.prod(reader.GetSize()))
    return reader


def _header(file: Path) -> Mapping[str, str]:
    """Read the values of a header by tag, such as "0020|000e"."""
    reader = _opened(file)
    return {key: reader.GetMetaData(key).strip("\0 ") for key in reader.GetMetaDataKeys() if "|" in key}


def _slice(file: Path) -> _Slice:
    header = _header(file)
    try:
        frames = int(header.get("0028|0008") or 1)
        position, orientation, spacing = (
            [float(part) for part in header[tag].split("\\")] for tag in ("0020|0032", "0020|0037", "0028|0030")
        )
        size = int(header["0028|0011"]), int(header["0028|0010"])
    except (KeyError, ValueError):
        raise UnreadableError("its header does not say where the slice lies") from None
    if frames > 1:
        raise UnreadableError("it holds several frames; convert it with dcm2niix or take it apart")
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    sound = (len(position), len(orientation), len(spacing)) == (3, 6, 2) and np.isfinite(position).all()
    angles = (across @ across, down @ down, across @ down) if sound else ()
    if not sound or min(spacing) <= 0 or not np.allclose(angles, (1, 1, 0), atol=ASKEW):
        raise UnreadableError("its position, orientation or pixel spacing makes no sense")
    return _Slice(file, size, (spacing[1], spacing[0]), np.array(position), across, down, _thickness(header))


def _thickness(header: Mapping[str, str]) -> float:
    """Return the distance or thickness of a slice, for a series of a single one; 1 where the header states none."""
    for tag in ("0018|0088", "0018|0050"):
        with suppress(ValueError):
            if 0 < abs(thickness := float(header.get(tag, ""))) < math.inf:
                return abs(thickness)
    return 1.0


def _require_even(series: DicomSeries, slices: Sequence[_Slice], normal: Vector) -> None:
    gaps = np.diff([float(current.position @ normal) for current in slices])
    usual = float(np.median(gaps))
    for number, gap in enumerate(gaps.tolist()):
        before, after = slices[number].file.name, slices[number + 1].file.name
        if gap < 1e-3:
            raise DataError(
                f"{series}: {before} and {after} lie at the same place; it holds several images of a slice (echoes, "
                "time points, copies?): give each a folder of its own."
            )
        if abs(gap - usual) > APART * usual + 0.01:
            raise DataError(
                f"{series}: from {before} to {after} it is {gap:.4g} mm, and {usual:.4g} mm between the other slices; "
                "a slice is missing or out of place."
            )


def _unreadable(series: DicomSeries, file: Path, error: Exception) -> DataError:
    return DataError(f"{series}: {file.name} can't be read: {error}. Copy the series again, or leave it out.")
