"""Reader of nnU-Net's raw layout: imagesTr, labelsTr, dataset.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from textseg.contracts import Case, LabelMap
from textseg.errors import DataError, suggestion
from textseg.system import read_json
from textseg_folders.listing import (
    find_atlas,
    joined_channels,
    map_values,
    patient_of,
    volumes_by_stem,
)

CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


class NnunetRaw:
    """A folder Dataset<number>_<name> of nnU-Net (version 1 or 2), read without changes.

    The names of the labels in dataset.json must be those of the atlas, in upper or lower case; `labels` translates
    those that are not: `{vertebra_L5: L5}`. With imagesTs and labelsTs there is an official split. The channels are
    those that dataset.json names. No regions. Voxels of nnU-Net's label `ignore` count neither in the loss nor in the
    scores. `patient_pattern` as in `nifti_folder`. Raises DataError.
    """

    def __init__(
        self, *, folder: str, atlas: str, labels: dict[str, str] | None = None, patient_pattern: str | None = None
    ) -> None:
        self.folder, self.patient_pattern = Path(folder), patient_pattern
        self.atlas = find_atlas(atlas)
        self._names = labels or {}

    def cases(self) -> Sequence[Case]:
        """Return training and test cases, sorted by name; `mask` is None without a mask."""
        return sorted((*self._part("Tr"), *self._part("Ts")), key=lambda case: case.id)

    def label_map(self, case: Case) -> LabelMap:
        """Return the label map of dataset.json, which all cases share."""
        return self._labels

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        """Return imagesTr as train and imagesTs as test; None if the test cases have no masks."""
        test = [case for case in self._part("Ts") if case.mask is not None]
        if not test:
            return None
        parts = {"train": self._part("Tr"), "test": test}
        return {name: sorted({case.patient for case in cases}) for name, cases in parts.items()}

    def _part(self, part: str) -> list[Case]:
        folder, names = self.folder / f"images{part}", self._channels
        images: dict[str, dict[str, Path]] = {name: {} for name in names.values()}
        for stem, path in volumes_by_stem(folder).items():
            match = CHANNEL.fullmatch(stem)
            if match is None or match["channel"] not in names:
                possible = ", ".join(f"_{number}" for number in names)
                raise DataError(f"{path}: its name must end in the number of a channel of dataset.json: {possible}.")
            images[names[match["channel"]]][match["case"]] = path
        if not any(images.values()):
            if part == "Tr":
                expected = "imagesTr/<case>_0000.nii.gz, labelsTr/<case>.nii.gz"
                raise DataError(f"No volume in '{folder}'. Expected: {expected}.")
            return []
        cases = joined_channels(images)
        masks = volumes_by_stem(self.folder / f"labels{part}")
        if lonely := sorted(masks.keys() - cases.keys()):
            raise DataError(f"'{masks[lonely[0]]}' has no image '{lonely[0]}_0000' in '{folder}'.")
        return [
            Case(
                id=name,
                patient=patient_of(name, self.patient_pattern),
                image=channels if len(names) > 1 else next(iter(channels.values())),
                mask=masks.get(name),
            )
            for name, channels in cases.items()
        ]

    @cached_property
    def _channels(self) -> dict[str, str]:
        """Return the name of each channel by its number, such as "0000", for both versions of dataset.json."""
        path = self.folder / "dataset.json"
        content = read_json(path) if path.exists() else {}
        stated = (content.get("channel_names") or content.get("modality")) if isinstance(content, dict) else None
        if stated is None:
            return {"0000": "0"}
        if not isinstance(stated, dict) or not stated or not all(number.isdecimal() for number in stated):
            raise DataError(f'{path}: `channel_names` must give a name for each number, such as {{"0": "T2"}}.')
        names = {f"{int(number):04}": str(name) for number, name in stated.items()}
        if len(set(names.values())) < len(names):  # nnU-Net uses them for normalisation, and two may be "MRI"
            names = {number: f"{name} {int(number)}" for number, name in names.items()}
        return dict(sorted(names.items()))

    @cached_property
    def _labels(self) -> LabelMap:
        path = self.folder / "dataset.json"
        values: dict[int, str] = {}
        described = self._described(path)
        for name, value in described:
            if type(value) is not int:
                raise DataError(
                    f"{path}: label '{name}' is {value}; textseg reads one value for each label, no regions."
                )
            structure = self._names.get(name, name)
            if own := self.atlas.find(structure):
                structure = own.name
            if values.setdefault(value, structure) != structure:
                raise DataError(f"{path}: value {value} is '{values[value]}' and '{structure}'. Keep one of the names.")
        label_map = map_values(values, self.atlas, f"{path} (translate names with dataset.labels)")
        names = [name for name, _ in described]
        if unknown := [name for name in self._names if name not in names]:
            possible = suggestion(unknown[0], names)
            raise DataError(f"dataset.labels: '{path}' has no label '{unknown[0]}'.{possible}")
        return label_map

    def _described(self, path: Path) -> list[tuple[str, Any]]:
        """Return pairs of name and value, for both versions of dataset.json."""
        if not path.exists():
            raise DataError(f"'{path}' does not exist; nnU-Net's layout has it.")
        content = read_json(path)
        labels = content.get("labels") if isinstance(content, dict) else None
        if not isinstance(labels, dict):
            raise DataError(f"'{path}' must be JSON with `labels`: a value for each name.")
        pairs = [(str(name), value) for name, value in labels.items()]
        if all(name.isdecimal() for name in labels):
            pairs = [(str(name), value) for value, name in labels.items()]
        return [(name, int(v) if isinstance(v, str) and v.isdecimal() else v) for name, v in pairs]
