"""`textseg prompts`: the text that a model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from textseg.cli.options import Recipe, RecipeOverrides, SliceNumber, TrustCode


def prompts(
    recipe: Recipe,
    case: Annotated[str | None, Option(metavar="ID", help="The case. Default: the first one.")] = None,
    slice_number: SliceNumber = None,
    visible: Annotated[str | None, Option(metavar="FIRST:LAST", help="For interactive prompts: what is named.")] = None,
    overrides: RecipeOverrides = None,
    output: Annotated[Path | None, Option(metavar="FILE", help="Also write a page: the slice and its prompts.")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Show the prompts of a slice at each granularity and from each source, with their number of tokens.

    Example: textseg prompts quickstart --output prompts.html
    """
    from textseg.recipe.loading import load_recipe
    from textseg.registry.kinds import TO_PREDICT
    from textseg.reports.prompt_sheet import prompt_sheet
    from textseg.system.files import write_atomically

    loaded = load_recipe(recipe, overrides or [], trust_code=trust_code, builds=TO_PREDICT)
    sheet = prompt_sheet(loaded, case_id=case, slice_number=slice_number, named=visible)
    print(sheet)
    if output is not None:
        write_atomically(output, sheet.page())
        print(output)
