"""Listing and cleaning the cache folder; files that textseg did not write are never touched."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from textseg.system.files import is_leftover

Kind = Literal["slices", "text", "leftover"]

CASE_FILES = ("case.json", "image.npy", "mask.npy")
ABANDONED_SECONDS = 3600  # an entry that lacks files and has not changed for so long belongs to a killed process
_NAMES: Mapping[Literal["slices", "text"], str] = {"slices": r"[0-9a-f]{32}", "text": r"[0-9a-f]+\.safetensors"}


@dataclass(frozen=True)
class CacheEntry:
    """The prepared slices of one case, the features of one text, or the rest of a killed process."""

    kind: Kind
    path: Path
    bytes: int
    used: float  # when last, in seconds since 1970


def cache_entries(cache: Path) -> list[CacheEntry]:
    """List everything in the cache that textseg wrote, without entries that are being written now."""
    paths = [(kind, path) for kind in _NAMES for path in sorted((cache / kind).glob("[0-9a-f][0-9a-f]/*"))]
    return [entry for kind, path in paths if (entry := _entry(kind, path))]


def clean_cache(cache: Path, *, older_than_days: float | None = None, leftovers_only: bool = False) -> list[CacheEntry]:
    """Remove all entries, those not used for some days, or only leftovers of killed processes; return what was removed.

    A run that needs a removed entry makes it again.
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


def _entry(kind: Literal["slices", "text"], path: Path) -> CacheEntry | None:
    """Return the entry at a path; None for a file of somebody else, and for one that is being written."""
    parts = [path / name for name in CASE_FILES] if kind == "slices" else []
    present = [part for part in parts if part.is_file()]
    used = max(file.stat().st_mtime for file in (path, *present))
    named = re.fullmatch(_NAMES[kind], path.name)
    whole = named and present == parts
    if not whole and not is_leftover(path) and not (named and time.time() - used > ABANDONED_SECONDS):
        return None
    size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    return CacheEntry(kind if whole else "leftover", path, size, used)
