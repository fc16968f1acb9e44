"""The commands about text; what a command needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prompts(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe whose model reads text.")],
    case: Annotated[str | None, typer.Option(metavar="ID", help="Which case; else the first.")] = None,
    slice_number: Annotated[
        int | None, typer.Option("--slice", metavar="N", help="Which slice, from 1; else the one that shows most.")
    ] = None,
    visible: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="What a person names, for interactive prompts.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Put a value into the recipe; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the slice beside its prompts.")
    ] = None,
) -> None:
    """Show what a case's prompts read at each granularity and from each source, with tokens counted.

    Example: textseg prompts quickstart --output prompts.html
    """
    from textseg.recipe.loading import load_recipe
    from textseg.reports.prompt_sheet import prompt_sheet
    from textseg.system.files import write_atomically

    sheet = prompt_sheet(load_recipe(recipe, overrides or []), case_id=case, slice_number=slice_number, named=visible)
    print(sheet)
    if output is not None:
        write_atomically(output, sheet.page())
        print(output)


def probe(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run whose model reads text.")],
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the tables go; else RUN/probe.")] = None,
) -> None:
    """Evaluate one checkpoint under other texts: how much the result depends on what it is told.

    Example: textseg probe runs/quickstart/seed2025
    """
    from textseg.evaluation.probe import probe_run

    print(probe_run(run, output=output))
