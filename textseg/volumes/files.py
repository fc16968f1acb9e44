"""Volumes on disk and in memory, where they are canonical: see `textseg.volumes.geometry`.

Read and written: MHA, NRRD, NIfTI, each one file with header and voxels together, and PNG, one slice. Read only: DICOM
series.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from textseg.contracts import ArrayImage, Plane
from textseg.errors import DataError, one_line
from textseg.system.files import replacing
from textseg.volumes.dicom_series import DicomSeries, is_dicom, only_series, read_series, series_hash
from textseg.volumes.geometry import DIRECTIONS, Array, Geometry, canonical, restore
from textseg.volumes.integrity import mha_voxels, require_real_volume, require_sound_mha, require_whole_nrrd
from textseg.volumes.itk import UnreadableError, itk_name, quietly, sitk
from textseg.volumes.nifti import SUFFIXES as NIFTI
from textseg.volumes.nifti import open_nifti, write_nifti
from textseg.volumes.pictures import SUFFIX as PNG
from textseg.volumes.pictures import open_png, require_picture, write_png

READERS = {".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}  # of ITK
SUFFIXES = (*READERS, ".nii.gz", ".nii")
READABLE = (*SUFFIXES, PNG)  # of files that hold an image alone
MASK_SUFFIXES = (".seg.nrrd", *READABLE, ".dcm")

FORMATS = f"textseg reads {', '.join(READABLE)} and DICOM series"

Readable = Path | str | DicomSeries | ArrayImage


@dataclass(frozen=True)
class Volume:
    """A canonical volume: `array` [S, H, W], `spacing_mm` (slice, row and column distance), geometry of its file."""

    array: Array = field(repr=False)
    spacing_mm: tuple[float, float, float]
    geometry: Geometry


def read_geometry(path: Path | str, plane: Plane = "sagittal") -> Geometry:
    """Read the geometry in the header of a file, cut into slices of that plane. Raises DataError."""
    return _open(Path(path), plane)[0]


def read_volume(path: Readable, plane: Plane = "sagittal") -> Volume:
    """Read intensities, float32 [S, H, W], cut into slices of that plane, from a file or a folder of one DICOM series.

    Raises DataError where the file is missing, unreadable, truncated, of another number of dimensions than 2 and 3, in
    colour or complex, or holds a value that is no finite number.
    """
    return _intensities(path, *_read(path, plane))


def read_channels(path: Readable, plane: Plane = "sagittal") -> Volume:
    """Read intensities as `read_volume` does, but [C, S, H, W]: a file may hold several channels."""
    return _intensities(path, *_read(path, plane, channels=True))


def _intensities(path: Readable, array: Array, geometry: Geometry) -> Volume:
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise DataError(
            f"{path}: {bad} of {array.size} intensities are NaN or infinite; repair or leave out this volume."
        )
    return Volume(array, geometry.spacing_mm, geometry)


def read_labels(path: Path | str | ArrayImage, plane: Plane = "sagittal") -> Volume:
    """Read labels, integers [S, H, W] as the file has them (int64 where it stores whole numbers as floats).

    Raises DataError as `read_volume` does, and where a value is not a whole number.
    """
    array, geometry = _read_array(path, plane) if isinstance(path, ArrayImage) else _read_file(Path(path), plane)
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
    extension: bytes = b"",
    flat: bool = True,
) -> None:
    """Write canonical labels [S, H, W] with exactly `geometry`.

    `header` are further keys for an NRRD or MHA file, `extension` follows the header of a NIfTI file, `flat` may be
    False where a flat geometry is to have three dimensions nevertheless.

    Compressed, in the smallest unsigned type that holds the values, read back and compared, in one step: no reader ever
    sees half a file. Folders are made as needed. Raises DataError where the path can't be written, ValueError where
    labels are negative or no integers or do not have the shape of `geometry`.
    """
    path = Path(path)
    suffix = _suffix(path)
    if array.dtype.kind not in "bui" or (array.size and array.min() < 0):
        raise ValueError(f"Labels must be non-negative integers, not {array.dtype} from {array.min()}.")
    smallest = np.min_scalar_type(int(array.max()) if array.size else 0)
    stored = restore(array, geometry).astype(smallest)
    geometry = replace(geometry, flat=geometry.flat and flat)
    if suffix == PNG:  # which has no place in the patient
        require_picture(stored, path)
        geometry = replace(geometry, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    with _verified(path, stored, geometry) as temporary:
        if suffix in NIFTI:
            write_nifti(stored, geometry, temporary, extension=extension)
        elif suffix == PNG:
            write_png(stored, temporary)
        else:
            _write_itk(stored, geometry, temporary, header or {})


def write_image(image: Any, path: Path) -> None:
    """Write an image of SimpleITK, compressed, read back and compared, in one step. Raises DataError."""
    _suffix(path)
    geometry = _geometry(image, "sagittal")
    with _verified(path, sitk.GetArrayFromImage(image).reshape(geometry.size[::-1]), geometry) as temporary:
        quietly(lambda: sitk.WriteImage(image, itk_name(temporary), useCompression=True))


@contextmanager
def _verified(path: Path, array: Array, geometry: Geometry) -> Iterator[Path]:
    """Give a temporary path, which becomes `path` if it holds this array in file order and this geometry.

    Raises DataError for a file that can't be written, or does not hold them: some writers report no full disk.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
            try:
                written, stored = _read_file(temporary, geometry.plane)
            except DataError as error:
                raise UnreadableError("what was written can't be read back") from error
            if differences := geometry.differences(stored):
                raise UnreadableError(f"it would get another geometry: {'; '.join(differences)}")
            if not np.array_equal(restore(written, stored), array):
                raise UnreadableError("it would get other voxels")
    except (OSError, UnreadableError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} can't be written: {reason}. Check the folder, its rights and free space.") from error


