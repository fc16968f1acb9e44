"""`python -m textseg`."""

from textseg.cli import main

main()
