"""Calls into ITK: a failure is one line, and what its libraries print does not stand in the way of it."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
        os.dup2(printed, 2)
        try:
            result = attempt(call)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        os.lseek(printed, 0, os.SEEK_SET)
        if text := os.read(printed, 1 << 20):
            os.write(2, text)
    return result


@contextmanager
def _printed() -> Iterator[int]:
    """Open a file for the output of libraries and give its descriptor; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("printed")
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryFile() as file:
            yield file.fileno()