def _write_itk(array: Array, geometry: Geometry, path: Path, header: Mapping[str, str]) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    if geometry.flat:
        image = image[:, :, 0]
    for key, value in header.items():
        image.SetMetaData(key, value)
    quietly(lambda: sitk.WriteImage(image, itk_name(path), useCompression=True))


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


def find_volumes(
    folder: Path,
    left_out: frozenset[str] = frozenset(),
    *,
    dicom: bool = False,
    suffixes: tuple[str, ...] = SUFFIXES,
) -> Iterator[Path]:
    """Yield the volumes below a folder in the order of their names, with `dicom` also DICOM files; links are followed.

    Hidden files are left out, and the folders whose real paths are `left_out`. A folder that can't be listed stands for
    itself, as does an empty one with the name of a volume.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        yield folder
        return
    left_out |= {os.path.realpath(folder)}  # a link back to it would be a circle
    for path in paths:
        if not is_folder(path):
            if is_named(path, suffixes) or (dicom and is_dicom(path)):
                yield path
        elif os.path.realpath(path) not in left_out:
            inside = list(find_volumes(path, left_out, dicom=dicom, suffixes=suffixes))
            yield from inside or ([path] if is_named(path, suffixes) else [])


def is_named(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Return True for a name of an MHA, NRRD or NIfTI file, or one with another of `suffixes`."""
    return path.name.lower().endswith(suffixes)


def file_hash(path: Readable) -> str:
    """Return the SHA-256 of the content of a file, series or array, in hexadecimal.

    Raises DataError if it can't be read.
    """
    if isinstance(path, ArrayImage):
        array = _loaded(path)
        facts = f"{array.dtype.str} {array.shape} {path.spacing_mm}".encode()
        return hashlib.sha256(facts + array.tobytes()).hexdigest()
    if isinstance(path, DicomSeries) or is_folder(Path(path)):
        return series_hash(path if isinstance(path, DicomSeries) else only_series(Path(path)))
    require_file(Path(path))
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from error


def _read(path: Readable, plane: Plane, *, channels: bool = False) -> tuple[Array, Geometry]:
    """Return the canonical array in its own type, with `channels` [C, S, H, W], and its geometry."""
    if isinstance(path, ArrayImage):
        return _read_array(path, plane, channels=channels)
    if isinstance(path, DicomSeries) or is_folder(Path(path)):
        stored, geometry = read_series(path if isinstance(path, DicomSeries) else only_series(Path(path)), plane)
        array = canonical(stored, geometry)
        return array[None] if channels else array, geometry
    return _read_file(Path(path), plane, channels=channels)


