"""Volumes on disk and in memory, where they are canonical: see `textseg.volumes.geometry`.

Read and written: MHA, NRRD, NIfTI, each one file with header and voxels together. Read only: DICOM series.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import math
import stat
import uuid
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from textseg.contracts import Plane
from textseg.errors import DataError
from textseg.volumes.dicom_series import DicomSeries, only_series, read_series, series_hash
from textseg.volumes.geometry import Array, Geometry, canonical, restore
from textseg.volumes.integrity import numbers, require_scalar_volume, require_whole_mha, require_whole_nifti
from textseg.volumes.itk import UnreadableError, attempt, quietly, sitk

SUFFIXES = (".mha", ".nrrd", ".nii.gz", ".nii")
MASK_SUFFIXES = (".seg.nrrd", *SUFFIXES, ".dcm")


@dataclass(frozen=True)
class Volume:
    """A canonical volume: `array` [S, H, W], `spacing_mm` (slice, row and column distance), geometry of its file."""

    array: Array = field(repr=False)
    spacing_mm: tuple[float, float, float]
    geometry: Geometry


def read_geometry(path: Path | str, plane: Plane = "sagittal") -> Geometry:
    """Read the geometry in the header of a file, cut into slices of that plane. Raises DataError."""
    return _geometry(Path(path), _read_header(Path(path)), plane)


def read_volume(path: Path | str | DicomSeries, plane: Plane = "sagittal") -> Volume:
    """Read intensities, float32 [S, H, W], cut into slices of that plane, from a file or a folder of one DICOM series.

    Raises DataError where the file is missing, unreadable, truncated, of another number of dimensions than 2 and 3, in
    colour or complex, or holds a value that is no finite number.
    """
    if isinstance(path, DicomSeries) or is_folder(Path(path)):
        series = path if isinstance(path, DicomSeries) else only_series(Path(path))
        stored, geometry = read_series(series, plane)
        array = canonical(stored, geometry)
    else:
        array, geometry = _read(Path(path), plane)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise DataError(
            f"{path}: {bad} of {array.size} intensities are NaN or infinite; repair or leave out this volume."
        )
    return Volume(array, geometry.spacing_mm, geometry)


def read_labels(path: Path | str, plane: Plane = "sagittal") -> Volume:
    """Read labels, integers [S, H, W] as the file has them (int64 where it stores whole numbers as floats).

    Raises DataError as `read_volume` does, and where a value is not a whole number.
    """
    array, geometry = _read(Path(path), plane)
    if array.dtype.kind == "f":
        odd = array[~np.isfinite(array) | (array != np.rint(array)) | (np.abs(array) > 2**53)]
        if odd.size:
            raise DataError(
                f"{path}: {odd.size} of {array.size} values are no whole numbers, {odd[0]} among them; a mask must "
                f"hold one label per voxel. Was it resampled with interpolation, or is it an image?"
            )
        array = array.astype(np.int64)
    return Volume(array, geometry.spacing_mm, geometry)


def write_labels(
    array: Array,
    geometry: Geometry,
    path: Path | str,
    *,
    header: Mapping[str, str] | None = None,
    edit: Callable[[bytes], bytes] | None = None,
    flat: bool = True,
) -> None:
    """Write canonical labels [S, H, W] with exactly `geometry`.

    `header` are further keys for an NRRD or MHA file, `edit` changes the content of a NIfTI file before it is
    compressed, `flat` may be False where a flat geometry is to have three dimensions nevertheless.

    Compressed, in the smallest unsigned type that holds the values, in one step: no reader ever sees half a file.
    Folders are made as needed. Raises DataError where the path can't be written, ValueError where labels are negative
    or no integers or do not have the shape of `geometry`.
    """
    path = Path(path)
    _require_suffix(path)
    if array.dtype.kind not in "bui" or (array.size and array.min() < 0):
        raise ValueError(f"Labels must be non-negative integers, not {array.dtype} from {array.min()}.")
    smallest = np.min_scalar_type(int(array.max()) if array.size else 0)
    image = sitk.GetImageFromArray(restore(array, geometry).astype(smallest))
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    if geometry.flat and flat:
        image = image[:, :, 0]
    for key, value in (header or {}).items():
        image.SetMetaData(key, value)

    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    packed = edit is not None and path.name.lower().endswith(".gz")
    written = temporary.with_suffix("") if packed else temporary
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        quietly(lambda: sitk.WriteImage(image, str(written), useCompression=not packed))
        if edit is not None:
            content = edit(written.read_bytes())
            temporary.write_bytes(gzip.compress(content, 6, mtime=0) if packed else content)
        temporary.replace(path)
    except (OSError, UnreadableError) as error:
        raise DataError(f"{path} can't be written: {error}. Check the folder, its rights and free space.") from error
    finally:
        for file in (temporary, written):
            with suppress(OSError):
                file.unlink()


def stem(path: Path) -> str:
    """Return the name of a volume or mask without its suffix; ".nii.gz" and ".seg.nrrd" count as one suffix."""
    name = path.name
    return next((name[: -len(suffix)] for suffix in MASK_SUFFIXES if name.lower().endswith(suffix)), name)


def require_file(path: Path) -> None:
    """Raise DataError with the reason where a path is no file that can be read to its end."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            next(path.iterdir(), None)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
            raise DataError(f"{path} is a link that leads to no file: {error.strerror}.") from error
        missing = isinstance(error, FileNotFoundError)
        raise DataError(f"{path} does not exist." if missing else f"{path} can't be read: {error.strerror}.") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path} is not a file, but a folder without volumes.")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is not a file, but a device, a pipe or a socket.")


