"""Guards against access to the network, files, processes, and state that the whole program shares."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import random
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch

from textseg.testing.promises import BrokenPromiseError
from textseg.volumes.files import read_geometry

CODE = {".py", ".pyc", ".so", ".pyd", ".dll", ".dylib"}
IMPORTING = ("<frozen importlib", importlib.metadata.__file__)
SYSTEM = ("/proc/", "/sys/", "/dev/")
FILES = {"open", "os.listdir", "os.scandir"}
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"}
PROCESSES = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}
SHARED = {"os.putenv": "an environment variable", "os.unsetenv": "an environment variable", "os.chdir": "the folder"}

_watched = threading.local()


@contextmanager
def restored() -> Iterator[None]:
    """Restore the shared state after the block. One thread inside it: small tensors are quickest so."""
    shared, device = _shared_state(), torch.get_default_device()
    chance, drawn = random.getstate(), np.random.get_state()
    torch.set_num_threads(1)
    random.random()  # so that one who sets a seed, again and again the same, is noticed
    np.random.random()
    try:
        with torch.random.fork_rng(devices=()), torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        random.setstate(chance)
        np.random.set_state(drawn)
        torch.set_default_dtype(shared["default dtype"])
        torch.set_default_device(device)
        torch.set_num_threads(shared["number of threads"])
        torch.use_deterministic_algorithms(shared["choice of deterministic algorithms"])
        torch.set_float32_matmul_precision(shared["float32 precision"])


@contextmanager
def undisturbed(
    what: str, *, allowed: Iterable[object] = (), files: bool = False, besides: Collection[str] = ()
) -> Iterator[None]:
    """Watch what a block of code touches; the network is closed for it. Raises BrokenPromiseError.

    Args:
        what: happens in the block: "construction".
        allowed: settings, of which those that are paths may be read.
        files: whether every file may be read.
        besides: files that may not be read although they lie in an allowed folder.
    """
    _install()
    touched: list[str] = []
    before = _shared_state()
    readable = [path for value in allowed for path in _paths(value)]
    _watched.touched, _watched.allowed = touched, [os.sep] if files else readable
    _watched.besides = {str(Path(path).absolute()) for path in besides}
    try:
        yield
    except Exception as error:
        if touched:  # more telling than what came of it
            raise BrokenPromiseError(f"{what} without it", touched[0]) from error
        raise
    finally:
        _watched.touched = None
    if touched:
        raise BrokenPromiseError(f"{what} that touches no file, process and network", touched[0])
    after = _shared_state()
    if changed := [name for name in before if before[name] != after[name]]:
        name = changed[0]
        raise BrokenPromiseError(
            f"{what} that leaves alone what all share",
            f"another {name}: {_short(before[name])} -> {_short(after[name])}",
        )


def _shared_state() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "number of threads": torch.get_num_threads(),
        "choice of deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "recording of gradients": torch.is_grad_enabled(),
        "float32 precision": torch.get_float32_matmul_precision(),
        "state of the module random": random.getstate(),
        "state of numpy.random": str(np.random.get_state(legacy=False)),
    }


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 40 else f"{text[:37]}..."


def _paths(value: object) -> list[str]:
    if isinstance(value, str | os.PathLike):
        return [os.fspath(Path(value).expanduser().absolute())]
    if isinstance(value, dict):
        return [path for inner in value.values() for path in _paths(inner)]
    return [path for inner in value for path in _paths(inner)] if isinstance(value, list | tuple) else []


@functools.cache
def _install() -> None:
    sys.addaudithook(_hear)  # it can't be taken away; without a block to watch it costs one look-up


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    touched = getattr(_watched, "touched", None)
    if touched is None or not (event in FILES or event in NETWORK or event in PROCESSES or event in SHARED):
        return
    _watched.touched = None  # what looks at an event must not be heard itself
    try:
        if event in SHARED:
            if not _importing():
                touched.append(f"a change of {SHARED[event]} ({arguments[0]!r})")
        elif event in FILES:
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike) and not _harmless(os.fsdecode(path)) and not _importing():
                written = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
                touched.append(f"{'writing' if written else 'reading'} '{os.fsdecode(path)}'")
        elif event in NETWORK:
            touched.append(f"a connection to the network ({event} {arguments[-1]!r})")
            raise OSError("There is no network while a component is checked.")
        elif not _importing():
            touched.append(f"another process ({arguments[0]!r})")
    finally:
        _watched.touched = touched


def _harmless(path: str) -> bool:
    absolute = Path(path).absolute()
    if str(absolute) in _watched.besides:
        return _called_by(read_geometry.__code__)  # it reads the header alone, which may say how the patient lay
    if absolute.suffix in CODE or str(absolute).startswith(SYSTEM) or "__pycache__" in absolute.parts:
        return True
    if any(part.endswith((".dist-info", ".egg-info")) for part in absolute.parts):
        return True
    return any(absolute == Path(path) or Path(path) in absolute.parents for path in _watched.allowed)


def _called_by(code: CodeType) -> bool:
    """Return True while a function runs."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code is code:
            return True
    return False


def _importing() -> bool:
    """Return True while a module is imported, or an installed package is looked for: both read files and folders."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code.co_filename.startswith(IMPORTING):
            return True
    return False
