"""Masks of named structures, and writing them to files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.contracts import Atlas, Visibility
from textseg.errors import DataError, suggestion
from textseg.volumes.dicom_segmentation import write_segmentation
from textseg.volumes.dicom_series import DicomSeries
from textseg.volumes.files import write_labels
from textseg.volumes.geometry import Geometry, restore
from textseg.volumes.label_tables import SLICER, Label, nifti_extension, slicer_header
from textseg.volumes.labels import convert_labels


@dataclass(frozen=True)
class Mask:
    """Named structures in a volume.

    `array` holds class indices [S, H, W] in the canonical order of `textseg.volumes.files`; `names` says what
    they mean.
    `confidence` is the confidence of the model in each structure, from 0 to 1. `visibility` is the statement of the
    prompts or of the person who named the levels, None if there is none. `remarks` are sentences on reasons to doubt
    the result. Where levels were put in order, `changes` are sentences on structures that were renamed, `unnamed` the
    pieces that became background, and `margins` says how sure each name is: see `textseg.levels.level_order.Naming`.
    """

    array: NDArray[np.uint8] = field(repr=False)
    geometry: Geometry
    atlas: Atlas
    confidence: Mapping[str, float]
    visibility: Visibility | None
    remarks: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    margins: Mapping[str, float] = field(default_factory=dict)

    @property
    def names(self) -> dict[int, str]:
        """Name of each class index."""
        return {structure.index: structure.name for structure in self.atlas.structures}

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Size of each structure, in millilitres."""
        voxel_ml = math.prod(self.geometry.spacing) / 1000
        counts = np.bincount(self.array.ravel(), minlength=self.atlas.class_count)
        return {name: float(counts[index]) * voxel_ml for index, name in self.names.items()}

    def values(self, labels: str = "atlas") -> dict[str, int]:
        """Return the value of each structure in a mask file; see `label_values`."""
        return label_values(self.atlas, labels)

    def labelled(self, labels: str = "atlas") -> NDArray[Any]:
        """Return the array with the values of `labels`."""
        if labels == "atlas":
            return self.array
        target = {value: name for name, value in self.values(labels).items()}
        return convert_labels(self.array, self.names, target)[0]

    def save(self, path: Path | str, labels: str = "atlas") -> None:
        """Write it as MHA, NRRD or NIfTI in exactly the geometry of the volume. Raises DataError.

        NIfTI has the names in its header, ".seg.nrrd" names, codes and colours as 3D Slicer reads them.
        """
        array, name = self.labelled(labels), Path(path).name.lower()
        table = self.table(labels)
        if name.endswith(SLICER):
            header = slicer_header(restore(array, self.geometry), table)
            write_labels(array, self.geometry, path, header=header, flat=False)
        elif name.endswith((".nii", ".nii.gz")):
            write_labels(array, self.geometry, path, extension=nifti_extension(table))
        else:
            write_labels(array, self.geometry, path)

    def save_dicom(self, path: Path | str, series: DicomSeries, *, model: str = "textseg") -> None:
        """Write it as a DICOM segmentation of the series it was made of. Raises DataError.

        Segments are numbered by class index. Needs the extra `dicom`.
        """
        write_segmentation(restore(self.array, self.geometry), self.table(), series, Path(path), model=model)

    def table(self, labels: str = "atlas") -> list[Label]:
        """Return each value with its structure, in the order of the values."""
        values = self.values(labels)
        structures = sorted(self.atlas.structures, key=lambda structure: values[structure.name])
        return [Label(values[structure.name], structure) for structure in structures]


def label_values(atlas: Atlas, labels: str) -> dict[str, int]:
    """Return the value of each structure in a mask file: its class index ("atlas"), or that of a label scheme.

    Raises DataError for a scheme that there is not, or that has no value for a structure.
    """
    schemes = atlas.label_schemes
    if labels == "atlas":
        return {structure.name: structure.index for structure in atlas.structures}
    if labels not in schemes:
        raise DataError(f"There are no labels '{labels}'.{suggestion(labels, ['atlas', *schemes])}")
    values = {name: value for value, name in sorted(schemes[labels].items(), reverse=True)}
    if missing := [name for name in atlas.names if name not in values]:
        raise DataError(
            f"The labels '{labels}' have no value for {', '.join(missing)} of atlas '{atlas.name}'. Choose others, or "
            "'atlas'."
        )
    return {name: values[name] for name in atlas.names}
