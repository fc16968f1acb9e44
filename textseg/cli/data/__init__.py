"""The group `textseg data`: one file for each command.

May import whatever `cli` may import. Offers the Typer app `data`, which `cli/entry.py` adds to the command line.
"""

from __future__ import annotations

from typer import Typer

from textseg.cli.data.cache import cache
from textseg.cli.data.check import check
from textseg.cli.data.convert import convert
from textseg.cli.data.fetch import fetch
from textseg.cli.data.show import show

__all__ = ["data"]

data = Typer(help="Fetch, check and show data sets.", no_args_is_help=True)
for command in (fetch, check, show, convert, cache):
    data.command()(command)
