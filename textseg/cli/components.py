"""`textseg components`: what recipes can name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from textseg.cli.tables import print_table

if TYPE_CHECKING:
    from textseg.registry.component import Component


def components(
    kind: Annotated[str | None, Argument(metavar="KIND", help="List this kind only, such as fusion.")] = None,
    name: Annotated[str | None, Argument(metavar="NAME", help="Show this component, such as hasf.")] = None,
    cost: Annotated[bool, Option("--cost", help="With network: parameters and operations of each one.")] = False,
    recipes: Annotated[
        list[Path] | None,
        Option("--recipe", metavar="RECIPE", help="With --cost: also the model of this recipe. May be repeated."),
    ] = None,
    size: Annotated[str | None, Option(metavar="H,W", help="With --cost: pixels of a slice. Default: 384,384.")] = None,
) -> None:
    """List the components that recipes can use, and the plug-in that each comes from; or show one with its settings.

    Example: textseg components fusion hasf
    """
    if (cost and (kind != "network" or name)) or ((recipes or size) and not cost):
        raise BadParameter("--cost goes with network; --recipe and --size go with --cost.")
    from textseg.registry.discovery import installed_registry, warn_of_faults

    warn_of_faults()
    registry = installed_registry()
    if kind and name:
        _show(registry.component(kind, name))
        return
    if cost:
        from textseg.reports.cost_table import HEADER, cost_note, cost_rows

        print_table(HEADER, list(cost_rows(registry, recipes or [], size)))
        print(cost_note(size))
        return
    rows = []
    for listed in (*registry.components(kind), *registry.old_names(kind)):
        renamed = f" (now {listed.now}, until {listed.until})" if listed.now else ""
        rows.append(
            (listed.kind, f"{listed.address}{renamed}", listed.plugin, f"{listed.distribution} {listed.version}")
        )
    print_table(("kind", "name", "plug-in", "distribution"), rows)


def _show(component: Component) -> None:
    """Print the origin, the documentation and the settings of a component."""
    import inspect

    builder, settings = component.load(), component.settings()
    where = component.target if isinstance(component.target, str) else f"{builder.__module__}:{builder.__qualname__}"
    print(f"{component.kind} '{component.name}' of {component.origin}, {where}")
    if component.lacks:
        print(f"It {component.lacks}")
    print(f"\n{inspect.getdoc(builder) or 'It has no docstring.'}\n")
    if not settings:
        print("It has no settings.")
        return
    rows = []
    for name, setting in settings.items():
        default = "required" if setting.default is setting.empty else repr(setting.default)
        rows.append((name, default, inspect.formatannotation(setting.annotation)))
    print_table(("setting", "default", "type"), rows)
