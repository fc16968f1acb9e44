"""NIfTI files, version 1 and 2: header, voxels, and both transforms from voxels to millimetres, which ITK merges.

The format: https://nifti.nimh.nih.gov/nifti-1 and /nifti-2. No more is decompressed than the header states.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from scipy.spatial.transform import Rotation

from textseg.contracts import Plane
from textseg.errors import DataError
from textseg.volumes.geometry import SKEWED, Array, Geometry, skewed
from textseg.volumes.integrity import numbers, require_room
from textseg.volumes.itk import UnreadableError

SUFFIXES = (".nii", ".nii.gz")
VOXELS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
NOT_REAL = (32, 128, 1792, 2048, 2304)  # complex and colour
UNITS, MILLIMETRES = {1: 1000.0, 3: 0.001}, 2  # metres and micrometres in mm; without a code, lengths are in mm
HEADER_BYTES = 1 << 20  # of a header with its extensions, at most: more than any table of names needs
SLACK = 1 << 20  # bytes that may follow the voxels where they are packed
SCANNER = 1  # the code of a transform to the coordinates of the scanner
TO_LPS = np.diag((-1.0, -1.0, 1.0))  # from RAS, in which NIfTI has all coordinates, to ITK's frame
PLACEMENT = ("pixdim", "xyzt_units", "qform_code", "sform_code", "quaternion", "offset", "sform")
# Fields of the header: the name, the type and the byte that it begins at
_FIELDS = {
    348: {
        "size": ("i4", 0),
        "dim": ("8i2", 40),
        "datatype": ("i2", 70),
        "bitpix": ("i2", 72),
        "pixdim": ("8f4", 76),
        "vox_offset": ("f4", 108),
        "slope": ("f4", 112),
        "intercept": ("f4", 116),
        "xyzt_units": ("u1", 123),
        "qform_code": ("i2", 252),
        "sform_code": ("i2", 254),
        "quaternion": ("3f4", 256),
        "offset": ("3f4", 268),
        "sform": ("(3,4)f4", 280),
        "magic": ("S4", 344),
    },
    540: {
        "size": ("i4", 0),
        "magic": ("S8", 4),
        "datatype": ("i2", 12),
        "bitpix": ("i2", 14),
        "dim": ("8i8", 16),
        "pixdim": ("8f8", 104),
        "vox_offset": ("i8", 168),
        "slope": ("f8", 176),
        "intercept": ("f8", 184),
        "qform_code": ("i4", 344),
        "sform_code": ("i4", 348),
        "quaternion": ("3f8", 352),
        "offset": ("3f8", 376),
        "sform": ("(3,4)f8", 400),
        "xyzt_units": ("i4", 500),
    },
}
_MAGIC = {348: b"n+1", 540: b"n+2\0\r\n\x1a\n"}


@dataclass(frozen=True)
class NiftiFile:
    """The header of a file, and the geometry that it states."""

    path: Path
    geometry: Geometry
    offset: int  # of the voxels
    stored: np.dtype[Any]
    slope: float
    intercept: float
    channels: int = 1

    def voxels(self) -> Array:
        """Return the voxels [C, ...] in file order (slowest axis first), scaled as the header says.

        Raises UnreadableError or OSError for a file that is truncated, damaged, or longer than its header states.
        """
        array = np.empty((self.channels, *self.geometry.size[::-1]), self.stored)
        with _opened(self.path) as file:
            file.seek(self.offset)
            rest = array.data.cast("B")
            expected = len(rest)
            while rest and (count := cast("Any", file).readinto(rest)):
                rest = rest[count:]
            if rest:
                raise UnreadableError(f"it holds {expected - len(rest)} of {expected} bytes of voxels")
            # The check sum of gzip stands at the end.
            if self.path.name.lower().endswith(".gz") and len(file.read(SLACK + 1)) > SLACK:
                raise UnreadableError(f"it goes on behind the {expected} bytes of voxels that its header states")
        array = array.astype(self.stored.newbyteorder("="), copy=False)
        if self.slope == 0 or (self.slope, self.intercept) == (1, 0):
            return array
        scaled = array.astype(np.float64 if self.stored.itemsize == 8 and self.stored.kind == "f" else np.float32)
        with np.errstate(over="ignore"):
            for plane in scaled.reshape(-1, *scaled.shape[-2:]):
                plane[...] = plane.astype(np.float64) * self.slope + self.intercept
        return scaled


def open_nifti(path: Path, plane: Plane, *, channels: bool = False) -> NiftiFile:
    """Read the header of a file; with `channels`, the fourth or fifth axis of an image may hold its channels.

    Where it has two transforms, the one to the coordinates of the scanner counts (code 1), the sform before the qform,
    and else the qform, as in ITK; without any, the axes run to left, posterior and superior. Raises UnreadableError or
    OSError for a damaged file, and DataError for one that holds no volume of real numbers.
    """
    with _opened(path) as file:
        content = file.read(540)
    header = _parsed(content)
    ndim = int(header["dim"][0])
    if not 1 <= ndim <= 7 or min(sizes := header["dim"][1 : ndim + 1].tolist()) < 1:
        raise UnreadableError(f"its size {numbers(header['dim'][1:])} makes no sense")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    channel_axes = [size for size in sizes[3:] if size > 1] if channels else []
    if len(channel_axes) == 1:  # along the fourth axis, or the fifth in a file of vectors
        sizes = sizes[:3]
    if len(sizes) not in (2, 3):
        raise DataError(f"{path} has {len(sizes)} dimensions ({numbers(sizes)}), not 2 or 3; take it apart.")
    code = int(header["datatype"])
    if code in NOT_REAL:
        raise DataError(f"{path} has voxels in colour or complex ones; textseg needs one real number per voxel.")
    if code not in VOXELS:
        raise UnreadableError(f"its voxels have the type {code}, which is none of {', '.join(map(str, VOXELS))}")
    start, slope, intercept = (float(header[name]) for name in ("vox_offset", "slope", "intercept"))
    if not int(header["size"]) <= start < 2**40:
        raise UnreadableError(f"its voxels begin at byte {start:g}")
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        slope, intercept = (slope, 0.0) if math.isfinite(slope) else (0.0, 0.0)
    stored = np.dtype(VOXELS[code]).newbyteorder(header.dtype["datatype"].byteorder)
    count = math.prod(channel_axes)
    require_room(path, int(start) + math.prod(sizes) * count * stored.itemsize)
    geometry = _geometry(path, header, sizes, plane)
    return NiftiFile(path, geometry, int(start), stored, slope, intercept, count)


def write_nifti(array: Array, geometry: Geometry, path: Path, *, extension: bytes = b"") -> None:
    """Write integers in file order (slowest axis first), compressed where the name ends with ".gz".

    The transforms, codes and units are those of the file that `geometry` was read from, in its version; of another
    format, both transforms say the same and have the code of scanner coordinates. `extension` follows the header.
    """
    placement = geometry.nifti or _placement(geometry)
    wide = placement["pixdim"].dtype.itemsize == 8 or max(geometry.size) > np.iinfo(np.int16).max
    header = np.zeros((), _layout(540 if wide else 348, "<"))
    sizes = geometry.size[:2] if geometry.flat else geometry.size
    header["size"] = header.itemsize
    header["dim"] = 1
    header["dim"][0], header["dim"][1 : len(sizes) + 1] = len(sizes), sizes
    header["datatype"] = next(code for code, kind in VOXELS.items() if kind == array.dtype.str[1:])
    header["bitpix"] = 8 * array.itemsize
    header["vox_offset"] = header.itemsize + 4 + len(extension)
    header["slope"] = 1
    header["magic"] = _MAGIC[header.itemsize]
    for name in PLACEMENT:
        header[name] = placement[name]
    content = (header.tobytes(), bytes((bool(extension), 0, 0, 0)), extension)
    with path.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                packed.writelines((*content, array.data))
        else:
            file.writelines((*content, array.data))


def nifti_extensions(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield code and content of each extension behind a header. Raises UnreadableError or OSError."""
    with _opened(path) as file:
        content = file.read(HEADER_BYTES)
    header = _parsed(content[:540])
    order, start = header.dtype["datatype"].byteorder, header.itemsize + 4
    extended = content[header.itemsize : start].strip(b"\0")
    while extended and start + 8 <= min(float(header["vox_offset"]), len(content)):
        size, code = struct.unpack_from(f"{order}ii", content, start)
        yield code, content[start + 8 : start + size]
        start += max(size, 16)