def is_folder(path: Path) -> bool:
    """Return True for a folder or a link to one; False, too, where the path can't be followed."""
    try:
        return path.is_dir()
    except OSError:
        return False


def file_hash(path: Path | str | DicomSeries) -> str:
    """Return the SHA-256 of the content of a file or series, in hexadecimal. Raises DataError if it can't be read."""
    if isinstance(path, DicomSeries) or is_folder(Path(path)):
        return series_hash(path if isinstance(path, DicomSeries) else only_series(Path(path)))
    require_file(Path(path))
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from error


def _read(path: Path, plane: Plane) -> tuple[Array, Geometry]:
    """Return the canonical array in the file's own type, and its geometry."""
    reader = _read_header(path)
    name = path.name.lower()
    try:
        if name.endswith(".mha"):
            require_whole_mha(path, reader)
        elif name.endswith((".nii", ".nii.gz")):
            require_whole_nifti(path, reader)
        # A file that was checked has nothing left for ITK to print about, so threads may decode voxels at once.
        image = quietly(reader.Execute) if name.endswith(".nrrd") else attempt(reader.Execute)
    except (UnreadableError, OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if image.GetDimension() == 2:
        image = sitk.JoinSeries([image])
    geometry = _geometry(path, reader, plane)
    return canonical(sitk.GetArrayViewFromImage(image), geometry), geometry


def _read_header(path: Path) -> Any:
    """Return a reader that knows the header of a file."""
    _require_suffix(path)
    require_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        quietly(reader.ReadImageInformation)
        require_scalar_volume(path, reader)
    except UnreadableError as error:
        raise _unreadable(path, error) from error
    return reader


def _geometry(path: Path, reader: Any, plane: Plane) -> Geometry:
    """Return the geometry that a header states."""
    size, spacing, origin, direction = (
        tuple(getattr(reader, f"Get{name}")()) for name in ("Size", "Spacing", "Origin", "Direction")
    )
    flat = len(size) == 2
    if flat:
        a, b, c, d = direction
        size, spacing, origin, direction = (*size, 1), (*spacing, 1.0), (*origin, 0.0), (a, b, 0, c, d, 0, 0, 0, 1)
    if not all(map(math.isfinite, (*spacing, *origin, *direction))) or min(spacing) <= 0:
        raise DataError(f"{path}: spacing {numbers(spacing)} mm or its origin or direction makes no sense.")
    return Geometry(size, spacing, origin, direction, flat, plane)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} can't be read as a volume: {error}. It is truncated, damaged or of another format; copy it again."
    )


def _require_suffix(path: Path) -> None:
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: volumes are one of {', '.join(SUFFIXES)}; convert it to one of these.")
