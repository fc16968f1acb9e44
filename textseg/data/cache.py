"""Listing and cleaning the cache folder; files that textseg did not write are never touched."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["slices", "text", "leftover"]

CASE_FILES = ("case.json", "image.npy", "mask.npy")
ABANDONED_SECONDS = 3600  # an unfinished entry that nobody has written to for so long is a killed process's
_SLICES = re.compile(r"[0-9a-f]{32}")
_UNFINISHED_SLICES = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{32}")
_TEXT = re.compile(r"[0-9a-f]+\.safetensors")
_UNFINISHED_TEXT = re.compile(r"\.[0-9a-f]+\.safetensors\..*")
_SHELF = re.compile(r"[0-9a-f]{2}")


@dataclass(frozen=True)
class CacheEntry:
    """The prepared slices of one case, the features of one text, or the rest of a killed process."""

    kind: Kind
    path: Path
    bytes: int
    used: float  # when last, in seconds since 1970


def cache_entries(cache: Path) -> list[CacheEntry]:
    """List everything in the cache that textseg wrote, without entries that are being written now."""
    return [*_slices(cache / "slices"), *_text(cache / "text")]


def clean_cache(
    cache: Path, *, older_than_days: float | None = None, leftovers_only: bool = False
) -> Sequence[CacheEntry]:
    """Remove all entries, those not used for some days, or only leftovers of killed processes; return what was removed.

    A run that needs an entry makes it anew.
    """
    limit = time.time() - older_than_days * 86400 if older_than_days is not None else float("inf")
    removed = []
    for entry in cache_entries(cache):
        if (leftovers_only and entry.kind != "leftover") or entry.used > limit:
            continue
        if entry.path.is_dir():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            entry.path.unlink(missing_ok=True)
        removed.append(entry)
    return removed


def _shelves(folder: Path) -> Iterator[Path]:
    for shelf in sorted(folder.iterdir()) if folder.is_dir() else ():
        if shelf.is_dir() and _SHELF.fullmatch(shelf.name):
            yield from sorted(shelf.iterdir())


def _slices(folder: Path) -> Iterator[CacheEntry]:
    for path in _shelves(folder):
        files = [path / name for name in CASE_FILES if (path / name).is_file()]
        used = max([path.stat().st_mtime, *(file.stat().st_mtime for file in files)])
        whole = len(files) == len(CASE_FILES)
        if _SLICES.fullmatch(path.name) and whole:
            yield CacheEntry("slices", path, _size(path), used)
        elif (_SLICES.fullmatch(path.name) or _UNFINISHED_SLICES.fullmatch(path.name)) and _abandoned(used):
            yield CacheEntry("leftover", path, _size(path), used)


def _text(folder: Path) -> Iterator[CacheEntry]:
    for path in _shelves(folder):
        used = path.stat().st_mtime
        if _TEXT.fullmatch(path.name):
            yield CacheEntry("text", path, path.stat().st_size, used)
        elif _UNFINISHED_TEXT.fullmatch(path.name) and _abandoned(used):
            yield CacheEntry("leftover", path, path.stat().st_size, used)


def _abandoned(used: float) -> bool:
    return time.time() - used > ABANDONED_SECONDS


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
