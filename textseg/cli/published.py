"""`textseg published`: results that plug-ins bring from publications."""

from __future__ import annotations

import sys
from typing import Annotated

from typer import Argument


def published(
    dataset: Annotated[str | None, Argument(metavar="DATASET", help="A data set; else all of them.")] = None,
) -> None:
    """Print published results, their means computed again from the values of each structure.

    Example: textseg published spider
    """
    from textseg.comparison.text import print_published

    print_published(dataset, sys.stdout)
