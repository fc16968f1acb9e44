"""Calls into ITK: a failure gives one line, and output of its libraries is hidden."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any

sitk: Any = importlib.import_module("SimpleITK")  # half of it has no types

_one_call = threading.Lock()


class UnreadableError(Exception):
    """The reason why ITK can't read or write a file, in one line."""


def attempt(call: Callable[[], Any]) -> Any:
    """Return the result of `call`; raise UnreadableError where ITK fails."""
    try:
        return call()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ").rstrip(".")
        if reason.startswith("Reason:"):  # the system's last error, which is about something else
            reason = "its header or its voxels are incomplete"
        raise UnreadableError(reason) from error


def quietly(call: Callable[[], Any]) -> Any:
    """Return the result of `call`; where it fails, nothing is printed beside our one message.

    Standard error belongs to the whole process, so only one call at a time runs quietly, and output of other threads
    appears after it. A call that needs no silence takes `attempt`, so that threads run beside each other.
    """
    with _one_call, _printed() as printed:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            result = attempt(call)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        printed.seek(0)
        if text := printed.read(1 << 20):
            os.write(2, text)
    return result


def _printed() -> IO[bytes]:
    """Open a file for the output of libraries; in memory where the system can."""
    return os.fdopen(os.memfd_create("printed"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()
