"""Atomic writing of files, and the location of the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The only portable way to read the mask is to set it; done once, at import, because threads share it.
_UMASK = os.umask(0)
os.umask(_UMASK)
_UNFINISHED = re.compile(r"\.(.+\.[a-z0-9_]{8}(\.\w+)?|[0-9a-f]{32}\..+)")  # names of `replacing` and of volumes


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`. It replaces `path` when the block ends, and vanishes when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read, and a cache or a run is shared.
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all."""
    with replacing(path) as temporary:
        # Names of files stay as they are on disk, also where the locale has only ASCII.
        temporary.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder that is renamed to `path` when the block ends; a failed block leaves nothing."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the files that a killed process was writing there; only where no other process writes."""
    for path in folder.glob(".*"):
        if _UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def content_hash(content: Any) -> str:
    """Return a short hash of plain values that is the same on every machine."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Return the folder of prepared slices and text features: TEXTSEG_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("TEXTSEG_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("textseg")
