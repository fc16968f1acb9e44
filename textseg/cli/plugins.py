"""The commands about plug-ins and their components; what a command needs is imported when it runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from textseg.cli.tables import print_table

plugins = typer.Typer(help="What is installed, what is wrong with it, and a plug-in of your own.", no_args_is_help=True)


def components(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="List this kind only, such as fusion.")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="With network: what each one costs.")] = False,
    recipes: Annotated[
        list[Path] | None, typer.Option("--recipe", metavar="RECIPE", help="With --cost: its model, too.")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="H,W", help="With --cost: pixels of a slice.")] = None,
) -> None:
    """List the components that recipes can use.

    Example: textseg components network --cost
    """
    if (cost and kind != "network") or ((recipes or size) and not cost):
        raise typer.BadParameter("--cost goes with network; --recipe and --size go with --cost.")
    warn_of_faults()
    from textseg.registry.discovery import installed_registry

    registry = installed_registry()
    if cost:
        from textseg.reports.cost_table import HEADER, cost_note, cost_rows

        print_table(HEADER, list(cost_rows(registry, recipes or [], size)))
        print(cost_note(size))
        return
    rows = [
        (
            c.kind,
            f"{c.name} (now {c.now}, until {c.until})" if c.now else c.name,
            c.plugin,
            f"{c.distribution} {c.version}",
        )
        for c in [*registry.components(kind), *registry.old_names(kind)]
    ]
    print_table(("kind", "name", "plug-in", "distribution"), rows)


@plugins.command("list")
def list_plugins() -> None:
    """List the plug-ins that are installed, and why one is broken.

    Example: textseg plugins list
    """
    from textseg.registry.discovery import installed_registry

    rows = [
        (plugin.name, f"{plugin.distribution} {plugin.version}", f"broken: {plugin.error}" if plugin.error else "ok")
        for plugin in installed_registry().plugins
    ]
    print_table(("plug-in", "distribution", "state"), rows)


@plugins.command()
def doctor(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="These plug-ins only.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Hold each component against its contract, too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="With the traceback of what is broken.")] = False,
) -> None:
    """Look for what is wrong with each plug-in and its components; exit code 1 when something is broken.

    Example: textseg plugins doctor --verbose
    """
    from importlib.metadata import entry_points

    from textseg.cli.doctor import describe, diagnose
    from textseg.errors import PluginError, suggestion

    installed = list(entry_points(group="textseg"))
    known = {entry_point.name for entry_point in installed}
    if unknown := [name for name in names or () if name not in known]:
        raise PluginError(f"There is no plug-in '{unknown[0]}'.{suggestion(unknown[0], known)}")
    found = diagnose(installed, only=names or (), check=check)
    print(describe(found, verbose=verbose))
    if any(diagnosis.broken for diagnosis in found):
        raise typer.Exit(1)


@plugins.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the plug-in and its component, such as my_prompts.")],
    kind: Annotated[str, typer.Option(help="Of component: prompt_generator, fusion, network, ...")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the folder textseg-NAME goes.")] = Path(),
) -> None:
    """Write a plug-in to start from: it installs, passes its own tests and runs in a recipe of its own.

    Example: textseg plugins new my_prompts --kind prompt_generator
    """
    from textseg.cli.new_plugin import write_plugin

    folder, *files = write_plugin(name, kind, output)
    recipe = next(path for path in files if path.suffix == ".yaml")
    print(*files, sep="\n")
    print(
        f"\nInstall it, test it, run it:\n\n  pip install -e {shlex.quote(f'{_local(folder)}[test]')}\n"
        f"  pytest {shlex.quote(str(folder))}\n  textseg run {recipe.stem}"
    )


def _local(folder: Path) -> str:
    """As pip takes it: without a '/', a name would be looked for in the index."""
    return str(folder) if folder.is_absolute() or str(folder).startswith(".") else f"./{folder}"


def warn_of_faults() -> None:
    """A line on stderr for each plug-in or component that is left out."""
    from textseg.registry.discovery import installed_registry

    for fault in installed_registry().faults:
        print(f"Warning: {fault}", file=sys.stderr)
