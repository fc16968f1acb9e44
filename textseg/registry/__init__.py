"""Plug-ins and their components: discovery, checks, building.

May import `volumes` and the packages below it. It must import fast, because every command needs it. Offers plug-ins the
type of `register`, and the registry of installed components.
"""

from __future__ import annotations

from textseg.registry.component import cause
from textseg.registry.discovery import Register, Registry, installed_registry

__all__ = ["Register", "Registry", "cause", "installed_registry"]
