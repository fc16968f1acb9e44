"""Integrity of volume files: checks for damage that ITK does not report, before it reads the voxels."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from textseg.errors import DataError
from textseg.volumes.itk import UnreadableError, sitk

NIFTI_FLOATS = {"16": "f4", "64": "f8"}  # by the code of the datatype


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
    expected = math.prod(reader.GetSize()) * sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    with path.open("rb") as file:
        for line in file:
            key, _, value = line.partition(b"=")
            header[key.strip()] = value.strip().upper()
            if key.strip() == b"ElementDataFile":
                break
        if b"-" in header.get(b"ElementSpacing", b"").replace(b"E-", b""):  # ITK would read it without the sign
            raise UnreadableError(f"its spacing {header[b'ElementSpacing'].decode(errors='replace')} is negative")
        if header.get(b"CompressedData") == b"TRUE" and header.get(b"ElementDataFile") == b"LOCAL":
            stream = zlib.decompressobj(wbits=47)  # zlib or gzip, as ITK accepts
            actual = 0
            while block := file.read(1 << 16):
                actual += len(stream.decompress(block))
            if not stream.eof:
                raise UnreadableError("its compressed voxels end too early")
        elif header.get(b"ElementDataFile") == b"LOCAL":
            actual = path.stat().st_size - file.tell()
        else:
            raise DataError(f"{path} refers to voxels in another file; write header and voxels into one.")
    if actual < expected:
        raise UnreadableError(f"it holds {actual} of {expected} bytes of voxels")


def require_whole_nifti(path: Path, reader: Any) -> None:
    """Raise for what ITK passes over: a truncated file (it gives zeros), NaN (zeros too), x.nii beside x.nii.gz."""
    header = {key: float(reader.GetMetaData(key)) for key in ("vox_offset", "bitpix")}
    offset, voxel_count = int(header["vox_offset"]), math.prod(reader.GetSize())
    expected = offset + voxel_count * int(header["bitpix"]) // 8
    packed = path.name.lower().endswith(".gz")
    if packed and (twin := path.with_suffix("")).exists():
        raise DataError(f"{path}: {twin.name} lies beside it, and ITK would mix the two; move one of them away.")
    float_type, content = NIFTI_FLOATS.get(reader.GetMetaData("datatype")), b""
    with gzip.open(path) if packed else path.open("rb") as file:
        # Decompressing to the end checks gzip's own sum. Only floats are kept, to look for NaN in them.
        if float_type:
            content = file.read()
            actual = len(content)
        else:
            actual = sum(map(len, iter(lambda: file.read(1 << 20), b""))) if packed else path.stat().st_size
    if actual < expected:
        raise UnreadableError(f"it has {actual} of {expected} bytes")
    if float_type:
        order = "<" if content[:4] == (348).to_bytes(4, "little") else ">"
        voxels = np.frombuffer(content, order + float_type, count=voxel_count, offset=offset)
        if bad := int(voxels.size - np.count_nonzero(np.isfinite(voxels))):
            raise DataError(
                f"{path}: {bad} of {voxels.size} values are NaN or infinite; repair or leave out this volume."
            )


def numbers(values: tuple[float, ...]) -> str:
    """Write numbers for a message, such as "640 x 512 x 15"."""
    return " x ".join(f"{value:.6g}" for value in values)
