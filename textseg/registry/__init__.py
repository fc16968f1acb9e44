"""Plug-ins and their components: how they are found, checked and built.

Imports `hookspecs`, `system` and below; it must stay light, since every command needs it.
"""

from __future__ import annotations

from textseg.registry.component import cause
from textseg.registry.discovery import Register, Registry, installed_registry

__all__ = ["Register", "Registry", "cause", "installed_registry"]
