"""Calls into ITK, whose failures are one line, and whose libraries print nothing meanwhile."""

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
    """What is wrong with a file, in one line."""


def quietly(call: Callable[[], Any]) -> Any:
    """What `call` gives; on failure nothing of what ITK's libraries print stands in the way of our one message.

    What other threads write to the process's standard error meanwhile comes out afterwards.
    """
    with _one_call, _printed() as printed:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(printed, 2)
        try:
            result = call()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ").rstrip(".")
            if reason.startswith("Reason:"):  # the system's last error, which is about something else
                reason = "its header or its voxels are incomplete"
            raise UnreadableError(reason) from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        os.lseek(printed, 0, os.SEEK_SET)
        if text := os.read(printed, 1 << 20):
            os.write(2, text)
    return result


@contextmanager
def _printed() -> Iterator[int]:
    """A file for what libraries print, by its descriptor; in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("printed")
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryFile() as file:
            yield file.fileno()
