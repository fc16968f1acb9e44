"""`textseg plugins list`: the plug-ins that are installed."""

from __future__ import annotations

from textseg.cli.tables import print_table


def list_plugins() -> None:
    """List the installed plug-ins; for a broken one, the cause.

    Example: textseg plugins list
    """
    from textseg.registry.discovery import installed_registry

    rows = [
        (plugin.name, f"{plugin.distribution} {plugin.version}", f"broken: {plugin.error}" if plugin.error else "ok")
        for plugin in installed_registry().plugins
    ]
    print_table(("plug-in", "distribution", "state"), rows)
