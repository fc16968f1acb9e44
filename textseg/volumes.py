"""Volumes on disk and in memory.

In memory a volume is canonical, whatever the file's orientation: [S, H, W], slices from the patient's left to right,
rows from superior to inferior, columns from anterior to posterior. Which axis of the file runs from left to right is
read off its direction cosines; an oblique file keeps its grid and is turned by whole axes to the nearest anatomical
ones. A file of two dimensions doesn't say how it lies in the patient: it is one slice, its rows and columns as stored.

Read and written: MHA, NRRD, NIfTI, each one file with header and voxels together.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import sys
import tempfile
import threading
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from textseg.errors import DataError
from textseg.volume_integrity import (
    UnreadableError,
    numbers,
    require_scalar_volume,
    require_whole_mha,
    require_whole_nifti,
)

sitk: Any = importlib.import_module("SimpleITK")  # half of it has no types

Array = npt.NDArray[Any]

SUFFIXES = (".mha", ".nrrd", ".nii.gz", ".nii")

# World axis and sense in ITK's frame (x to the left, y to posterior, z to superior) of canonical slices, rows, columns.
_CANONICAL = ((0, -1), (2, -1), (1, 1))

_one_call = threading.Lock()


@dataclass(frozen=True)
class Geometry:
    """How a file places its voxels in the patient, as stored: three file axes, in ITK's order (fastest first).

    `spacing` and `origin` are in mm, in ITK's frame (x to the left, y to posterior, z to superior); `direction` is the
    3 x 3 matrix of cosines row by row, its columns the file axes. The third axis of a `flat` file is not written.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    flat: bool = False

    def differences(self, other: Geometry, tolerance: float = 1e-3) -> list[str]:
        """In words, what differs by more than `tolerance` (mm for spacing and origin, 1 for cosines)."""
        found = []
        if self.flat != other.flat:
            found.append(f"{2 if self.flat else 3} dimensions against {2 if other.flat else 3}")
        if self.size != other.size:
            found.append(f"size {numbers(self.size)} against {numbers(other.size)}")
        for name in ("spacing", "origin", "direction"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if not np.allclose(mine, theirs, rtol=0.0, atol=tolerance):
                unit = "" if name == "direction" else " mm"
                found.append(f"{name} {numbers(mine)}{unit} against {numbers(theirs)}{unit}")
        return found

    @property
    def axes(self) -> tuple[tuple[int, bool], ...]:
        """For slices, rows and columns: the file axis nearest to it, and whether it runs the other way."""
        if self.flat:
            return (2, False), (1, False), (0, False)
        cosines = np.reshape(self.direction, (3, 3))

        def closeness(order: tuple[int, ...]) -> float:
            # Rounded, so that files that differ by float noise choose alike where two axes are equally near
            total = sum(abs(cosines[world, axis]) for (world, _), axis in zip(_CANONICAL, order, strict=True))
            return round(float(total), 4)

        order = max(permutations(range(3)), key=closeness)
        return tuple(
            (axis, bool(cosines[world, axis] * sense < 0))
            for (world, sense), axis in zip(_CANONICAL, order, strict=True)
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """S, H, W of the canonical array."""
        slices, rows, columns = (self.size[axis] for axis, _ in self.axes)
        return slices, rows, columns

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Slice, row and column distance of the canonical array."""
        slices, rows, columns = (self.spacing[axis] for axis, _ in self.axes)
        return slices, rows, columns


@dataclass(frozen=True)
class Volume:
    """A canonical volume: `array` [S, H, W], `spacing_mm` (slice, row and column distance), geometry of its file."""

    array: Array = field(repr=False)
    spacing_mm: tuple[float, float, float]
    geometry: Geometry


def canonical(array: Array, geometry: Geometry) -> Array:
    """The canonical array [S, H, W] of `array`, which is in file order (slowest file axis first, as SimpleITK's)."""
    _require_shape(array, geometry.size[::-1])
    turned = np.transpose(array, [2 - axis for axis, _ in geometry.axes])
    return np.array(turned[_flips(geometry)], order="C")


def restore(array: Array, geometry: Geometry) -> Array:
    """The inverse of `canonical`: [S, H, W] -> file order (slowest file axis first)."""
    _require_shape(array, geometry.shape)
    order = [2 - axis for axis, _ in geometry.axes]
    return np.array(np.transpose(array[_flips(geometry)], np.argsort(order)), order="C")


def read_volume(path: Path | str) -> Volume:
    """Intensities, float32 [S, H, W].

    Raises DataError where the file is missing, unreadable, truncated, of another number of dimensions than 2 and 3, in
    colour or complex, or holds a value that is no finite number.
    """
    array, geometry = _read(Path(path))
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise DataError(
            f"{path}: {bad} of {array.size} intensities are NaN or infinite; repair or leave out this volume."
        )
    return Volume(array, geometry.spacing_mm, geometry)


def read_labels(path: Path | str) -> Volume:
    """Labels, integers [S, H, W] as the file has them (int64 where it stores whole numbers as floats).

    Raises DataError as `read_volume` does, and where a value is not a whole number.
    """
    array, geometry = _read(Path(path))
    if array.dtype.kind == "f":
        odd = array[~np.isfinite(array) | (array != np.rint(array)) | (np.abs(array) > 2**53)]
        if odd.size:
            raise DataError(
                f"{path}: {odd.size} of {array.size} values are no whole numbers, {odd[0]} among them; a mask must "
                f"hold one label per voxel. Was it resampled with interpolation, or is it an image?"
            )
        array = array.astype(np.int64)
    return Volume(array, geometry.spacing_mm, geometry)


def write_labels(array: Array, geometry: Geometry, path: Path | str) -> None:
    """Write canonical labels [S, H, W] with exactly `geometry`.

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
    if geometry.flat:
        image = image[:, :, 0]

    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _itk(lambda: sitk.WriteImage(image, str(temporary), useCompression=True))
        temporary.replace(path)
    except (OSError, UnreadableError) as error:
        raise DataError(f"{path} can't be written: {error}. Check the folder, its rights and free space.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's content, in hexadecimal. Raises DataError where it can't be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from error


def _read(path: Path) -> tuple[Array, Geometry]:
    """The canonical array in the file's own type, and its geometry."""
    _require_suffix(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist." if not path.exists() else f"{path} is not a file.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        _itk(reader.ReadImageInformation)
        require_scalar_volume(path, reader)
        if path.name.lower().endswith(".mha"):
            require_whole_mha(path, reader)
        elif path.name.lower().endswith((".nii", ".nii.gz")):
            require_whole_nifti(path, reader)
        image = _itk(reader.Execute)
    except (UnreadableError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} can't be read as a volume: {error}. It is truncated, damaged or of another format; copy it again."
        ) from error

    flat = image.GetDimension() == 2
    if flat:
        image = sitk.JoinSeries([image])
    geometry = Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(), flat)
    placement = (*geometry.spacing, *geometry.origin, *geometry.direction)
    if not all(map(math.isfinite, placement)) or min(geometry.spacing) <= 0:
        raise DataError(f"{path}: spacing {numbers(geometry.spacing)} mm or its origin or direction makes no sense.")
    return canonical(sitk.GetArrayViewFromImage(image), geometry), geometry


def _require_suffix(path: Path) -> None:
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: volumes are one of {', '.join(SUFFIXES)}; convert it to one of these.")


def _require_shape(array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"Array of shape {array.shape} where the geometry has {shape}.")


def _flips(geometry: Geometry) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if flipped else 1) for _, flipped in geometry.axes)


def _itk(call: Callable[[], Any]) -> Any:
    """What `call` gives; on failure nothing of what ITK's libraries print stands in the way of our one message.

    What other threads write to the process's standard error meanwhile comes out afterwards.
    """
    with _one_call, tempfile.TemporaryFile() as printed:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            result = call()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ").rstrip(".")
            if reason.startswith("Reason:"):  # the system's last error, which is about something else
                reason = "its header or its voxels are incomplete"
            raise UnreadableError(reason) from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        printed.seek(0)
        if text := printed.read():
            os.write(2, text)
    return result
