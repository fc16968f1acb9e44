"""Integrity of volume files: checks for damage that ITK does not report, before it reads the voxels."""

from __future__ import annotations

import math
import os
import struct
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from textseg.errors import DataError
from textseg.volumes.itk import UnreadableError, sitk

DEFLATE = 1032  # bytes that one byte of zlib or gzip can stand for
# Keys of an MHA header that have one number, one for each dimension, and one for each pair of dimensions
MHA_NUMBERS = (
    {b"ElementNumberOfChannels"},
    {b"DimSize", b"ElementSpacing", b"ElementSize", b"Offset", b"Position", b"Origin", b"CenterOfRotation"},
    {b"TransformMatrix", b"Rotation", b"Orientation"},
)
TRUE = (b"T", b"1")  # how MetaIO's true begins, in capitals
# Of DICOM: groups of the file's own header and of items in sequences, the pixels, types with a length of 32 bits
META, ITEM, PIXELS, UNDEFINED = 0x0002, 0xFFFE, (0x7FE0, 0x0010), 0xFFFFFFFF
META_KINDS = (b"AE", b"OB", b"SH", b"UI", b"UL", b"UR")  # of the elements of the file's own header
SYNTAX, IMPLICIT = (0x0002, 0x0010), b"1.2.840.10008.1.2"  # the transfer syntax; the one without types in the file
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
LONGEST_LINE = 1 << 16  # bytes of a line of a header


def require_real_volume(path: Path, reader: Any, *, channels: bool) -> None:
    """Raise DataError for a file that does not hold a volume or a slice of real numbers.

    Each voxel holds one number or, with `channels`, one for each channel.
    """
    if reader.GetDimension() not in (2, 3):
        size = numbers(reader.GetSize())
        raise DataError(f"{path} has {reader.GetDimension()} dimensions ({size}), not 2 or 3; take it apart.")
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    if "complex" in kind or (reader.GetNumberOfComponents() != 1 and not channels):
        raise DataError(f"{path} has {kind} voxels (colour or complex); textseg needs one real number per voxel.")


def require_sound_mha(path: Path) -> None:
    """Raise UnreadableError for a header with missing or strange numbers: some of them end the process within ITK."""
    with path.open("rb") as file:
        header = _mha_header(file)
    if (ndim := header.get(b"NDims", b"")) not in (b"1", b"2", b"3", b"4", b"5"):
        raise UnreadableError("its header is incomplete or contradicts itself: NDims is missing or strange")
    for power, keys in enumerate(MHA_NUMBERS):
        for key in keys & header.keys():
            try:
                values = [float(value) for value in header[key].split()]
            except ValueError:
                values = []
            if len(values) != int(ndim) ** power or (power == 0 and not 1 <= values[0] <= 1000):
                raise UnreadableError(f"its header is incomplete or contradicts itself: {key.decode()} is strange")


def mha_voxels(path: Path, reader: Any) -> npt.NDArray[Any]:
    """Read the voxels of an MHA file, one after the other, whose header `reader` knows.

    Not by ITK: of a damaged file, or one that states no size of its compressed voxels or a wrong one, it gives the part
    that it could decompress, and then whatever lies in memory. Raises UnreadableError for a damaged file, DataError for
    voxels in another one.
    """
    voxels = np.empty(math.prod(reader.GetSize()) * reader.GetNumberOfComponents(), _type(reader))
    room, filled = voxels.data.cast("B"), 0
    with path.open("rb") as file:
        header = _mha_header(file)
        if b"-" in header.get(b"ElementSpacing", b"").replace(b"E-", b""):  # ITK would read it without the sign
            raise UnreadableError(f"its spacing {header[b'ElementSpacing'].decode(errors='replace')} is negative")
        if header.get(b"ElementDataFile") != b"LOCAL" or header.get(b"HeaderSize", b"0") != b"0":
            raise DataError(f"{path} refers to voxels in another file; write header and voxels into one.")
        if not header.get(b"BinaryData", b"TRUE").startswith(TRUE):
            raise UnreadableError("its voxels are written as text")
        if header.get(b"CompressedData", b"").startswith(TRUE):
            stream = zlib.decompressobj(wbits=47)  # zlib or gzip, as ITK accepts
            while not stream.eof and (block := file.read(1 << 16)):
                part = stream.decompress(block)
                if filled + len(part) > len(room):
                    raise UnreadableError(f"it goes on behind the {len(room)} bytes of voxels that its header states")
                room[filled : filled + len(part)] = part
                filled += len(part)
            if not stream.eof:
                raise UnreadableError("its compressed voxels end too early")
        else:
            filled = file.readinto(room)
    if filled < len(room):
        raise UnreadableError(f"it holds {filled} of {len(room)} bytes of voxels")
    order = {key: header.get(key, b"") for key in (b"BinaryDataByteOrderMSB", b"ElementByteOrderMSB")}
    big = any(value.startswith(TRUE) for value in order.values())
    return voxels.byteswap() if big != (sys.byteorder == "big") else voxels


