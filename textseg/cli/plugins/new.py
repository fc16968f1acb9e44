"""`textseg plugins new`: a plug-in to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def new(
    name: Annotated[str, Argument(metavar="NAME", help="Name of the plug-in and its component, such as my_prompts.")],
    kind: Annotated[str, Option(help="The kind of component: prompt_generator, fusion, network, ...")],
    output: Annotated[Path, Option(metavar="DIR", help="The folder that textseg-NAME is made in.")] = Path(),
) -> None:
    """Write a plug-in to start from. It can be installed at once, passes its own tests, and has a recipe that runs.

    Example: textseg plugins new my_prompts --kind prompt_generator
    """
    from textseg.cli.plugins.scaffold import write_plugin
    from textseg.system.commands import pip_install, shell

    folder, *files = write_plugin(name, kind, output)
    recipe = next(path for path in files if path.suffix == ".yaml")
    # Without a '/', pip would look for the name in the package index.
    local = str(folder) if folder.is_absolute() or str(folder).startswith(".") else f"./{folder}"
    print(*files, sep="\n")
    print(
        f"\nInstall it, test it, run it:\n\n  {pip_install('-e', f'{local}[test]')}\n"
        f"  {shell('pytest', folder)}\n  {shell('textseg', 'run', recipe.stem)}"
    )
