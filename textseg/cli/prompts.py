"""`textseg prompts`: the text that a model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from textseg.cli.options import Recipe, RecipeOverrides


def prompts(
    recipe: Recipe,
    case: Annotated[str | None, typer.Option(metavar="ID", help="The case. Default: the first one.")] = None,
    slice_number: Annotated[
        int | None,
        typer.Option("--slice", metavar="N", help="The slice, from 1. Default: the one that shows the most."),
    ] = None,
    visible: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="What a person names, for interactive prompts.")
    ] = None,
    overrides: RecipeOverrides = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with the slice beside its prompts.")
    ] = None,
) -> None:
    """Show the prompts of a slice at each granularity and from each source, with their number of tokens.

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
