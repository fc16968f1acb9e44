"""Processes that a process starts and that end with it, even if it is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PARENT = "TEXTSEG_PARENT"  # id of the process that started this one
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_PAUSE = 0.1  # seconds between two checks of the parent


def environment() -> dict[str, str]:
    """Return the environment for a command of textseg that shall end with this process."""
    return {**os.environ, PARENT: str(os.getpid())}


def end_with_caller() -> None:
    """End this process with the one that gave it `environment`; without one, do nothing.

    The command line calls it first of all: the imports after it take seconds.
    """
    if parent := os.environ.pop(PARENT, ""):  # not for the children of this process
        end_with(int(parent))


def end_with(parent: int) -> None:
    """End this process when its parent has ended."""
    if sys.platform == "linux":  # by the kernel, also while this process waits inside a library
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PAUSE)
    os._exit(1)
