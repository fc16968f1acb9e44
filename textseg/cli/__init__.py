"""The command line: one file for each command, and one package for each group of commands.

May import every package; no package imports it. Offers `main`, which the command `textseg` calls, and the Typer `app`.
"""

from __future__ import annotations

from textseg.cli.entry import app, main

__all__ = ["app", "main"]
