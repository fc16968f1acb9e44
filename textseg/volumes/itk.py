"""Calls into ITK: a failure gives one line, and output of its libraries is hidden."""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from textseg.errors import DataError

sitk: Any = importlib.import_module("SimpleITK")  # half of it has no types
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # our own checks say what is odd about a header

# What ITK says about headers, and our words for it
REASONS = {
    "determinant is 0": "its axes are not at right angles to each other (singular)",
    "Zero-valued spacing": "its spacing is 0, or no finite number",
    "Unknown PixelType": "its voxels have a type that ITK does not know",
    "Reason:": "its header is incomplete or contradicts itself",  # the system's last error, about something else
}

# What MetaIO and teem print about headers, also of files that they can read
CHATTER = re.compile(
    rb"^(Incomplete file record|Skipping unrecognized|Meta\w+: |MET_|Uncomp|\[nrrd\]|.* required and not).*\n?",
    re.MULTILINE,
)
LONGEST_REASON = 300  # characters of ITK's own words

_one_call = threading.Lock()


class UnreadableError(Exception):
    """The reason why ITK can't read or write a file, in one line."""


def itk_name(path: Path) -> str:
    """Return a path as text that C++ can take: every path goes to ITK through this function.

    Bytes that are no UTF-8 have no such text, and would end the process. Raises DataError for them.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        printable = os.fsencode(path).decode(errors="backslashreplace")
        raise DataError(f"{printable}: this name is no UTF-8. Rename the file or its folder.") from None


def quietly(call: Callable[[], Any]) -> Any:
    """Return the result of `call`; raise UnreadableError where ITK fails, and print nothing beside it.

    Standard error belongs to the whole process, so only one call at a time runs quietly, and output of other threads
    appears after it.
    """
    with _one_call, _printed() as printed:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            result = call()
        except RuntimeError as error:
            raise UnreadableError(_reason(error)) from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        printed.seek(0)
        if text := CHATTER.sub(b"", printed.read(1 << 20)):
            os.write(2, text)
    return result


def _reason(error: RuntimeError) -> str:
    text = str(error).strip()
    known = next((reason for words, reason in REASONS.items() if words in text), None)
    return known or text.splitlines()[-1].removeprefix("sitk::ERROR: ").rstrip(".")[:LONGEST_REASON]


def _printed() -> IO[bytes]:
    """Open a file for the output of libraries; in memory where the system can."""
    return os.fdopen(os.memfd_create("printed"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()
