"""Ctrl-C of the user, told apart from a KeyboardInterrupt that code of a plug-in raises."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_watched = _came = False


def watch_interruptions() -> None:
    """Note from now on when the user interrupts the program, as Python's own handler does not."""
    global _watched
    first = threading.current_thread() is threading.main_thread()  # Python handles signals only there
    if first and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        _watched = True


def is_interruption(error: BaseException) -> bool:
    """Return True if the user has interrupted the program; in doubt also for a KeyboardInterrupt of other origin."""
    return isinstance(error, KeyboardInterrupt) and (_came or not _watched)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    raise KeyboardInterrupt
