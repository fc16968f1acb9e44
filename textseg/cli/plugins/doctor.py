"""`textseg plugins doctor`: faults of the installed plug-ins."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Exit, Option


def doctor(
    names: Annotated[list[str] | None, Argument(metavar="NAME", help="Only these plug-ins.")] = None,
    check: Annotated[bool, Option("--check", help="Also test each component against its contract.")] = False,
    verbose: Annotated[bool, Option("--verbose", help="Print the traceback of each fault.")] = False,
) -> None:
    """Look for faults in each plug-in and its components; exit code 1 when something is broken.

    Example: textseg plugins doctor --verbose
    """
    from importlib.metadata import entry_points

    from textseg.cli.plugins.commands import GROUP
    from textseg.cli.plugins.diagnosis import describe, diagnose
    from textseg.errors import PluginError, suggestion
    from textseg.system.torch_builds import usable_torchvision

    installed = [*entry_points(group="textseg"), *entry_points(group=GROUP)]
    known = {entry_point.name for entry_point in installed}
    if unknown := [name for name in names or () if name not in known]:
        raise PluginError(f"There is no plug-in '{unknown[0]}'.{suggestion(unknown[0], known)}")
    diagnoses = diagnose(installed, only=names or (), check=check)
    print(describe(diagnoses, verbose=verbose, checked=check))
    usable_torchvision()  # warns of a build that does not fit torch
    if any(diagnosis.broken for diagnosis in diagnoses):
        raise Exit(1)
