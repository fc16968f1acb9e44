"""`textseg runs`: the runs in a folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from textseg.cli.tables import print_table


def runs(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="The folder that holds the run folders.")] = Path("runs"),
    as_json: Annotated[bool, Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List runs with their state, epochs, best validation score and test score.

    Example: textseg runs runs
    """
    from textseg.runs.listing import HEADER, cells, list_runs

    listed = list_runs(folder)
    if as_json:
        print(json.dumps([asdict(run) for run in listed], indent=1))
    elif not listed:
        print(f"'{folder}' holds no runs. Make one with: textseg run RECIPE")
    else:
        print_table(HEADER, map(cells, listed))
        if reasons := [f"{run.folder}: {run.failure}" for run in listed if run.failure]:
            print("", *reasons, sep="\n")
