"""Termination signals and Ctrl-C: the current step may end before the process does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


@contextmanager
def on_termination(request_stop: Callable[[], None]) -> Iterator[None]:
    """Call `request_stop` when a signal would end the process; SLURM sends SIGUSR1 before its time limit."""

    def request(signal_number: int, frame: FrameType | None) -> None:
        request_stop()

    if threading.current_thread() is not threading.main_thread():  # Python handles signals only in the main thread
        yield
        return
    before = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
