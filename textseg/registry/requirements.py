"""The packages that a component needs beyond those that its distribution brings."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator


def unmet(requirement: str) -> list[str]:
    """Return what is not installed of a requirement such as "timm>=1.0" or "textseg[wandb]", with its extras."""
    return list(_unmet(requirement))


def _unmet(text: str) -> Iterator[str]:
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    try:
        distribution = importlib.metadata.distribution(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        yield text
        return
    if not requirement.specifier.contains(distribution.version, prereleases=True):
        yield text
    for part in map(Requirement, distribution.requires or ()):
        marker, part.marker = part.marker, None
        of_extra = any(marker.evaluate({"extra": extra}) for extra in requirement.extras) if marker else False
        if marker and of_extra and not marker.evaluate({"extra": ""}):
            yield from _unmet(str(part))
