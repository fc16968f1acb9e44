"""The command line as `python -m textseg`."""

from textseg.cli import main

main()
