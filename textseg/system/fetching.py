"""Verified downloads: a file under its final name is complete, and an interrupted download can continue."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from textseg.errors import DataError
from textseg.system.files import file_name, inside, is_owned, open_owned, temporary_folder

if TYPE_CHECKING:
    from requests import Response

Progress = Callable[[str, int, int | None], None]  # name of the file, bytes done, bytes in total
Renaming = Callable[[PurePosixPath], str | None]  # the path below a folder for a member of an archive

ATTEMPTS = 6  # in a row, without one more byte
PAUSE_SECONDS = 1.0  # before the second attempt; doubled before each further one
TIMEOUT_SECONDS = (15, 60)  # to connect, between two pieces
PIECE = 1 << 20
PLAUSIBLE_SIZE, PLAUSIBLE_RATIO = 1 << 28, 200  # bytes of an unpacked archive, and how often its own size that may be
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses after which it is worth trying again


@dataclass(frozen=True)
class RemoteFile:
    """A published file with its address, size and checksum."""

    name: str
    url: str
    md5: str
    bytes: int | None = None


class _BrokenOffError(Exception):
    """The transfer broke off; what has arrived is kept."""


def fetch_file(remote: RemoteFile, folder: Path, *, progress: Progress = lambda name, done, total: None) -> Path:
    """Return the path of the file in `folder`; download it if it is not there.

    Received bytes are kept in `.<name>.part` until the file is complete. A download that was killed continues from
    there if the server supports it, and otherwise starts again. Raises DataError if the server does not send the file,
    if the file is a different one, or if the disk is full.
    """
    from filelock import FileLock, Timeout

    target, part = folder / file_name(remote.name), folder / f".{file_name(remote.name, '.part')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(part.with_suffix(".lock"), timeout=0):
            if target.exists():
                _require_known(target, remote)
                return target
            _require_room(f"'{remote.name}'", (remote.bytes or 0) - _size(part), folder)
            resumed = _download(remote, part, progress)
            if resumed and _md5(part) != remote.md5:  # the file changed between two tries, or its beginning was damaged
                part.unlink()
                _download(remote, part, progress)
            _require_known(part, remote)
            part.replace(target)
    except Timeout:
        raise DataError(f"'{target}' is being fetched by another process. Wait for it.") from None
    except OSError as error:
        raise DataError(
            f"'{target}' can't be written: {error.strerror or error}. Make room or choose another folder; what has "
            "arrived is kept, and the same command continues from there."
        ) from error
    return target


def unpack_zip(path: Path, folder: Path, *, renamed: Renaming = str) -> list[Path]:
    """Unpack an archive into `folder`, or nothing if it is damaged or unsafe; returns the files.

    `renamed` gives the path of a member below `folder`, or None to leave it out. Files that are there already must have
    the same content. Raises DataError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path, renamed)
            targets = [inside(folder, name) for name in members.values()]
            folder.mkdir(parents=True, exist_ok=True)
            _require_size(sum(info.file_size for info in members), path, folder)
            with temporary_folder(folder) as temporary:
                for info, name in members.items():
                    unpacked = temporary / name
                    unpacked.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(info) as source, unpacked.open("xb") as file:
                        shutil.copyfileobj(source, file, PIECE)  # zipfile gives no byte more than is declared
                        file.flush()
                        os.fsync(file.fileno())
                for name, target in zip(members.values(), targets, strict=True):
                    if target.exists() and _md5(target) != _md5(temporary / name):
                        raise DataError(f"'{target}' is not the file that '{path}' holds. Move it away first.")
                for name, target in zip(members.values(), targets, strict=True):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (temporary / name).replace(target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"'{path}' is no sound archive ({error}). Delete it and fetch it again.") from error
    except OSError as error:
        raise DataError(f"'{path}' can't be unpacked to '{folder}': {error.strerror or error}.") from error
    return targets


def _members(archive: zipfile.ZipFile, path: Path, renamed: Renaming) -> dict[zipfile.ZipInfo, str]:
    """Return the files to unpack with their new paths, all inside the folder and all different."""
    members: dict[zipfile.ZipInfo, str] = {}
    for info in archive.infolist():
        member = PurePosixPath(info.filename.replace("\\", "/"))
        outside = member.is_absolute() or ".." in member.parts or ":" in info.filename
        if outside or stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"'{path}' holds '{info.filename}', which leads out of its folder. It is not unpacked.")
        if info.is_dir() or member.parts[0] == "__MACOSX" or member.name.startswith("."):
            continue
        if (name := renamed(member)) is None:
            continue
        if name in members.values():
            raise DataError(f"'{path}' holds two files for '{name}'. It is not unpacked.")
        members[info] = name
    return members


