"""The command line, started by `python -m textseg`."""

from textseg.cli import main

main()
