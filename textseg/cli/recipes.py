"""`textseg recipes`: list the recipes that are installed, and copy one to edit it."""

from __future__ import annotations

import sys
from dataclasses import astuple
from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Typer

from textseg.cli.tables import print_table
from textseg.errors import RecipeError

recipes = Typer(invoke_without_command=True)


@recipes.callback()
def list_recipes(context: Context) -> None:
    """List the recipes of textseg and of the plug-ins; `textseg run NAME` runs one from anywhere.

    Example: textseg recipes
    """
    if context.invoked_subcommand is not None:
        return
    from textseg.recipe.listing import installed_recipes
    from textseg.registry.discovery import warn_of_faults

    warn_of_faults()
    rows = []
    for recipe in installed_recipes():
        try:
            rows.append(astuple(recipe.summary()))
        except RecipeError as error:
            print(f"Warning: {error}", file=sys.stderr)
    print_table(("name", "method", "data", "needs", "what it shows"), rows)


@recipes.command()
def copy(
    name: Annotated[str, Argument(metavar="NAME", help="A recipe that `textseg recipes` lists.")],
    folder: Annotated[Path, Argument(metavar="DIR", help="The folder that the copy goes into.")] = Path(),
) -> None:
    """Copy a recipe to edit it, together with the split file that it refers to; nothing is overwritten.

    Example: textseg recipes copy quickstart experiments
    """
    from textseg.recipe.listing import copy_recipe
    from textseg.system.commands import shell

    paths = copy_recipe(name, folder)
    print(*paths, sep="\n")
    print(f"Run the copy: {shell('textseg', 'run', paths[0])}", file=sys.stderr)
