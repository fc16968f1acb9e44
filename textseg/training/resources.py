"""Clear messages for a full disk, for memory that ran out, and for workers that were lost."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from textseg.data.slices import lost_worker
from textseg.errors import RunError
from textseg.system.files import full_disk

NO_MEMORY = ("not enough memory", "out of memory", "cannot allocate memory")


@contextmanager
def explained_exhaustion(run: Path, cache: Path, last: Path) -> Iterator[None]:
    """Turn errors about exhausted memory or a full disk into a RunError with advice; other errors pass unchanged.

    `last` is the checkpoint that is then kept.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if str(error).startswith("DataLoader worker (pid"):  # raised at the signal that a worker was killed
            raise lost_worker(error) from error
        what = what_ran_out(error)
        if what is None:
            raise
        resumable = f"'{last}' is kept: the same command continues from there"
        kept = resumable if last.exists() else "No checkpoint was saved yet"
        if what == "disk":
            raise RunError(
                "A disk is full, or a quota used up, or files may not be so large (ulimit -f). Make room where the run "
                f"folder ('{run}') and the cache ('{cache}') lie, or choose others with --output and TEXTSEG_CACHE. "
                f"{kept}."
            ) from error
        raise RunError(
            "Memory ran out. Lower training.batch_size or preparation.size (both begin a new run, with --fresh), "
            f"training.workers, or close what else uses the memory. {kept}."
        ) from error


def what_ran_out(error: BaseException | None) -> Literal["disk", "memory"] | None:
    """Return the resource that an error is about; its causes count, too, since torch hides a full disk behind them."""
    if full_disk(error):
        return "disk"
    while error is not None:
        is_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        if is_memory or any(words in str(error).lower() for words in NO_MEMORY):  # torch.OutOfMemoryError among them
            return "memory"
        error = error.__cause__ or error.__context__
    return None
