"""Volumes with random faults in header and voxels: each is read, or refused with a message for the user."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textseg.errors import TextsegError
from textseg.volumes.files import read_labels, read_volume

MOST_VOXELS = 10**6  # the originals have 120
SUFFIXES = (".mha", ".nii", ".nii.gz", ".nrrd")
LINES = ("NDims", "DimSize", "ElementType", "ElementSpacing", "TransformMatrix", "Offset", "CompressedDataSize")
VALUES = ("0", "-1", "1e300", "nan", "99999999999", "0 8 8", "4 4 4 4 4", "", "MET_NONE", "\x00", "1 1 1 1 1 1 1 1 1")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of one small volume in each format."""
    folder, image = (
        tmp_path_factory.mktemp("originals"),
        sitk.GetImageFromArray(np.arange(120, dtype=np.int16).reshape(4, 5, 6)),
    )
    for suffix in SUFFIXES:
        sitk.WriteImage(image, str(folder / f"volume{suffix}"))
    return {suffix: (folder / f"volume{suffix}").read_bytes() for suffix in SUFFIXES}


@st.composite
def faults(draw: st.DrawFn, content: bytes, suffix: str) -> bytes:
    """Draw a damaged copy: some bytes changed, the end missing, or a line of the header with another value."""
    kind = draw(st.sampled_from(["bytes", "header", "end", "line"]))
    damaged = bytearray(content)
    if kind == "end":
        return content[: draw(st.integers(0, len(content)))]
    if kind == "line" and suffix == ".mha":
        header, _, voxels = content.partition(b"ElementDataFile")
        lines = [line for line in header.split(b"\n") if line]
        key, value = draw(st.sampled_from(LINES)), draw(st.sampled_from(VALUES))
        kept = [line for line in lines if not line.startswith(key.encode())]
        return b"\n".join([*kept, f"{key} = {value}".encode(), b"ElementDataFile"]) + voxels
    last = min(len(damaged), 348 if kind == "header" else len(damaged)) - 1
    for _ in range(draw(st.integers(1, 8))):
        damaged[draw(st.integers(0, last))] = draw(st.integers(0, 255))
    return bytes(damaged)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("attempts", [40, pytest.param(1000, marks=pytest.mark.nightly)])
def test_damaged_volumes(tmp_path: Path, originals: dict[str, bytes], suffix: str, attempts: int) -> None:
    path = tmp_path / f"volume{suffix}"
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

    @settings(max_examples=attempts, derandomize=True, deadline=None, suppress_health_check=checks, database=None)
    @given(faults(originals[suffix], suffix))
    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        for read in (read_volume, read_labels):
            with contextlib.suppress(TextsegError):  # any other exception would reach the user as a traceback
                volume = read(path)
                assert volume.array.ndim == 3
                assert volume.array.size <= MOST_VOXELS

    attempt()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
