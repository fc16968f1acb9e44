"""The command line: one file for each group of commands.

Imports everything; nothing imports it.
"""

from __future__ import annotations

from textseg.cli.entry import app, main

__all__ = ["app", "main"]
