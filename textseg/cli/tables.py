"""Tables that commands print: they fit a terminal, and a pipe gets every row whole, on one line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

_PIPED_WIDTH = 100_000  # characters: no row is as long


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout. A terminal breaks long cells; what is piped has no colours, and nothing is cut off."""
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table

    blank = "    \n"
    table = Table(box=Box(f"{blank * 2} -  \n{blank * 5}"), padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    terminal = sys.stdout.isatty()
    width = None if terminal else _PIPED_WIDTH
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as captured:
        console.print(table)
    print(*(line.rstrip() for line in captured.get().splitlines()), sep="\n")
