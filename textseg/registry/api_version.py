"""The API version that a plug-in requires, compared with the versions that this textseg supports."""

from __future__ import annotations

import re
from importlib.metadata import Distribution
from typing import TYPE_CHECKING

from textseg.version import API_VERSION, OLDEST_API_VERSION

if TYPE_CHECKING:
    from textseg.registry.component import Plugin

_ASKED = re.compile(r"^Requires-Dist:\s*textseg\s*\[[^\]]*\bapi-(\d+)", re.MULTILINE | re.IGNORECASE)


def asked_api(distribution: Distribution | None) -> int | None:
    """Return the N of `textseg[api-N]` among the requirements of a distribution; None without such a requirement."""
    if distribution is None:
        return None
    metadata = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    header, _, _ = metadata.partition("\n\n")  # below stands the README
    asked = [int(number) for number in _ASKED.findall(header)]
    return max(asked, default=None)


def misfit(plugin: Plugin, textseg_version: str) -> str | None:
    """Return the reason why a plug-in can't work with this textseg; None if it can."""
    asked = plugin.api
    if asked is None or OLDEST_API_VERSION <= asked <= API_VERSION:
        return None
    known = " to ".join(map(str, sorted({OLDEST_API_VERSION, API_VERSION})))
    if asked > API_VERSION:
        state, newer, older = f"and textseg {textseg_version} has {known}", "textseg", plugin.distribution
    else:
        state = f"which textseg {textseg_version} no longer has; it has {known}"
        newer, older = plugin.distribution, "textseg"
    return f"it asks for API {asked}, {state}. Install a newer {newer}, or an older {older}"
