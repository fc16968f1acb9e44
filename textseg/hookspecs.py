"""Every hook of textseg, on one page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from textseg.registry import Register

hookspec = pluggy.HookspecMarker("textseg")
hookimpl = pluggy.HookimplMarker("textseg")


@hookspec
def textseg_register(register: Register) -> None:
    """Tell textseg which components this plug-in brings: `register.<kind>(name, builder)`.

    A builder is an object or a string "module:name"; the string keeps the module unimported until a recipe needs it.
    """
