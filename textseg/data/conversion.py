"""Conversion of mask files from one label scheme to another, by name; nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from textseg.errors import DataError, PluginError, suggestion
from textseg.registry.discovery import installed_registry
from textseg.volumes.files import read_labels, write_labels
from textseg.volumes.label_tables import require_names
from textseg.volumes.labels import Scheme, convert_labels


def known_schemes() -> Mapping[str, Scheme]:
    """Return the label schemes of all installed atlases, by name.

    Atlases of different regions may name different values of one scheme. Raises PluginError for two names of a value.
    """
    registry = installed_registry()
    schemes: dict[str, dict[int, str]] = {}
    for component in registry.components("atlas"):
        for name, scheme in registry.build("atlas", component.address, settings={}).label_schemes.items():
            whole = schemes.setdefault(name, {})
            for value, structure in scheme.items():
                if whole.setdefault(value, structure) != structure:
                    raise PluginError(
                        f"Two atlases have a label scheme '{name}', and differ in the value {value}: '{whole[value]}' "
                        f"and '{structure}' of {component.origin}. Rename one of the schemes."
                    )
    return schemes


def convert_file(path: Path, output: Path, source: str, target: str, *, drop: bool = False) -> Mapping[int, str | None]:
    """Write the mask `path` in another scheme with the same geometry; return what became background.

    Raises DataError for an unknown scheme and, without `drop`, for a structure that the target scheme lacks.
    """
    schemes = known_schemes()
    for name in (source, target):
        if name not in schemes:
            raise DataError(f"There is no label scheme '{name}'.{suggestion(name, schemes)}")
    if output.exists():
        raise DataError(f"'{output}' exists. Name another file.")
    volume = read_labels(path)
    present = np.unique(volume.array).tolist()
    require_names(path, schemes[source], present, f"the labels '{source}'")
    converted, lost = convert_labels(volume.array, schemes[source], schemes[target])
    if lost and not drop:
        listed = ", ".join(f"{value} ({name or f'no value of {source}'})" for value, name in lost.items())
        raise DataError(f"'{path}' holds {listed}, without a counterpart in {target}. With --drop it is left out.")
    write_labels(converted, volume.geometry, output)
    return lost
