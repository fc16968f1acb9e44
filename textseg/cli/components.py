"""`textseg components`: what recipes can name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from textseg.cli.tables import print_table


def components(
    kind: Annotated[str | None, Argument(metavar="KIND", help="List this kind only, such as fusion.")] = None,
    cost: Annotated[bool, Option("--cost", help="With network: parameters and operations of each one.")] = False,
    recipes: Annotated[
        list[Path] | None,
        Option("--recipe", metavar="RECIPE", help="With --cost: also the model of this recipe. May be repeated."),
    ] = None,
    size: Annotated[str | None, Option(metavar="H,W", help="With --cost: pixels of a slice. Default: 384,384.")] = None,
) -> None:
    """List the components that recipes can use, and the plug-in that each comes from.

    Example: textseg components network --cost
    """
    if (cost and kind != "network") or ((recipes or size) and not cost):
        raise BadParameter("--cost goes with network; --recipe and --size go with --cost.")
    from textseg.registry.discovery import installed_registry, warn_of_faults

    warn_of_faults()
    registry = installed_registry()
    if cost:
        from textseg.reports.cost_table import HEADER, cost_note, cost_rows

        print_table(HEADER, list(cost_rows(registry, recipes or [], size)))
        print(cost_note(size))
        return
    rows = []
    for listed in (*registry.components(kind), *registry.old_names(kind)):
        renamed = f" (now {listed.now}, until {listed.until})" if listed.now else ""
        rows.append((listed.kind, f"{listed.name}{renamed}", listed.plugin, f"{listed.distribution} {listed.version}"))
    print_table(("kind", "name", "plug-in", "distribution"), rows)
