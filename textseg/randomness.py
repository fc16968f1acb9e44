"""Chance has a key: the numbers from which every draw is made."""

from __future__ import annotations

import zlib


def slice_key(case_id: str, slice_index: int) -> int:
    """The number of a slice from which its draws are made: the same in every process and every order."""
    return zlib.crc32(f"{case_id}/{slice_index}".encode())


def case_key(case_id: str) -> int:
    """The same for a case that is distorted as a whole."""
    return zlib.crc32(case_id.encode())
