"""Reader of a plain folder: images/ and masks/ with the same names, MHA, NRRD or NIfTI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from textseg.contracts import Case, LabelMap
from textseg.errors import DataError
from textseg.system import Row, optional_file, read_table, read_yaml, unknown_row
from textseg.volumes import SUFFIXES
from textseg_folders.listing import (
    find_atlas,
    joined_channels,
    map_values,
    nested_volumes,
    patient_of,
    volumes_by_stem,
)

PARTS = {"train": "train", "training": "train", "test": "test"}
PATIENTS = dict.fromkeys(("participant", "person", "pid", "subject"), "patient")  # what people call this column
NO_ROW = Row(0, {})
PICTURES = {".png": "image_folder", ".npz": "image_folder"}  # formats that are read by another data set of this plug-in
KEYS = ("atlas", "labels")  # of labels.yaml


class NiftiFolder:
    """A folder with images/ and masks/, in which each mask has the name of its image, also in subfolders.

    `labels` says what the values in the masks mean: `{1: L5, 2: L4}`, or the name of a label scheme of the atlas.
    Voxels called `ignore` count neither in the loss nor in the scores. A file labels.yaml beside the folders may give
    `atlas` and `labels` instead; where nothing does, values are the atlas's own class indices. `patient_pattern` is a
    regular expression whose first group finds the patient in a name; without it each name is a patient of its own.
    Where images/ holds no volume, its subfolders are searched, and the pattern is required: pat1/ses-1/T2 is a case. A
    table cases.csv with the column `case`, and `patient`, `split` (train or test) and any facts, goes before it.

    `images: {T1: images_t1, T2: images_t2}` reads each channel of an image from a folder of its own, under the same
    names. `channel_suffixes: {T1: _t1, T2: _t2}` reads them from one folder: anna_t1 and anna_t2 are the channels of
    anna. Raises DataError.
    """

    suffixes: tuple[str, ...] = SUFFIXES
    formats = "MHA, NRRD or NIfTI"

    def __init__(
        self,
        *,
        folder: str,
        atlas: str | None = None,
        labels: dict[int, str] | str | None = None,
        images: dict[str, str] | str = "images",
        masks: str = "masks",
        channel_suffixes: dict[str, str] | None = None,
        patient_pattern: str | None = None,
    ) -> None:
        self.folder, self.images, self.masks = Path(folder), images, masks
        self.channel_suffixes = channel_suffixes
        if channel_suffixes is not None and not isinstance(images, str):
            raise DataError("dataset: `images` and `channel_suffixes` both name channels. Give one of them.")
        for key, named in (("images", images), ("channel_suffixes", channel_suffixes)):
            if isinstance(named, dict) and len(set(named.values())) < len(named):
                raise DataError(f"dataset.{key}: two channels have the same files ({', '.join(named.values())}).")
        self.patient_pattern = patient_pattern
        beside = self._labels_file()
        name = atlas or beside.get("atlas")
        if not name:
            raise DataError(
                f"dataset: '{folder}' needs an atlas: write `atlas: NAME`, or put it into labels.yaml there."
            )
        self.atlas = find_atlas(name)
        where = f"{self.folder / 'labels.yaml'}" if labels is None else "dataset.labels"
        self._labels = map_values(beside.get("labels") if labels is None else labels, self.atlas, where)

    def cases(self) -> Sequence[Case]:
        """Return every image, sorted by name; `mask` is None without a mask."""
        return self._cases

    def label_map(self, case: Case) -> LabelMap:
        """Return the label map, which all cases share."""
        return self._labels

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        """Return the split in the column `split` of cases.csv; None without it."""
        if not any("split" in row.cells for row in self._table.values()):
            return None
        parts: dict[str, list[str]] = {"train": [], "test": []}
        for case in self._cases:
            row = self._table.get(case.id, NO_ROW)
            part = row.cells.get("split", "").lower()
            if part not in PARTS:
                raise DataError(
                    f"{self._table_path}{f':{row.line}' * (row is not NO_ROW)}: the split of '{case.id}' is "
                    f"'{row.cells.get('split', '')}'; it is train or test."
                )
            patients = parts[PARTS[part]]
            if case.patient not in patients:
                patients.append(case.patient)
        return parts

    @property
    def _table_path(self) -> Path:
        return self.folder / "cases.csv"

    @cached_property
    def _cases(self) -> tuple[Case, ...]:
        folders = self.images if isinstance(self.images, dict) else {"": self.images}
        at, masks_at = self.folder / next(iter(folders.values())), self.folder / self.masks
        volumes = {name: volumes_by_stem(self.folder / folder, self.suffixes) for name, folder in folders.items()}
        masks = volumes_by_stem(masks_at, self.suffixes)
        if not any(volumes.values()):
            volumes = {
                name: nested_volumes(self.folder / folder, masks_at, self.suffixes) for name, folder in folders.items()
            }
            masks = nested_volumes(masks_at, at, self.suffixes)
        if not any(volumes.values()):
            raise DataError(f"No image in '{at}'. Expected there: {self.formats} files.{_others(at)}")
        images = self._by_case(volumes)
        if lonely := sorted(masks.keys() - images.keys()):
            parent = (at / lonely[0]).parent
            unread = [path.name for path in parent.glob("*") if path.stem == Path(lonely[0]).name]
            why = f" '{unread[0]}' is not read: convert it to {self.formats}." if unread else ""
            raise DataError(f"'{masks[lonely[0]]}' has no image of that name in '{at}'.{why}")
        if unknown := sorted(self._table.keys() - images.keys()):
            raise DataError(unknown_row(self._table_path, self._table[unknown[0]], unknown[0], "image of case", images))
        return tuple(self._case(stem, image, masks.get(stem)) for stem, image in images.items())

    def _by_case(self, volumes: Mapping[str, Mapping[str, Path]]) -> Mapping[str, Path | dict[str, Path]]:
        """Return the image of each case, from the volumes of each folder by name."""
        if isinstance(self.images, dict):
            return joined_channels(volumes)
        (images,) = volumes.values()
        if self.channel_suffixes is None:
            return images
        channels: dict[str, dict[str, Path]] = {name: {} for name in self.channel_suffixes}
        for stem, path in images.items():
            matching = [name for name, suffix in self.channel_suffixes.items() if stem.endswith(suffix)]
            if not matching:
                endings = ", ".join(self.channel_suffixes.values())
                raise DataError(f"{path}: its name must end with the suffix of a channel: {endings}. Or move it.")
            name = max(matching, key=lambda name: len((self.channel_suffixes or {})[name]))
            channels[name][stem.removesuffix(self.channel_suffixes[name])] = path
        return joined_channels(channels)

    def _case(self, stem: str, image: Path | dict[str, Path], mask: Path | None) -> Case:
        row = self._table.get(stem, NO_ROW).cells
        facts = {key: value for key, value in row.items() if key not in ("case", "patient", "split") and value}
        patient = row.get("patient")
        if not patient and self.patient_pattern is None and any("patient" in row.cells for row in self._table.values()):
            raise DataError(
                f"{self._table_path}: it has no patient of case '{stem}', and patients of others. Add it, so that no "
                "patient is on two sides of a split."
            )
        patient = patient or patient_of(stem, self.patient_pattern)
        return Case(id=stem, patient=patient, image=image, mask=mask, facts=facts)

    @cached_property
    def _table(self) -> Mapping[str, Row]:
        """Rows of cases.csv by case; empty without the file."""
        path = optional_file(self._table_path)
        return read_table(path, "case", optional=("patient", "split"), synonyms=PATIENTS) if path else {}

    def _labels_file(self) -> dict[str, Any]:
        path = optional_file(self.folder / "labels.yaml")
        if path is None:
            return {}
        content = read_yaml(path)
        atlas, labels = (content.get(key, "") for key in KEYS) if isinstance(content, dict) else (None, None)
        named = labels if isinstance(labels, dict) else {}
        if not (isinstance(atlas, str) and isinstance(labels, str | dict) and content.keys() <= set(KEYS)) or not all(
            type(value) is int and isinstance(name, str) for value, name in named.items()
        ):
            raise DataError(f"{path}: it may hold `atlas: NAME` and `labels:`, a scheme or lines such as `1: L5`.")
        return dict(content)


def _others(folder: Path) -> str:
    """Return a sentence on files of other formats in a folder; nothing if there are none."""
    suffixes = sorted({path.suffix.lower() for path in folder.glob("**/*") if path.is_file() and path.suffix})
    if not suffixes:
        return ""
    reader = next((f" `use: {PICTURES[suffix]}` reads {suffix}." for suffix in suffixes if suffix in PICTURES), "")
    return f" It has {', '.join(suffixes)} files.{reader} Others: convert them, or write a reader that gives arrays."
