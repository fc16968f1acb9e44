"""Progress bars for long jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress


def progress_bar(*, transient: bool = False) -> progress.Progress:
    """Return a progress bar with the remaining time; a `transient` one vanishes at the end."""
    return _bar(progress.MofNCompleteColumn(), transient=transient)


@contextmanager
def counting(what: str, *, transient: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a function that reports the done and total counts; the bar appears with its first call."""
    bar = progress_bar(transient=transient)
    task = bar.add_task(what, total=None)

    def report(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def bytes_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Give a function that shows the received and total bytes of a file; each file has its own bar."""
    tasks: dict[str, progress.TaskID] = {}
    with _bar(progress.DownloadColumn(), progress.TransferSpeedColumn()) as bar:

        def report(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield report


def _bar(*amounts: progress.ProgressColumn, transient: bool = False) -> progress.Progress:
    title, remaining = progress.TextColumn("{task.description}"), progress.TimeRemainingColumn()
    return progress.Progress(title, progress.BarColumn(), *amounts, remaining, transient=transient)
