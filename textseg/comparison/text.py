"""A leaderboard as plain text, for a terminal, and as Markdown."""

from __future__ import annotations

from typing import IO

from textseg.comparison.leaderboard import Leaderboard
from textseg.comparison.sections import Section, mark, notes, sections
from textseg.drawing.tables import markdown_table, text_table


def as_text(board: Leaderboard) -> str:
    """Plain: the same on every screen, so that two can be compared line by line."""
    parts = ["\n".join(mark(board)) + "\n"] if board.mismatches else []
    for section in sections(board):
        said = ["", *section.notes] if section.notes else []
        parts.append("\n".join([f"{section.title}\n", text_table(section.header, section.rows).rstrip(), *said, ""]))
    return "\n".join([*parts, *notes(board)]) + "\n"


def print_text(board: Leaderboard, file: IO[str]) -> None:
    """As plain text; on a terminal with colours, the best bold and the second best underlined."""
    if not file.isatty():
        file.write(as_text(board))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console(file=file)
    for line in mark(board):
        console.print(escape(line), style="bold red")
    for section in sections(board):
        table = RichTable(title=escape(section.title), title_justify="left", title_style="bold")
        for column, name in enumerate(section.header):
            table.add_column(escape(name), justify="right" if column else "left")
        for place, cells in enumerate(section.rows):
            table.add_row(*(_styled(section, place, column, escape(cell)) for column, cell in enumerate(cells)))
        console.print(table)
        for note in section.notes:
            console.print(escape(note), style="yellow" if note.startswith("Warning") else "dim", highlight=False)
    for note in notes(board):
        console.print(escape(note), style="dim", highlight=False)


def _styled(section: Section, row: int, column: int, cell: str) -> str:
    style = "bold" if (row, column) in section.best else "underline" if (row, column) in section.second else ""
    return f"[{style}]{cell}[/{style}]" if style else cell


def as_markdown(board: Leaderboard) -> str:
    """With the best value of each column of a ranking bold."""
    parts = [f"> **{line.strip()}**\n" for line in mark(board)]
    for section in sections(board):
        rows = [
            [_bold(cell) if (row, column) in section.best else cell for column, cell in enumerate(cells)]
            for row, cells in enumerate(section.rows)
        ]
        said = "\n".join(f"- {note}" for note in section.notes)
        parts.append("\n".join([f"## {section.title}\n", markdown_table(section.header, rows), said]) + "\n")
    return "\n".join([*parts, "## Notes\n", *(f"- {note}" for note in notes(board))]) + "\n"


def _bold(cell: str) -> str:
    value, _, rest = cell.partition(" ")
    return f"**{value}** {rest}".strip()