def _read_file(path: Path, plane: Plane, *, channels: bool = False) -> tuple[Array, Geometry]:
    geometry, voxels = _open(path, plane, channels=channels)
    try:
        stored = voxels()
        array = np.stack([canonical(part, geometry) for part in stored]) if channels else canonical(stored[0], geometry)
    except (UnreadableError, OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    return array, geometry


def _read_array(image: ArrayImage, plane: Plane, *, channels: bool = False) -> tuple[Array, Geometry]:
    """Return the array that a reader gives, with a geometry whose axes run as the plane's do."""
    array = _loaded(image)
    array = array[None] if array.ndim == 2 else array
    if array.ndim == 3 and channels:
        array = array[None]
    if array.ndim != 3 + channels:
        sides = "[S, H, W], [H, W] or [C, S, H, W]" if channels else "[S, H, W] or [H, W]"
        raise DataError(f"{image.name}: its reader gives an array of shape {array.shape}; it must be {sides}.")
    slice_mm, row_mm, column_mm = map(float, image.spacing_mm)
    count, height, width = array.shape[-3:]
    flat = count == 1
    # The nearest axes at right angles: those of a short-axis plane are not quite.
    left, _, right = np.linalg.svd(np.stack(DIRECTIONS[plane][::-1], axis=1))
    cosines = np.eye(3) if flat else np.round(left @ right, 12)
    spacing, direction = (column_mm, row_mm, 1.0 if flat else slice_mm), tuple(cosines.ravel().tolist())
    geometry = Geometry((width, height, count), spacing, (0.0, 0.0, 0.0), direction, flat, plane)
    if geometry.fault:
        raise DataError(f"{image.name}: {geometry.fault}")
    if geometry.axes != ((2, False), (1, False), (0, False)):
        raise DataError(f"{image.name}: the distance of {plane} slices must not be smaller than that of their pixels.")
    return array, geometry


def _loaded(image: ArrayImage) -> Array:
    try:
        array = np.ascontiguousarray(image.load())
    except Exception as error:  # of a plug-in
        raise DataError(one_line(error, f"{image.name}: its reader can't load it")) from error
    if array.dtype.kind not in "buif" or not array.size:
        raise DataError(f"{image.name}: its reader gives {array.size} values of type {array.dtype}, not real numbers.")
    return array


def _open(path: Path, plane: Plane, *, channels: bool = False) -> tuple[Geometry, Callable[[], Array]]:
    """Return the geometry that a header states, and the function that reads the voxels in file order.

    The voxels come as [C, ...]; more than one channel is refused without `channels`.

    Every file passes here: its name, its size and its geometry are checked before memory is taken.
    """
    suffix = _suffix(path)
    require_file(path)
    try:
        if suffix in NIFTI:
            nifti = open_nifti(path, plane, channels=channels)
            geometry, voxels = nifti.geometry, nifti.voxels
        elif suffix == PNG:
            geometry, voxels = open_png(path, plane, channels=channels)
        else:
            reader = sitk.ImageFileReader()
            reader.SetImageIO(READERS[suffix])  # which would be chosen by the suffix, in small letters
            reader.SetFileName(itk_name(path))
            with path.open("rb"):  # the system's reason, if it can't be opened
                if suffix == ".mha":
                    require_sound_mha(path)
                quietly(reader.ReadImageInformation)
            require_real_volume(path, reader, channels=channels)
            geometry = _geometry(reader, plane)
            voxels = partial(_voxels, path, reader, geometry)
    except (UnreadableError, OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if geometry.fault:
        raise DataError(f"{path}: {geometry.fault}")
    return geometry, voxels


def _voxels(path: Path, reader: Any, geometry: Geometry) -> Array:
    """Check the file, and return its voxels [C, ...] in file order."""
    if _suffix(path) == ".mha":
        voxels = mha_voxels(path, reader)
    else:
        require_whole_nrrd(path, reader)
        voxels = sitk.GetArrayFromImage(quietly(reader.Execute))
    return np.moveaxis(voxels.reshape(*geometry.size[::-1], reader.GetNumberOfComponents()), -1, 0)


def _geometry(reader: Any, plane: Plane) -> Geometry:
    """Return the geometry that a header states."""
    size, spacing, origin, direction = (
        tuple(getattr(reader, f"Get{name}")()) for name in ("Size", "Spacing", "Origin", "Direction")
    )
    flat = len(size) == 2
    if flat:
        a, b, c, d = direction
        size, spacing, origin, direction = (*size, 1), (*spacing, 1.0), (*origin, 0.0), (a, b, 0, c, d, 0, 0, 0, 1)
    return Geometry(size, spacing, origin, direction, flat, plane)


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.strerror:  # of the system, not of gzip
        return DataError(f"{path} can't be read: {error.strerror}.")
    return DataError(
        f"{path} can't be read as a volume: {error}. It is truncated, damaged or of another format; copy it again."
    )


def _suffix(path: Path) -> str:
    """Return the suffix of a volume in small letters. Raises DataError for a name that can't be one of a volume."""
    itk_name(path)  # for all formats alike: such a name would also break sidecars and tables
    suffix = next((suffix for suffix in READABLE if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise DataError(f"{path}: {FORMATS}; convert it to one of these.")
    return suffix
