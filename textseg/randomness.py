"""Chance has a key: the numbers from which every draw is made."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textseg.contracts import Batch


def slice_keys(batch: Batch) -> list[int]:
    """Those of the slices of a batch that still lies in main memory."""
    return [slice_key(*place) for place in zip(batch.case, batch.slice_index.tolist(), strict=True)]


def slice_key(case_id: str, slice_index: int) -> int:
    """The number of a slice from which its draws are made: the same in every process and every order."""
    return zlib.crc32(f"{case_id}/{slice_index}".encode())


def case_key(case_id: str) -> int:
    """The same for a case that is distorted as a whole."""
    return zlib.crc32(case_id.encode())
