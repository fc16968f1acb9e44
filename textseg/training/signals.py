"""Ending well: a termination signal, or Ctrl-C, lets the step at hand come to its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


@contextmanager
def on_termination(request_stop: Callable[[], None]) -> Iterator[None]:
    """Call `request_stop` where such a signal would otherwise end the process; SLURM sends SIGUSR1 before."""

    def request(signal_number: int, frame: FrameType | None) -> None:
        request_stop()

    if threading.current_thread() is not threading.main_thread():  # Python hears signals in the main thread alone
        yield
        return
    before = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
