"""A leaderboard as text: a short form and every table for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text

from textseg.comparison.leaderboard import Leaderboard
from textseg.comparison.published import published_tables
from textseg.comparison.sections import Section, mark, notes, reading, recomputed_sections, sections, short_section
from textseg.drawing.tables import markdown_table

WIDTH = 100  # of the short form without a terminal, so that a log looks the same on every machine
UNLIMITED = 10_000  # every table without a terminal: no line is broken, so that two texts can be compared by line
FORMATS = ("html", "csv", "json", "md", "tex")


def print_leaderboard(
    board: Leaderboard, file: IO[str], *, details: bool = False, output: Path | None = None, width: int | None = None
) -> None:
    """Print one table that fits the width, what it means, and where the rest is; with `details` every table.

    `width` is that of the terminal, or 100 columns without one. On a terminal the best value of a column is bold and
    the second best underlined. `output` is the folder that the leaderboard was written to.
    """
    with _text_on(file, UNLIMITED if details else WIDTH) as console:
        if width is not None:
            console.width = width
        for line in mark(board) if details else mark(board)[:1]:
            console.print(line, style="bold red", markup=False)
        for section in sections(board) if details else [short_section(board, console.width)]:
            _print_section(section, console)
        for line in notes(board) if details else reading(board):
            console.print(line, style="dim" if details else None, markup=False)
        for line in _whereabouts(details, output):
            console.print(line, markup=False)


def print_published(dataset: str | None, file: IO[str]) -> None:
    """Print published results computed again, of one data set or of all. Raises RunError where there are none."""
    with _text_on(file, WIDTH) as console:
        for table in published_tables(dataset):
            for section in recomputed_sections(table):
                _print_section(section, console)


@contextmanager
def _text_on(file: IO[str], width: int | None) -> Iterator[Console]:
    """Give a console that writes to `file`; `width` holds without a terminal."""
    console = Console(file=file, width=None if file.isatty() else width, highlight=False)
    with console.capture() as capture:
        yield console
    # A table fills each line to its width with spaces, which only get in the way in a log.
    file.write("\n".join(line.rstrip() for line in capture.get().split("\n")))


def as_text(board: Leaderboard) -> str:
    """Return every table as plain text."""
    text = StringIO()
    print_leaderboard(board, text, details=True)
    return text.getvalue()


def _print_section(section: Section, console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column, name in enumerate(section.header):
        text = column in section.text_columns
        # Names are folded where the table is too wide, so that two long ones can still be told apart. A number that
        # does not fit ends with an ellipsis: without it, 0.0222 would become 0.0.
        overflow: OverflowMethod = "fold" if text else "ellipsis"
        table.add_column(Text(name), justify="left" if text else "right", overflow=overflow, no_wrap=not text)
    for row, cells in enumerate(section.rows):
        if row in section.parts:
            table.add_section()
        table.add_row(*(_cell(section, row, column, cell) for column, cell in enumerate(cells)))
    console.print(section.title, style="bold", markup=False)
    console.print()
    console.print(table)
    if section.notes:
        console.print()
    for note in section.notes:
        console.print(note, style="yellow" if note.startswith("Warning") else "dim", markup=False)
    console.print()


def _cell(section: Section, row: int, column: int, cell: str) -> Text:
    style = "bold" if (row, column) in section.best else "underline" if (row, column) in section.second else ""
    return Text(" ".join(cell.split()), style)


def _whereabouts(details: bool, output: Path | None) -> Iterator[str]:
    if not details:
        yield "Every table: `textseg compare RUN... --details`."
    if output is None:
        yield "As HTML, CSV, JSON, Markdown and LaTeX: `textseg compare RUN... --output DIR`."
    else:
        first, *others = FORMATS
        yield f"Files: {output / f'leaderboard.{first}'} and .{', .'.join(others)} beside it."


def as_markdown(board: Leaderboard) -> str:
    """Return every table as Markdown, the best value of each column of a ranking bold."""
    parts = [f"> **{line.strip()}**\n" for line in mark(board)]
    for section in sections(board):
        rows = [list(cells) for cells in section.rows]
        for row, column in section.best:
            value, _, interval = rows[row][column].partition(" ")
            rows[row][column] = f"**{value}** {interval}".strip()
        remarks = "\n".join(f"- {note}" for note in section.notes)
        parts.append("\n".join([f"## {section.title}\n", markdown_table(section.header, rows), remarks]) + "\n")
    return "\n".join([*parts, "## Notes\n", *(f"- {note}" for note in notes(board))]) + "\n"
