"""`textseg runs`: the runs in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that holds the run folders.")] = Path(
        "runs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List runs with their state, epochs, best validation score and test score.

    Example: textseg runs runs
    """
    import json

    from textseg.runs import listing as run_list

    listed = run_list.list_runs(folder)
    if as_json:
        print(json.dumps(run_list.as_json(listed), indent=1))
    else:
        print(run_list.as_text(listed) if listed else f"'{folder}' holds no runs. Make one with: textseg run RECIPE")