def _download(remote: RemoteFile, part: Path, progress: Progress) -> bool:
    """Complete `part`. Returns True if its beginning is from an earlier attempt."""
    resumed = _size(part) > 0
    failures, reason = 0, ""
    while failures < ATTEMPTS:
        if failures:
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))
        before = _size(part)
        try:
            _transfer(remote, part, progress)
            return resumed
        except _BrokenOffError as error:
            reason = str(error)
        failures = 0 if _size(part) > before else failures + 1
    raise DataError(
        f"'{remote.url}' can't be fetched: {reason}, {ATTEMPTS} times in a row. Try again later with the same command, "
        f"which continues from there; or download it by other means to '{part.parent / remote.name}'."
    )


def _transfer(remote: RemoteFile, part: Path, progress: Progress) -> None:
    """Send one request for the missing bytes. Raises _BrokenOffError if some are still missing."""
    import requests

    have = _size(part)
    if remote.bytes is not None and have > remote.bytes:
        part.unlink()
        have = 0
    if have and have == remote.bytes:
        return
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        with requests.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            have, total = _start(response, remote, part, have)
            with open_owned(part) as file:
                file.seek(have)
                file.truncate()
                for piece in response.iter_content(PIECE):
                    file.write(piece)
                    have += len(piece)
                    progress(remote.name, have, total)
                    if total is not None and have > total:
                        break
    except requests.RequestException as error:
        raise _BrokenOffError(f"the connection failed ({type(error).__name__})") from error
    if total is not None and have < total:
        raise _BrokenOffError(f"the connection ended after {have} of {total} bytes")


def _start(response: Response, remote: RemoteFile, part: Path, have: int) -> tuple[int, int | None]:
    """Return the offset at which the body of the answer begins, and the size of the file."""
    status = response.status_code
    if status in PASSING:
        raise _BrokenOffError(f"the server answers {status}")
    if status == 416:  # what is here is not the beginning of what is there
        part.unlink(missing_ok=True)
        raise _BrokenOffError("the server knows no such part of it")
    if status not in (200, 206):
        raise DataError(
            f"'{remote.url}' can't be fetched: the server answers {status} {response.reason}. Download it by other "
            f"means to '{part.parent / remote.name}'."
        )
    begins = _first_byte(response) if status == 206 else 0
    if begins not in (have, 0):
        part.unlink(missing_ok=True)
        raise _BrokenOffError("the server sent another part than the one asked for")
    length = response.headers.get("Content-Length", "")
    offered = begins + int(length) if length.isdecimal() else None
    if remote.bytes is not None and offered is not None and offered != remote.bytes:
        raise DataError(
            f"'{remote.url}' has {offered} bytes, and '{remote.name}' must have {remote.bytes}: it is another file. "
            f"Download the right one to '{part.parent / remote.name}'."
        )
    return begins, remote.bytes or offered


def _require_known(path: Path, remote: RemoteFile) -> None:
    actual = _md5(path)
    if actual == remote.md5:
        return
    if path.name == remote.name:
        raise DataError(
            f"'{path}' is not the published file: its MD5 is {actual}, not {remote.md5}. Move it away and fetch again."
        )
    path.unlink()
    raise DataError(
        f"'{remote.url}' gave other bytes than the published ones: MD5 {actual}, not {remote.md5}. They were deleted; "
        "fetch again, or ask the publisher."
    )


def _require_size(declared: int, archive: Path, folder: Path) -> None:
    """Raise DataError for an archive that unpacks to more than the disk holds, or to far more than its own size."""
    size = archive.stat().st_size
    if declared > max(PLAUSIBLE_SIZE, PLAUSIBLE_RATIO * size):
        raise DataError(
            f"'{archive}' has {size / 1e6:.1f} MB and would unpack to {declared / 1e6:.0f} MB, more than "
            f"{PLAUSIBLE_RATIO} times as much: it seems made to fill a disk, and is not unpacked."
        )
    _require_room(f"The content of '{archive}'", declared, folder)


def _require_room(subject: str, missing: int, folder: Path) -> None:
    if missing > (free := shutil.disk_usage(folder).free):
        raise DataError(
            f"{subject} needs {missing / 1e9:.1f} GB more, and '{folder}' has room for {free / 1e9:.1f} GB. Make room "
            "or choose another folder."
        )


def _first_byte(response: Response) -> int:
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdecimal() else -1


def _size(part: Path) -> int:
    return part.stat().st_size if is_owned(part) else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
