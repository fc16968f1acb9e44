"""Tables that commands print: they fit a terminal, and a pipe gets every row whole, on one line."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence

_PIPED_WIDTH = 100_000  # characters: no row is as long
_LEAST_WIDTH = 30  # of the last column of a table in a terminal


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout. A terminal breaks long cells; what is piped has no colours, and nothing is cut off.

    In a terminal that is too narrow for the columns, each row is a block: its first cell, then the others below it.
    """
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table

    rows = list(rows)
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)
    *widths, last = (max(map(len, column)) + 1 for column in zip(header, *rows, strict=True))
    if sum(widths) + min(last, _LEAST_WIDTH) > console.width:
        for name, *cells in rows:
            print(name)
            line = "; ".join(f"{title}: {cell}" for title, cell in zip(header[1:], cells, strict=True))
            width = max(console.width, 20) - 4
            print(textwrap.indent(textwrap.fill(line, width, break_on_hyphens=False), "    "))
        return
    blank = "    \n"
    table = Table(box=Box(f"{blank * 2} -  \n{blank * 5}"), padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column, title in enumerate(header):
        # Only the last column is broken: a broken name can't be copied into a command.
        table.add_column(title, overflow="fold", no_wrap=column < len(header) - 1)
    for row in rows:
        table.add_row(*row)
    with console.capture() as captured:
        console.print(table)
    print(*(line.rstrip() for line in captured.get().splitlines()), sep="\n")
