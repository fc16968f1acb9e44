"""Progress bars for long jobs."""

from __future__ import annotations

import importlib
import io
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import get_console, progress
from rich.console import Console

BETWEEN = 0.2  # seconds between two states of a bar in a notebook
WIDTH = 80  # characters of a bar in a notebook


def progress_bar(*, transient: bool = False) -> progress.Progress:
    """Return a progress bar with the remaining time; a `transient` one vanishes at the end."""
    return _bar(progress.MofNCompleteColumn(), transient=transient)


@contextmanager
def counting(what: str, *, transient: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a function that reports the done and total counts; the bar appears with its first call."""
    bar = progress_bar(transient=transient)
    task, started = bar.add_task(what, total=None), False

    def report(done: int, total: int) -> None:
        nonlocal started
        started = True
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if started:
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
    kind = _NotebookBar if get_console().is_jupyter else progress.Progress
    return kind(title, progress.BarColumn(), *amounts, remaining, transient=transient)


class _NotebookBar(progress.Progress):
    """A progress bar in the output of a notebook's cell; that of rich needs ipywidgets."""

    def __init__(self, *columns: progress.ProgressColumn, transient: bool) -> None:
        super().__init__(*columns, auto_refresh=False, disable=True)  # nothing is drawn on a terminal
        self.transient, self.display_id, self.drawn = transient, "", 0.0

    def update(self, task_id: progress.TaskID, **changes: Any) -> None:
        """Change a task, and draw it."""
        super().update(task_id, **changes)
        self._draw()

    def advance(self, task_id: progress.TaskID, advance: float = 1) -> None:
        """Count on, and draw the task."""
        super().advance(task_id, advance)
        self._draw()

    def stop(self) -> None:
        """Draw the last state, or remove a transient bar."""
        super().stop()
        self._draw(last=True)

    def _draw(self, *, last: bool = False) -> None:
        if not last and not self.finished and time.monotonic() < self.drawn + BETWEEN:
            return
        if last and not self.display_id:
            return
        display = importlib.import_module("IPython.display").display  # not installed where no notebook is
        text = io.StringIO()
        if not (last and self.transient):
            Console(file=text, width=WIDTH, force_jupyter=False, color_system=None).print(self.get_renderable())
        content = {"text/plain": text.getvalue().rstrip()}
        update, self.display_id = bool(self.display_id), self.display_id or uuid.uuid4().hex
        display(content, raw=True, display_id=self.display_id, update=update)
        self.drawn = time.monotonic()
