"""Masks of other tools, whose levels get the names that a person states. Geometry and label values are kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from textseg.contracts import Atlas, Visibility
from textseg.errors import DataError, PromptError, one_line, suggestion
from textseg.inference.files import Job, Outcome, is_done
from textseg.levels.level_order import Click, Statement, rename_levels, stated_stretch
from textseg.registry.discovery import Registry
from textseg.system.files import write_atomically
from textseg.text.reading import interactive_visibility
from textseg.text.visibility import statement
from textseg.version import __version__
from textseg.volumes.files import Volume, file_hash, read_labels, write_labels
from textseg.volumes.geometry import extent_mm, voxel_at
from textseg.volumes.label_tables import PART, require_names

POINT = re.compile(r"(?P<name>[^@]+)@" + ",".join(rf"\s*(?P<{axis}>[+-]?(?:\d+\.?\d*|\.\d+))\s*" for axis in "xyz"))


@dataclass(frozen=True)
class Point:
    """A person's statement on one structure: its name, and a position in it in mm to the right, anterior, superior."""

    name: str
    ras: tuple[float, float, float]


@dataclass(frozen=True)
class Convention:
    """The meaning of the values in masks: a label scheme, and the atlas that orders its levels.

    The sequence of `atlas` holds only levels that have a value. `names` has a name for each value but 0, `values` the
    value of each name.
    """

    atlas: Atlas
    labels: str
    names: dict[int, str]
    values: dict[str, int]


def find_convention(registry: Registry, labels: str, atlas: str | None) -> Convention:
    """Return a label scheme with its atlas; without the name of an atlas, the only one that has the scheme.

    "atlas" are the class indices of the atlas. Raises DataError for unknown names, and where the atlas isn't clear.
    """
    known = [component.address for component in registry.components("atlas")]
    if atlas is not None and atlas not in known:
        raise DataError(f"--atlas: there is no atlas '{atlas}'.{suggestion(atlas, known)}")
    atlases: list[Atlas] = [registry.build("atlas", name, settings={}) for name in ([atlas] if atlas else known)]
    fitting = [candidate for candidate in atlases if labels == "atlas" or labels in candidate.label_schemes]
    if not fitting:
        schemes = dict.fromkeys(("atlas", *(scheme for candidate in atlases for scheme in candidate.label_schemes)))
        raise DataError(f"--labels: there is no label scheme '{labels}'.{suggestion(labels, schemes)}")
    if len(fitting) > 1:
        names = ", ".join(candidate.name for candidate in fitting)
        raise DataError(f"Several atlases have the labels '{labels}': {names}. Choose one with --atlas.")
    [chosen] = fitting
    if not chosen.ordered:
        raise DataError(f"The structures of atlas '{chosen.name}' have no order, so no levels can be renamed.")
    own = {structure.index: structure.name for structure in chosen.structures}
    scheme = {
        value: name for value, name in (chosen.label_schemes[labels] if labels != "atlas" else own).items() if value
    }
    values = {name: value for value, name in sorted(scheme.items(), reverse=True)}
    levels = tuple(name for name in chosen.sequence if name in values)
    return Convention(replace(chosen, sequence=levels), labels, scheme, values)


def read_point(atlas: Atlas, text: str) -> Point:
    """Read "L4@x,y,z", a structure and a position in mm (RAS). Raises PromptError."""
    match = POINT.fullmatch(text)
    if match is None:
        raise PromptError(f"'{text}' must be NAME@X,Y,Z with a position in mm (RAS), such as L4@-3.5,12,-40.2.")
    names = interactive_visibility(atlas, match["name"]).visible
    if len(names) != 1 or names[0] not in atlas.sequence:
        raise PromptError(f"'{text}' must name one level: {', '.join(atlas.sequence)}.")
    return Point(names[0], (float(match["x"]), float(match["y"]), float(match["z"])))


def check_statement(convention: Convention, visibility: Visibility, case: str) -> None:
    """Raise PromptError if a statement names none of the levels that have a value."""
    if stated_stretch(convention.atlas, visibility.visible) is None:
        raise PromptError(f"{case}: none of the levels is named: {', '.join(convention.atlas.sequence)}.")


