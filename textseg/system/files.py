"""Names and writing of files, which are complete or absent, and the location of the cache."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from textseg.errors import DataError

LONGEST_NAME = 255  # bytes of a file name, on most file systems
_FORBIDDEN = frozenset('/\\<>:"|?*\ufffd')  # on some operating system; a text has the same name on each
_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of characters; the others stand for bytes of a file name
_CONTROLS = ("Cc", "Zl", "Zp")  # categories of characters: control, separators of lines and paragraphs
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows
_TEMPORARY = re.compile(r"\.textseg-[0-9a-f]{16}(\.\w{1,8}){0,2}", re.ASCII)
_ENDING = re.compile(r"(\.\w{1,8}){0,2}$", re.ASCII)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_tidied: set[Path] = set()  # folders in which this process has removed leftovers


def file_name(text: str, ending: str = "") -> str:
    """Return `text` and `ending` as the name of a file or folder, which never leads anywhere else.

    Every name that is made from data goes through this function: ids of cases and patients, values of DICOM headers,
    and what recipes and plug-ins name. A text that can't be a name, or is too long for one, is changed and ends with a
    hash, so that different texts have different names.
    """
    plain = _HALVES.sub("\ufffd", text).encode(errors="surrogateescape").decode(errors="replace")
    name = "".join(
        "_" if char in _FORBIDDEN or unicodedata.category(char) in _CONTROLS else char for char in plain.lstrip(".")
    )
    if not ending:
        name = name.rstrip(". ")
    if not name or _DEVICES.fullmatch(name):
        name = f"_{name}"
    room = LONGEST_NAME - len(ending.encode())
    if name != plain or len(name.encode()) > room:
        code = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
        name = f"{name.encode()[: room - 9].decode(errors='ignore')}-{code}"
    return os.fsdecode((name + ending).encode())


def inside(folder: Path, name: str) -> Path:
    """Return the path of `name` below a folder. Raises DataError where it leads out of it, also by a link."""
    path = folder / name
    if folder.is_symlink() or path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"'{path}' leads out of '{folder.parent if folder.is_symlink() else folder}', or is a link, and nothing is "
            "written through links. Remove the link, or choose another folder."
        )
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`. It replaces `path` when the block ends, and vanishes when it fails.

    The ending of its name is that of `path`, in lower case. Raises OSError, which names `path`, if it can't be written.
    """
    with _naming(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "This is a device and no file", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        ending = _ENDING.search(path.name)
        with _temporary(path.parent, ending[0].lower() if ending else "") as temporary:
            yield temporary
            handle = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
            try:
                os.fsync(handle)  # some file systems report a full disk only here
            finally:
                os.close(handle)
            temporary.replace(path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all."""
    # Names of files stay as they are on disk, also where the locale has only ASCII.
    content = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        if temporary.stat().st_size != len(content):
            raise OSError(errno.EIO, "The file system has not kept all bytes", str(path))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder that is renamed to `path` when the block ends; a failed block leaves nothing."""
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path.parent) as temporary:
            yield temporary
            temporary.replace(path)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Give an empty folder in `parent`, which exists. It vanishes when the block ends."""
    with _temporary(parent) as temporary:
        yield temporary


def is_owned(path: Path) -> bool:
    """Return True for an ordinary file, which is no link, also no hard link, to a file of somebody else."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def open_owned(path: Path) -> IO[bytes]:
    """Open a file with a predictable name to read and write it; its content is kept.

    Anything there that `is_owned` does not accept is removed first.
    """
    if os.path.lexists(path) and not is_owned(path):
        path.unlink()
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")


def is_locked(path: Path) -> bool:
    """Return True if a process holds a lock on a file; the check writes nothing."""
    return _lockable(path) is False


def is_leftover(path: Path) -> bool:
    """Return True for a temporary file or folder that belongs to no living process."""
    return _TEMPORARY.fullmatch(path.name) is not None and _lockable(path) is True


def _lockable(path: Path) -> bool | None:
    """Return False if a process holds a lock on a file or folder, and None if that can't be known."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    finally:
        os.close(handle)
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in a folder."""
    with suppress(OSError):
        for path in filter(is_leftover, folder.iterdir()):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    _remove(path)
            finally:
                os.close(handle)


@contextmanager
def _temporary(parent: Path, ending: str | None = None) -> Iterator[Path]:
    """Give a new file with a short name, or a folder without an `ending`, locked as long as this process needs it."""
    if parent not in _tidied and not _TEMPORARY.fullmatch(parent.name):
        _tidied.add(parent)
        remove_leftovers(parent)
    while True:
        path = parent / f".textseg-{secrets.token_hex(8)}{ending or ''}"
        if ending is None:
            path.mkdir()
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        else:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        _lock(handle, fcntl.LOCK_EX)
        if path.exists():  # it may have been removed as a leftover before it was locked
            break
        os.close(handle)
    try:
        yield path
    finally:
        with suppress(FileNotFoundError):
            _remove(path)
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _lock(handle: int, kind: int) -> bool:
    """Lock an open file until it is closed. Returns False if it can't be locked."""
    try:
        fcntl.flock(handle, kind)
    except OSError:
        return False
    return True


def full_disk(error: BaseException | None) -> OSError | None:
    """Return the error of a full disk, a quota or a limit on the size of files among an error and its causes."""
    while error is not None and not (isinstance(error, OSError) and error.errno in _FULL):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make errors of the operating system name `path`, in place of nothing or of a temporary name."""
    try:
        yield
    except OSError as error:
        if error.errno and (not error.filename or _TEMPORARY.fullmatch(Path(str(error.filename)).name)):
            error.filename = str(path)
            del error.filename2
        raise


def content_hash(content: Any) -> str:
    """Return a short hash of plain values that is the same on every machine."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Return the folder of prepared slices and text features: TEXTSEG_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("TEXTSEG_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("textseg")
