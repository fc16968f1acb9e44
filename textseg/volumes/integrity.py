"""Integrity of volume files: checks for damage that ITK does not report, before it reads the voxels."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from textseg.errors import DataError
from textseg.volumes.itk import UnreadableError, sitk

DEFLATE = 1032  # bytes that one byte of zlib or gzip can stand for
LONGEST_LINE = 1 << 16  # bytes of a line of a header


def require_scalar_volume(path: Path, reader: Any) -> None:
    """Raise DataError for a file that does not hold one real number for each voxel of a volume or a slice."""
    if reader.GetDimension() not in (2, 3):
        size = numbers(reader.GetSize())
        raise DataError(f"{path} has {reader.GetDimension()} dimensions ({size}), not 2 or 3; take it apart.")
    if reader.GetNumberOfComponents() != 1:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
        raise DataError(f"{path} has {kind} voxels (colour or complex); textseg needs one real number per voxel.")


def require_whole_mha(path: Path, reader: Any) -> None:
    """Raise for a damaged file, by its size and zlib's check sum: ITK would use the part that it could decompress."""
    header = {}
    expected = _byte_count(reader)
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE):
            key, _, value = line.partition(b"=")
            header[key.strip()] = value.strip().upper()
            if key.strip() == b"ElementDataFile":
                break
        if b"-" in header.get(b"ElementSpacing", b"").replace(b"E-", b""):  # ITK would read it without the sign
            raise UnreadableError(f"its spacing {header[b'ElementSpacing'].decode(errors='replace')} is negative")
        if header.get(b"BinaryData", b"TRUE") != b"TRUE":
            raise UnreadableError("its voxels are written as text")
        if header.get(b"CompressedData") == b"TRUE" and header.get(b"ElementDataFile") == b"LOCAL":
            stream = zlib.decompressobj(wbits=47)  # zlib or gzip, as ITK accepts
            actual = 0
            while actual <= expected and (block := file.read(1 << 16)):
                actual += len(stream.decompress(block))
            if actual > expected:
                raise UnreadableError(f"it goes on behind the {expected} bytes of voxels that its header states")
            if not stream.eof:
                raise UnreadableError("its compressed voxels end too early")
        elif header.get(b"ElementDataFile") == b"LOCAL":
            actual = path.stat().st_size - file.tell()
        else:
            raise DataError(f"{path} refers to voxels in another file; write header and voxels into one.")
    if actual < expected:
        raise UnreadableError(f"it holds {actual} of {expected} bytes of voxels")


def require_whole_nrrd(path: Path, reader: Any) -> None:
    """Raise for voxels in another file, and for more of them than the file can hold, before ITK takes memory."""
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE).strip():
            if line.lower().replace(b" ", b"").startswith(b"datafile:"):
                raise DataError(f"{path} refers to voxels in another file; write header and voxels into one.")
    require_room(path, _byte_count(reader))


def require_room(path: Path, expected: int) -> None:
    """Raise UnreadableError if a file is too small for its bytes of voxels, even where they are packed most tightly."""
    size = path.stat().st_size
    if expected > size * (1 if path.name.lower().endswith(".nii") else DEFLATE):
        raise UnreadableError(f"its header states {expected} bytes, which its {size} bytes can't hold")


def _byte_count(reader: Any) -> int:
    voxel: int = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    size: tuple[int, ...] = reader.GetSize()
    return voxel * math.prod(size)


def numbers(values: Iterable[float]) -> str:
    """Write numbers for a message, such as "640 x 512 x 15"."""
    return " x ".join(f"{value:.6g}" for value in values)
