"""Predictions of the test cases, saved beside the scores, so that pictures need no model afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from textseg.contracts import Atlas, Case, LabelMap, Pixels, Plane
from textseg.data.preparation import map_labels
from textseg.errors import DataError, RunError
from textseg.runs.folder import RunFolder
from textseg.system.commands import evaluate
from textseg.system.files import file_name, write_atomically
from textseg.system.own_files import read_json
from textseg.volumes.files import read_labels, write_labels
from textseg.volumes.geometry import Geometry
from textseg.volumes.scan import read_picture, write_picture

_ClassIndex = Annotated[int, Field(ge=0, le=255)]
_Value = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # of a voxel in an annotation


class Keep(Protocol):
    """Writer of the class indices [S, H, W] of a case, in the geometry of its annotation."""

    def __call__(self, case: Case, predicted: NDArray[np.uint8], geometry: Geometry, label_map: LabelMap) -> None: ...


@dataclass(frozen=True)
class KeptCase:
    """The files of a test case: prediction, scan, and annotation with its label map."""

    id: str
    prediction: Path
    image: Pixels
    mask: Pixels
    label_map: Mapping[int, int]
    plane: Plane = "sagittal"

    def read_prediction(self) -> tuple[NDArray[np.uint8], Geometry]:
        """Return class indices [S, H, W]; raises DataError for a missing or damaged file."""
        labels = read_labels(self.prediction, self.plane)
        return labels.array.astype(np.uint8), labels.geometry

    def read_reference(self) -> NDArray[np.uint8]:
        """Return class indices [S, H, W] of the annotation; raises DataError for a missing file."""
        case = Case(self.id, "", self.image, self.mask)
        return map_labels(read_labels(self.mask, self.plane), self.label_map, case)

    def read_image(self, geometry: Geometry) -> NDArray[np.float32]:
        """Return intensities [S, H, W]; raises DataError for a missing scan, or one of another geometry."""
        volume = read_picture(self.image, self.plane)
        if differences := volume.geometry.grid_differences(geometry):
            raise DataError(
                f"'{self.image}' is not the scan that '{self.prediction}' was made of: {'; '.join(differences)}. "
                "Restore it, or evaluate the run again."
            )
        return volume.array


@dataclass(frozen=True)
class KeptPredictions:
    """Saved predictions: names of the structures by class index, and the test cases by id."""

    names: Mapping[int, str]
    cases: Mapping[str, KeptCase]


class _IndexedCase(BaseModel):
    prediction: str
    image: str
    mask: str
    labels: dict[_Value, _ClassIndex]


class _Index(BaseModel):
    """The content of predictions/cases.json."""

    plane: Plane = "sagittal"
    structures: dict[_ClassIndex, str]
    cases: dict[str, _IndexedCase]


@contextmanager
def keeping(folder: RunFolder, atlas: Atlas) -> Iterator[Keep]:
    """Save the predictions of an evaluation, one file for each case in the folder `predictions`.

    The index of the folder is deleted first and written last, so files of an interrupted evaluation are never read.
    """
    folder.predictions_index.unlink(missing_ok=True)
    cases: dict[str, dict[str, Any]] = {}

    def keep(case: Case, predicted: NDArray[np.uint8], geometry: Geometry, label_map: LabelMap) -> None:
        name = file_name(case.id, ".mha")
        write_labels(predicted, geometry, folder.predictions / name)
        cases[case.id] = {
            "prediction": name,
            "image": str(_file(case.first, folder.predictions / file_name(case.id, "_image.mha"), atlas.plane)),
            "mask": str(_file(case.mask or Path(), folder.predictions / file_name(case.id, "_mask.mha"), atlas.plane)),
            "labels": {str(value): index for value, index in sorted(label_map.items())},
        }

    yield keep
    content = {"plane": atlas.plane, "structures": {str(s.index): s.name for s in atlas.structures}, "cases": cases}
    write_atomically(folder.predictions_index, json.dumps(content, indent=1) + "\n")


def _file(pixels: Pixels, path: Path, plane: Plane) -> Path:
    """Return the file of an image or a mask; one that a reader gave as an array is written to `path`."""
    if isinstance(pixels, Path):
        return pixels.absolute()
    write_picture(read_picture(pixels, plane), path)
    return path.absolute()


def read_kept(folder: RunFolder) -> KeptPredictions:
    """Return the predictions that `keeping` has saved; raises RunError without predictions, or for a damaged index."""
    path = folder.predictions_index
    again = f"Evaluate it again: {evaluate(folder.path)}"
    try:
        content = read_json(path, _Index, again)
        plane, cases = content.get("plane", "sagittal"), {}  # old files without this key are sagittal
        for case_id, case in content["cases"].items():
            prediction = folder.predictions / Path(case["prediction"]).name
            label_map = {int(value): int(index) for value, index in case["labels"].items()}
            cases[case_id] = KeptCase(case_id, prediction, Path(case["image"]), Path(case["mask"]), label_map, plane)
        return KeptPredictions({int(index): name for index, name in content["structures"].items()}, cases)
    except FileNotFoundError:
        raise RunError(f"'{folder.path}' keeps no predictions to draw. {again}") from None
