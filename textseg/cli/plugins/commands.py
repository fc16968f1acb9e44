"""The commands of plug-ins: entry points of the group `textseg.commands`, imported only when they are called."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from textseg.registry.component import Plugin

GROUP = "textseg.commands"
PANEL = "Commands of plug-ins"
_SEPARATORS = re.compile(r"[-_.]+")  # in names of distributions, which are all one
_END = re.compile(r"(-\d[^-]*)?(-py\d[\d.]*)?\.(dist|egg)-info$")  # behind the name: version, that of Python, suffix
_POINT = re.compile(r"^([^\s=#;][^=]*?)\s*=", re.MULTILINE)
_FIELD = re.compile(r"^(Name|Version|Summary): *(.*?)\s*$", re.MULTILINE)


class Commands(TyperGroup):
    """The commands of textseg, followed by those of plug-ins, which the help describes by their metadata alone."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in sorted(listed_commands()) if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command of textseg, or what the help shows about one of a plug-in."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in listed_commands():
            return own
        summary = " or ".join(_summary(folder) for folder in listed_commands()[cmd_name])
        return TyperCommand(cmd_name, help=summary, rich_help_panel=PANEL)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name, the command and its arguments; the command of a plug-in is imported now."""
        name = args[0]
        if super().get_command(ctx, name) is None and (points := _chosen(name)):
            return name, load_command(name, points), args[1:]
        return super().resolve_command(ctx, args)


@functools.cache
def listed_commands() -> dict[str, list[str]]:
    """Return the folders of metadata of the distributions that bring each command, for the help.

    `importlib.metadata` would read every distribution in full, which takes as long as the rest of the help. A command
    that it alone finds, as in a zip file, can be called all the same.
    """
    folders: dict[str, str] = {}  # by distribution; the first on the path counts
    for path in sys.path:
        with suppress(OSError):
            for entry in os.scandir(path or "."):
                if entry.name.endswith((".dist-info", ".egg-info")):
                    folders.setdefault(_SEPARATORS.sub("-", _END.sub("", entry.name)).lower(), entry.path)
    commands: dict[str, list[str]] = {}
    for folder in folders.values():
        with suppress(OSError, UnicodeDecodeError):
            groups = Path(folder, "entry_points.txt").read_bytes()
            section = groups.partition(f"[{GROUP}]".encode())[2].partition(b"\n[")[0].decode()
            for name in _POINT.findall(section):
                commands.setdefault(name, []).append(folder)
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
    from importlib.metadata import entry_points

    home, _, short = name.rpartition("/")
    points = list(entry_points(group=GROUP, name=short))
    if not home:
        return points
    from textseg.registry.component import canonical

    return [point for point in points if point.dist and canonical(point.dist.name) == canonical(home)]


def _summary(folder: str) -> str:
    """Return the summary of a distribution, with its name, read from the header of its metadata."""
    text = ""
    for name in ("PKG-INFO", "METADATA"):
        with suppress(OSError):
            text = Path(folder, name).read_text(encoding="utf-8", errors="replace")
    fields = dict(_FIELD.findall(text.partition("\n\n")[0]))
    return f"{fields.get('Summary') or 'A plug-in'} ({fields.get('Name', 'unknown distribution')})."