def rename_files(
    jobs: Sequence[Job], convention: Convention, stated: Sequence[Visibility | Point]
) -> Iterator[Outcome]:
    """Rename the levels of each mask, and write it with a JSON file; `stated` has a statement for each job.

    After a mask that can't be read, the others are still renamed. A mask of the same file and statement is not made
    again. Raises PromptError for a point that lies on no level.
    """
    for job, statement_of_job in zip(jobs, stated, strict=True):
        try:
            yield _rename(job, convention, statement_of_job)
        except PromptError:
            raise
        except Exception as error:  # whatever a damaged file does to a library: the others must not suffer from it
            yield Outcome(job, "failed", one_line(error, f"{job.input} can't be renamed"))


def _rename(job: Job, convention: Convention, stated: Visibility | Point) -> Outcome:
    path, atlas = job.input, convention.atlas
    if job.fault:
        raise DataError(job.fault)
    if not isinstance(path, Path):
        raise DataError(f"{path.name} is a DICOM series; masks are MHA, NRRD or NIfTI files.")
    words = _words(atlas, stated)
    made = {
        "input": path.name,
        "input_sha256": file_hash(path),
        "atlas": atlas.name,
        "labels": convention.labels,
        "statement": words,
        "textseg": __version__,
    }
    if is_done(job, made):
        return Outcome(job, "there")
    volume = read_labels(path, atlas.plane)
    # 1. Values become class indices; structures that the atlas does not have stay background here.
    present = [value for value in np.unique(volume.array).tolist() if value]
    if unknown := [value for value in present if value not in convention.names]:
        listed = ", ".join(map(str, unknown[:5]))
        raise DataError(
            f"{path}: the labels '{convention.labels}' have no value {listed}. Choose the labels of this mask with "
            "--labels."
        )
    require_names(path, convention.names, present, f"the labels '{convention.labels}'", atlas)
    classes, kept = np.zeros(volume.array.shape, np.uint8), []
    for value in present:
        name = convention.names[value].removesuffix(PART)
        if name in atlas.names:
            classes[volume.array == value] = atlas[name].index
        else:
            kept.append(f"{name} ({value})")
    # 2. Names follow the statement, and changed voxels get the values of their new names.
    renamed, naming = rename_levels(classes, atlas, _statement(atlas, stated, volume))
    result = np.array(volume.array)
    for value in present:
        part = PART if convention.names[value].endswith(PART) else ""
        changed = (volume.array == value) & (renamed != classes)
        for index in np.unique(renamed[changed]).tolist():
            name = atlas.names[index - 1] if index else ""
            result[changed & (renamed == index)] = convention.values.get(name + part, convention.values.get(name, 0))
    # 3. Write mask and JSON file.
    write_labels(result.astype(np.min_scalar_type(int(result.max(initial=0)))), volume.geometry, job.mask)
    remarks = list(naming.contradictions)
    if kept:
        remarks.append(f"atlas '{atlas.name}' does not have {', '.join(kept)}: left as in the mask")
    if naming.unnamed:
        remarks.append(f"without a name, now background: {', '.join(naming.unnamed)}")
    sidecar: dict[str, Any] = {
        "case": job.name,
        "mask": job.mask.name,
        "mask_sha256": file_hash(job.mask),
        "labels": {str(value): convention.names[value] for value in np.unique(result).tolist() if value},
        "said": words,
        "remarks": remarks,
        "changes": list(naming.changes),
        "unnamed": list(naming.unnamed),
        "margins": dict(naming.margins),
        "made": made,
    }
    write_atomically(job.sidecar, json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n")
    return Outcome(job, "written", remarks=remarks)


def _words(atlas: Atlas, stated: Visibility | Point) -> dict[str, Any]:
    if isinstance(stated, Point):
        return {"level": stated.name, "ras_mm": list(stated.ras)}
    return {"visible": statement(atlas, stated.visible)}


def _statement(atlas: Atlas, stated: Visibility | Point, volume: Volume) -> Statement | None:
    if isinstance(stated, Visibility):
        return stated_stretch(atlas, stated.visible)
    voxel = voxel_at(volume.geometry, stated.ras)
    if voxel is None:
        covered = ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, (low, high) in extent_mm(volume.geometry))
        raise PromptError(
            f"The point of {stated.name} lies outside the mask, which covers {covered} mm (RAS). Coordinates in LPS, "
            "such as the ITK units of ITK-SNAP, have the opposite sign in X and Y."
        )
    return Click(stated.name, voxel)