def _opened(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb"))


def _layout(size: int, order: Literal["<", ">"]) -> np.dtype[Any]:
    """Return the header as a type of NumPy; `order` is "<" or ">"."""
    names, fields = zip(*_FIELDS[size].items(), strict=True)
    formats, offsets = zip(*fields, strict=True)
    layout = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})
    return layout.newbyteorder(order)


def _parsed(content: bytes) -> Any:
    for size in _FIELDS:
        for layout in (_layout(size, "<"), _layout(size, ">")):
            if len(content) >= size and int(np.frombuffer(content[:4], layout["size"])[0]) == size:
                header = np.frombuffer(content, layout, count=1)[0]
                if header["magic"] == _MAGIC[size].rstrip(b"\0"):
                    return header
                raise UnreadableError("its header is that of an Analyze file, or of voxels in another file")
    raise UnreadableError("it does not begin with the header of a NIfTI file")


def _geometry(path: Path, header: Any, sizes: list[int], plane: Plane) -> Geometry:
    flat = len(sizes) == 2
    size = np.array((*sizes, 1)[:3])
    spacing = header["pixdim"][1:4].astype(np.float64)
    spacing[(size == 1) & (spacing == 0)] = 1  # an axis of one voxel needs no distance
    if flat:
        spacing[2] = 1
    axes, offset = _transform(path, header, spacing, flat)
    axes, offset = TO_LPS @ axes, TO_LPS @ offset
    if flat:  # its rows and columns as stored: the plane that they have in the patient stays in the transforms
        axes[2], axes[:, 2], axes[2, 2], offset[2] = 0, 0, 1, 0
        axes = np.eye(3) if skewed(axes) else axes
    unit = UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    return Geometry(
        size=tuple(size.tolist()),
        spacing=tuple((spacing * (unit, unit, 1 if flat else unit)).tolist()),
        origin=tuple((offset * unit).tolist()),
        direction=tuple(axes.ravel().tolist()),
        flat=flat,
        plane=plane,
        nifti={name: np.array(header[name], header[name].dtype.newbyteorder("=")) for name in PLACEMENT},
    )


