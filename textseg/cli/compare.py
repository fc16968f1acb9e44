"""The command that compares runs; what it needs is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN", help="Run folders.")] = None,
    published: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Show the paper's results on spider or mrspineseg, too.")
    ] = None,
    only_published: Annotated[
        bool, typer.Option("--only-published", help="Print those alone, and what they say when computed again.")
    ] = False,
    rare: Annotated[
        float, typer.Option(metavar="SHARE", help="A structure that fewer of the test cases show is rare.")
    ] = 0.2,
    single_runs: Annotated[
        bool, typer.Option("--single-runs", help="Give every seed and fold a row of its own.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Compare what can't be compared; the result says so everywhere.")
    ] = False,
    details: Annotated[
        bool, typer.Option("--details", help="Print every table: ways to count a miss, groups, differences, ranks.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write the leaderboard to, too, in every format.")
    ] = None,
) -> None:
    """Rank runs on the cases that they share.

    Example: textseg compare runs/atmnet_spider runs/swin_unetr_spider --output leaderboard
    """
    if only_published and (runs or output):
        raise typer.BadParameter("--only-published stands alone: it compares no runs.")
    if not (only_published or runs):
        raise typer.BadParameter("name runs to compare, or write --only-published.")
    if not 0 <= rare <= 1:
        raise typer.BadParameter(f"--rare is a share of the test cases, from 0 to 1, and {rare:g} is none.")
    if not runs:
        from textseg.comparison.published import published_datasets, published_report

        print("\n".join(map(published_report, [published] if published else published_datasets())))
        return
    from textseg.comparison.compare import compare as compare_runs
    from textseg.comparison.text import print_leaderboard

    board = compare_runs(runs, output=output, published=published, rare=rare, single_runs=single_runs, force=force)
    print_leaderboard(board, sys.stdout, details=details, output=output)
