"""The commands about plug-ins, one file each.

Imports what the command line may import.
"""

from __future__ import annotations

import typer

from textseg.cli.plugins.doctor import doctor
from textseg.cli.plugins.list import list_plugins
from textseg.cli.plugins.new import new

__all__ = ["plugins"]

plugins = typer.Typer(help="List plug-ins, check them, or write a new one.", no_args_is_help=True)
plugins.command("list")(list_plugins)
plugins.command()(doctor)
plugins.command()(new)