@np.errstate(all="ignore")  # what is no finite number is refused below
def _transform(path: Path, header: Any, spacing: Array, flat: bool) -> tuple[Array, Array]:
    """Return the cosines of the axes, [3, 3], and the offset of the transform that counts, in RAS."""
    b, c, d = quaternion = header["quaternion"].astype(np.float64)
    rotation = np.full((3, 3), np.nan)
    if np.isfinite(quaternion).all():
        rotation = Rotation.from_quat((b, c, d, max(0.0, 1 - b * b - c * c - d * d) ** 0.5)).as_matrix()
    rotation[:, 2] *= -1 if header["pixdim"][0] < 0 else 1
    qform, sform = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    transforms = {
        "sform": (header["sform"][:, :3].astype(np.float64), header["sform"][:, 3].astype(np.float64), sform),
        "qform": (rotation * spacing, header["offset"].astype(np.float64), qform),
    }
    names = [name for name, (_, _, given) in transforms.items() if given]
    if len(names) == 2 and int(header["sform_code"]) != SCANNER:
        names.reverse()
    reasons = []
    for name in names:
        steps, offset, _ = transforms[name]
        if flat:  # a third axis may be missing, and isn't read
            normal = np.cross(steps[:, 0], steps[:, 1])
            steps[:, 2] = normal / (np.linalg.norm(normal) or 1)
        lengths = np.linalg.norm(steps, axis=0)
        if not np.isfinite((*lengths, *offset)).all() or not lengths.all():
            reasons.append(f"its {name} is singular, or holds a value that is no finite number")
        elif skewed(axes := steps / lengths):
            reasons.append(f"its {name} {SKEWED}")
        elif not np.allclose(lengths, spacing, rtol=1e-3, atol=1e-3):
            reasons.append(f"its {name} says spacing {numbers(lengths)}, and its pixdim {numbers(spacing)}")
        else:
            return axes, offset
    if reasons:
        raise DataError(f"{path}: {reasons[0]}. Correct its header, or resample it with the tool that it came from.")
    return TO_LPS, np.zeros(3)


def _placement(geometry: Geometry) -> Mapping[str, Array]:
    """Return the fields that place a volume which was not read from NIfTI."""
    axes = TO_LPS @ np.reshape(geometry.direction, (3, 3))
    offset = TO_LPS @ geometry.origin
    side = -1 if np.linalg.det(axes) < 0 else 1
    values = {
        "pixdim": (side, *geometry.spacing, 0, 0, 0, 0),
        "xyzt_units": MILLIMETRES,
        "qform_code": SCANNER,
        "sform_code": SCANNER,
        "quaternion": Rotation.from_matrix(axes * (1, 1, side)).as_quat(canonical=True)[:3],
        "offset": offset,
        "sform": np.column_stack((axes * geometry.spacing, offset)),
    }
    return {name: np.asarray(value, np.float32) for name, value in values.items()}
