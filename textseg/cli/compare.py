"""`textseg compare`: a leaderboard of runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option


def compare(
    runs: Annotated[list[Path], Argument(metavar="RUN", help="Run folders.")],
    published: Annotated[str | None, Option(metavar="DATASET", help="Add results of `textseg published`.")] = None,
    rare: Annotated[float, Option(metavar="SHARE", help="A structure that fewer test cases show is rare.")] = 0.2,
    single_runs: Annotated[bool, Option("--single-runs", help="Give every seed and fold a row of its own.")] = False,
    force: Annotated[bool, Option("--force", help="Compare what can't be compared; the result says so.")] = False,
    details: Annotated[
        bool, Option("--details", help="Print every table: ways to count a miss, groups, differences, ranks.")
    ] = False,
    output: Annotated[Path | None, Option(help="The folder to write the leaderboard to, too, in every format.")] = None,
) -> None:
    """Rank runs on the cases that they share.

    Example: textseg compare runs/atmnet_spider runs/swin_unetr_spider --output leaderboard
    """
    if not 0 <= rare <= 1:
        raise BadParameter(f"--rare is a share of the test cases, from 0 to 1, and {rare:g} is none.")
    from textseg.comparison.compare import compare as compare_runs
    from textseg.comparison.text import print_leaderboard

    board = compare_runs(runs, output=output, published=published, rare=rare, single_runs=single_runs, force=force)
    print_leaderboard(board, sys.stdout, details=details, output=output)
