"""Functions for any folder of volumes: files by stem, patients, and the structures of mask values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from textseg.contracts import IGNORED, Atlas, LabelMap
from textseg.errors import DataError, PluginError, suggestion
from textseg.registry import installed_registry
from textseg.volumes import SUFFIXES, find_volumes

BACKGROUND = "background"
IGNORE = "ignore"  # nnU-Net's name of the label whose voxels count nowhere
NO_STRUCTURES = {BACKGROUND: 0, IGNORE: IGNORED}  # the classes of these names


def find_atlas(name: str) -> Atlas:
    """Return the installed atlas of that name. Raises DataError."""
    registry = installed_registry()
    names = [component.name for component in registry.components("atlas")]
    if name not in names:
        raise DataError(f"dataset.atlas: there is no atlas '{name}'.{suggestion(name, names)}")
    try:
        atlas: Atlas = registry.build("atlas", name, settings={})
    except PluginError as error:
        raise DataError(f"dataset.atlas: {error}") from error
    return atlas


def volumes_by_stem(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """Return the files with these suffixes directly in a folder, sorted by stem, without hidden files.

    Raises DataError for two with one stem.
    """
    inside = sorted(folder.iterdir()) if folder.is_dir() else ()
    return _by_stem(folder, (path for path in inside if not path.name.startswith(".")), suffixes)


def nested_volumes(folder: Path, beside: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """Return the volumes below a folder by their paths without suffix, such as "pat1/ses-1/T2"; none in `beside`.

    Raises DataError for two with one path, and for a folder that can't be listed.
    """
    if not folder.is_dir():
        return {}
    paths = list(find_volumes(folder, frozenset({os.path.realpath(beside)}), suffixes=suffixes))
    if closed := [path for path in paths if not path.name.lower().endswith(suffixes)]:
        raise DataError(f"The folder '{closed[0]}' can't be listed. Make it readable, or move it out of '{folder}'.")
    return _by_stem(folder, paths, suffixes)


def _by_stem(folder: Path, paths: Iterable[Path], suffixes: tuple[str, ...]) -> dict[str, Path]:
    volumes: dict[str, Path] = {}
    for path in paths:
        suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), None)
        if suffix is None:
            continue
        name = path.relative_to(folder).as_posix()[: -len(suffix)]
        if (first := volumes.setdefault(name, path)) is not path:
            raise DataError(
                f"'{path.parent}' holds '{first.name}' and '{path.name}', which are the same case. Keep one."
            )
    return volumes


def joined_channels(images: Mapping[str, Mapping[str, Path]]) -> dict[str, dict[str, Path]]:
    """Return the files of each case by channel, in the order of the channels, from the files of each channel by case.

    Raises DataError for a channel of which no case has a file.
    """
    cases: dict[str, dict[str, Path]] = {}
    for channel, files in images.items():
        if not files:
            raise DataError(f"No case has a file of channel '{channel}'. Add the files, or leave the channel out.")
        for case, path in files.items():
            cases.setdefault(case, {})[channel] = path
    return dict(sorted(cases.items()))


def patient_of(stem: str, pattern: str | None) -> str:
    """Return the patient in a stem: the group of `pattern`, or the whole stem without a pattern. Raises DataError.

    In subfolders a pattern is required: nothing tells pat1/T1, pat1/T2 from T1/pat1, T2/pat1.
    """
    if pattern is None:
        if "/" in stem:
            first, _, rest = stem.partition("/")
            raise DataError(
                f"Case '{stem}' lies in a subfolder, and its patient may be '{first}' or '{rest}'. Write "
                f"`patient_pattern: '^([^/]+)/'` in the recipe for '{first}', `patient_pattern: '/(.+)$'` for "
                f"'{rest}', or give the patient of each case in cases.csv."
            )
        return stem
    try:
        match = re.search(pattern, stem)
    except re.error as error:
        raise DataError(f"dataset.patient_pattern: '{pattern}' is no regular expression ({error}).") from error
    if match is None or not match.groups() or not match.group(1):
        raise DataError(
            f"dataset.patient_pattern: '{pattern}' finds no patient in '{stem}'. Its first group must match the "
            "patient's part of each name, as in '^(\\d+)_'."
        )
    return match.group(1)


def map_values(labels: Mapping[int, str] | str | None, atlas: Atlas, where: str) -> LabelMap:
    """Class indices of file values: by the names that `labels` gives them, by a scheme, or the atlas's own indices.

    Names are those of the atlas and their synonyms, `background`, and `ignore` for voxels that count neither in loss
    nor scores, in upper or lower case. Raises DataError for another name; names that a scheme has and the atlas lacks
    are background.
    """
    if labels is None:
        return {index: index for index in range(atlas.class_count)}
    if isinstance(labels, str):
        if labels not in atlas.label_schemes:
            possible = suggestion(labels, atlas.label_schemes)
            raise DataError(f"{where}: atlas '{atlas.name}' has no label scheme '{labels}'.{possible}")
        scheme = atlas.label_schemes[labels]
        return {0: 0, **{value: atlas[name].index if name in atlas.names else 0 for value, name in scheme.items()}}
    classes = {0: 0}
    for value, name in labels.items():
        structure = atlas.find(name)
        index = structure.index if structure else NO_STRUCTURES.get(name.lower())
        if index is None:
            possible = suggestion(name, (*NO_STRUCTURES, *atlas.names))
            raise DataError(f"{where}: value {value} is '{name}', which atlas '{atlas.name}' lacks.{possible}")
        if value < 0:
            raise DataError(f"{where}: {value} is no value of a mask; they are whole numbers from 0.")
        if value == 0 and index:
            raise DataError(f"{where}: 0 is the background, and can't be '{name}'.")
        classes[value] = index
    return classes
