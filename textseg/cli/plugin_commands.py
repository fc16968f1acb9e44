"""The commands of plug-ins: entry points of the group `textseg.commands`, imported only when they are called."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from textseg.registry.component import Plugin

GROUP = "textseg.commands"
PANEL = "Commands of plug-ins"
_FIELD = re.compile(r"^(Name|Version|Summary): *(.*?)\s*$", re.MULTILINE)


class Commands(TyperGroup):
    """The commands of textseg, followed by those of plug-ins, which the help describes by their metadata alone."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in sorted(installed_commands()) if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command of textseg, or what the help shows about one of a plug-in."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in installed_commands():
            return own
        summary = " or ".join(_summary(point) for point in installed_commands()[cmd_name])
        return TyperCommand(cmd_name, help=summary, rich_help_panel=PANEL)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name, the command and its arguments; the command of a plug-in is imported now."""
        name = args[0]
        points = _chosen(name)
        if points and super().get_command(ctx, name) is None:
            return name, load_command(name, points), args[1:]
        return super().resolve_command(ctx, args)


@functools.cache
def installed_commands() -> dict[str, list[EntryPoint]]:
    """Return the entry points of the commands of plug-ins, by name."""
    commands: dict[str, list[EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        commands.setdefault(point.name, []).append(point)
    return commands


def load_command(name: str, points: Sequence[EntryPoint]) -> Any:
    """Return the command of a plug-in, imported now. Raises PluginError if it is broken or has rivals."""
    from textseg.errors import PluginError
    from textseg.registry.discovery import plugin_of

    plugins = [plugin_of(point) for point in points]
    if len(plugins) > 1:
        raise PluginError(rivalry(name, plugins))
    return imported_command(points[0], plugins[0])


def rivalry(name: str, plugins: Sequence[Plugin]) -> str:
    """Return the message about plug-ins that bring a command of one name."""
    from textseg.registry.component import canonical
    from textseg.system.commands import shell

    ways = [shell("textseg", f"{canonical(plugin.distribution)}/{name}") for plugin in plugins]
    return (
        f"{len(plugins)} plug-ins bring the command '{name}': {' and '.join(each.origin for each in plugins)}. "
        f"Write {' or '.join(ways)}, or uninstall all but one of them."
    )


def imported_command(point: EntryPoint, plugin: Plugin) -> Any:
    """Return the command of an entry point, imported now. Raises PluginError if it is broken."""
    from typer import Typer
    from typer.main import get_command

    from textseg.errors import PluginError
    from textseg.registry.api_version import misfit
    from textseg.registry.component import cause
    from textseg.system.interruptions import is_interruption
    from textseg.version import __version__

    whose = f"The command '{point.name}' of {plugin.origin}"
    if why := misfit(plugin, __version__):
        raise PluginError(f"{whose} can't be used: {why}.")
    try:
        application = point.load()
        if not isinstance(application, Typer):
            raise TypeError(f"a command is a typer.Typer, not {type(application).__name__}")
        return get_command(application)
    except BaseException as error:
        if is_interruption(error):
            raise
        raise PluginError(f"{whose} is broken: '{point.value}': {cause(error)}.") from error


def _chosen(name: str) -> list[EntryPoint]:
    """Return the entry points of a command, which "distribution/name" may choose among rivals."""
    home, _, short = name.rpartition("/")
    points = installed_commands().get(short, [])
    if not home:
        return points
    from textseg.registry.component import canonical

    return [point for point in points if point.dist and canonical(point.dist.name) == canonical(home)]


def _summary(point: EntryPoint) -> str:
    """Return the summary of the distribution of a command, with its name, read from the header of its metadata."""
    text = point.dist and (point.dist.read_text("METADATA") or point.dist.read_text("PKG-INFO"))
    fields = dict(_FIELD.findall((text or "").partition("\n\n")[0]))
    return f"{fields.get('Summary') or 'A plug-in'} ({fields.get('Name', 'unknown distribution')})."