def require_whole_nrrd(path: Path, reader: Any) -> None:
    """Raise for voxels in another file, and for more of them than the file can hold, before ITK takes memory."""
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE).strip():
            if line.lower().replace(b" ", b"").startswith(b"datafile:"):
                raise DataError(f"{path} refers to voxels in another file; write header and voxels into one.")
    require_room(path, math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * _type(reader).itemsize)


def require_whole_dicom(path: Path) -> None:
    """Raise UnreadableError where an element states more bytes than the file has: GDCM would take that memory first.

    Elements are read one after the other, those of sequences too; what can't be walked through is left to GDCM.
    """
    size, syntax, explicit, fragments, first = path.stat().st_size, b"", True, False, True
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            file.seek(0)
        while len(start := file.read(8)) == 8:
            group, element, length = struct.unpack("<HHI", start)
            kind = start[4:6]
            if group == ITEM:
                kind = b"" if fragments else b"SQ"
            elif group == META and kind not in META_KINDS:
                raise UnreadableError("its header is damaged")
            elif group != META and first:
                explicit, first = kind.isalpha() and kind.isupper() and syntax != IMPLICIT, False
            if group != ITEM and (explicit or group == META):
                length = struct.unpack("<I", file.read(4).ljust(4))[0] if kind in LONG else length >> 16
            if length == UNDEFINED:
                if kind == b"UN":
                    return
                fragments = fragments or (group, element) == PIXELS
            elif length > size - file.tell():
                raise UnreadableError(f"an element of its header states {length} bytes, and {size} are in the file")
            elif (group, element) == SYNTAX:
                syntax = file.read(length).rstrip(b"\0 ")
            elif kind != b"SQ":
                file.seek(length, os.SEEK_CUR)


def require_room(path: Path, expected: int) -> None:
    """Raise UnreadableError if a file is too small for its bytes of voxels, even where they are packed most tightly."""
    size = path.stat().st_size
    if expected > size * (1 if path.name.lower().endswith(".nii") else DEFLATE):
        raise UnreadableError(f"its header states {expected} bytes, which its {size} bytes can't hold")


def _mha_header(file: IO[bytes]) -> dict[bytes, bytes]:
    """Read the header of an MHA file; voxels in the same file begin where it ends."""
    header: dict[bytes, bytes] = {}
    while b"ElementDataFile" not in header and (line := file.readline(LONGEST_LINE)):
        key, _, value = line.partition(b"=")
        header[key.strip()] = value.strip().upper()
    return header


def _type(reader: Any) -> np.dtype[Any]:
    kind: np.dtype[Any] = sitk.GetArrayFromImage(sitk.Image([1, 1], reader.GetPixelID())).dtype
    return kind


def numbers(values: Iterable[float]) -> str:
    """Write numbers for a message, such as "640 x 512 x 15"."""
    return " x ".join(f"{value:.6g}" for value in values)
