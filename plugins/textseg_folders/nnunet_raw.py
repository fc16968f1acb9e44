"""Reader of nnU-Net's raw layout: imagesTr, labelsTr, dataset.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from textseg.contracts import Case, LabelMap
from textseg.errors import DataError
from textseg_folders.listing import BACKGROUND, find_atlas, map_values, patient_of, volumes_by_stem

CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


class NnunetRaw:
    """A folder Dataset<number>_<name> of nnU-Net (version 1 or 2), read without changes.

    The names of the labels in dataset.json must be those of the atlas, in upper or lower case; `labels` translates
    those that are not: `{vertebra_L5: L5}`. With imagesTs and labelsTs there is an official split. One channel, no
    regions. `patient_pattern` as in `nifti_folder`. Raises DataError.
    """

    def __init__(
        self, *, folder: str, atlas: str, labels: dict[str, str] | None = None, patient_pattern: str | None = None
    ) -> None:
        self.folder, self.patient_pattern = Path(folder), patient_pattern
        self.atlas = find_atlas(atlas)
        self._names = labels or {}

    def cases(self) -> Sequence[Case]:
        """Return training and test cases, sorted by name; `mask_path` is None without a mask."""
        return sorted((*self._part("Tr"), *self._part("Ts")), key=lambda case: case.id)

    def label_map(self, case: Case) -> LabelMap:
        """Return the label map of dataset.json, which all cases share."""
        return self._labels

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        """Return imagesTr as train and imagesTs as test; None if the test cases have no masks."""
        test = [case for case in self._part("Ts") if case.mask_path is not None]
        if not test:
            return None
        parts = {"train": self._part("Tr"), "test": test}
        return {name: sorted({case.patient for case in cases}) for name, cases in parts.items()}

    def _part(self, part: str) -> list[Case]:
        images: dict[str, Path] = {}
        folder = self.folder / f"images{part}"
        for stem, path in volumes_by_stem(folder).items():
            match = CHANNEL.fullmatch(stem)
            if match is None or match["channel"] != "0000":
                raise DataError(f"{path}: its name must end in _0000; textseg reads one channel and knows no others.")
            images[match["case"]] = path
        if part == "Tr" and not images:
            raise DataError(f"No volume in '{folder}'. Expected: imagesTr/<case>_0000.nii.gz, labelsTr/<case>.nii.gz.")
        masks = volumes_by_stem(self.folder / f"labels{part}")
        if lonely := sorted(masks.keys() - images.keys()):
            raise DataError(f"'{masks[lonely[0]]}' has no image '{lonely[0]}_0000' in '{folder}'.")
        return [
            Case(id=name, patient=patient_of(name, self.patient_pattern), image_path=path, mask_path=masks.get(name))
            for name, path in images.items()
        ]

    @cached_property
    def _labels(self) -> LabelMap:
        path = self.folder / "dataset.json"
        own = {name.lower(): name for name in (BACKGROUND, *self.atlas.names)}
        values: dict[int, str] = {}
        for name, value in self._described(path).items():
            if not isinstance(value, int):
                raise DataError(
                    f"{path}: label '{name}' is {value}; textseg reads one value for each label, no regions."
                )
            values[value] = self._names.get(name) or own.get(name.lower(), name)
        return map_values(values, self.atlas, f"{path} (translate names with dataset.labels)")

    def _described(self, path: Path) -> dict[str, Any]:
        """Return values by name, for both versions of dataset.json."""
        try:
            labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
            if all(key.isdecimal() for key in labels):
                return {str(name): int(value) for value, name in labels.items()}
            return {name: int(value) if isinstance(value, str) else value for name, value in labels.items()}
        except FileNotFoundError:
            raise DataError(f"'{path}' does not exist; nnU-Net's layout has it.") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"'{path}' must be JSON with `labels`: a value for each name.") from error
