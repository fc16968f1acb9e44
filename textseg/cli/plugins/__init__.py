"""The group `textseg plugins`: one file for each command, and the templates of new plug-ins.

`commands.py` is about the commands that plug-ins bring themselves.

May import whatever `cli` may import. Offers the Typer app `plugins`, which `cli/entry.py` adds to the command line.
"""

from __future__ import annotations

from typer import Typer

from textseg.cli.plugins.doctor import doctor
from textseg.cli.plugins.list import list_plugins
from textseg.cli.plugins.new import new

__all__ = ["plugins"]

plugins = Typer(help="List plug-ins, check them, or write a new one.", no_args_is_help=True)
plugins.command("list")(list_plugins)
plugins.command()(doctor)
plugins.command()(new)
