"""The slice store: cases as slices of one size, memory-mapped, one folder per case, named by its content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textseg.contracts import IGNORED, Case, LabelMap, Pixels, Plane
from textseg.data.slice_geometry import SliceGeometry, prepare_volume
from textseg.errors import DataError, one_line
from textseg.recipe.schema import PreparationSettings
from textseg.system.files import new_folder, replacing, write_atomically
from textseg.system.messages import counted
from textseg.system.own_files import read_json
from textseg.volumes.files import Volume, file_hash, read_labels
from textseg.volumes.geometry import Geometry
from textseg.volumes.scan import read_scan, scan_hash

VERSION = 3  # of the preparation; raise it whenever the prepared slices of the same volume would change
ARRAYS = ("image.npy", "mask.npy")  # beside case.json in the folder of a case
MAPPED = 64  # arrays that a process keeps mapped
LISTED = 10  # unknown values, or faulty cases, that a message shows


@dataclass(frozen=True)
class PreparedCase:
    """A case in the slice store. Only the arrays used last stay mapped: a process may hold few files open."""

    case: Case
    folder: Path
    key: str  # content address
    slice_geometry: SliceGeometry
    spacing_mm: tuple[float, float, float]  # of the prepared slices: slice, row, column distance
    native_spacing_mm: tuple[float, float, float]
    intensities: tuple[tuple[float, ...], ...]  # percentiles of each channel: see `textseg.data.slice_geometry`
    present: tuple[tuple[int, ...], ...]  # class indices in each prepared slice
    image_hash: str  # of the file with the image, or of those with its channels
    channel_names: tuple[str, ...] = ("image",)
    plane: Plane = "sagittal"

    @property
    def slice_count(self) -> int:
        return len(self.present)

    @property
    def image(self) -> NDArray[np.float16]:
        """Prepared slices [S, C, H, W], memory-mapped; raises DataError where the store is damaged."""
        return self._map("image.npy")

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Prepared class indices [S, H, W], memory-mapped; raises DataError where the store is damaged."""
        return self._map("mask.npy")

    def native_mask(self, label_map: LabelMap) -> tuple[NDArray[np.uint8], Geometry]:
        """Read the class indices [S, H_native, W_native] and the geometry from the file of the mask."""
        labels = read_labels(_mask(self.case), self.plane)
        return map_labels(labels, label_map, self.case), labels.geometry

    def _map(self, name: str) -> NDArray[Any]:
        try:
            return _mapped(self.folder / name)
        except Exception as error:
            raise DataError(
                f"Case '{self.case.id}': its prepared slices in '{self.folder / name}' can't be read: {error}. Delete "
                f"'{self.folder}'; the next run prepares the case again."
            ) from error


@lru_cache(maxsize=MAPPED)
def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def prepare(
    cases: Sequence[Case],
    label_map: Callable[[Case], LabelMap],
    settings: PreparationSettings,
    cache: Path,
    *,
    plane: Plane = "sagittal",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PreparedCase]:
    """Put every case into the store under `cache`, unless it is there already; the order of `cases` stays.

    `plane` is that of the atlas. Stored slices are compared with their checksums; damaged ones are prepared again, with
    a line on stderr.

    Two processes may prepare the same case: each writes its own folder and the first to finish gives its name. Memory
    holds as many volumes as there are threads. Raises DataError that names the case, or its file where that can't be
    read.
    """
    prepared: list[PreparedCase] = []
    faults: list[str] = []
    maps = [label_map(case) for case in cases]

    def attempt(case: Case, values: LabelMap) -> PreparedCase | str:
        try:
            return _prepare_case(case, values, settings, cache, plane)
        except Exception as error:  # whatever a damaged file does to a library: all bad cases are named at once
            return one_line(error, f"Case '{case.id}' can't be prepared")

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, result in enumerate(pool.map(attempt, cases, maps), start=1):
            if isinstance(result, str):
                faults.append(result)
            else:
                prepared.append(result)
            progress(done, len(cases))
    if not faults:
        faults = list(missing_channels({case.case.id: case.channel_names for case in prepared}).values())
    if faults:
        heading = [f"{len(faults)} of {counted(len(cases), 'case')} can't be prepared:"] if len(faults) > 1 else []
        rest = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        raise DataError("\n  ".join([*heading, *faults[:LISTED], *rest]))
    return prepared


def missing_channels(channels: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return a sentence on each case, by id, that has not all channels of the data set, or has them in another order.

    `channels` are the names of the channels of each case.
    """
    counts = Counter(tuple(names) for names in channels.values())
    largest = max(counts, key=lambda names: (len(names), counts[names]), default=())
    # The channels that all cases together have, where one case has them all; else those that most cases have.
    together = {name for names in counts for name in names}
    expected = largest if set(largest) == together else max(counts, key=lambda names: counts[names], default=())
    faults = {}
    for case_id, names in channels.items():
        if set(names) < set(expected):
            lacking = ", ".join(f"'{name}'" for name in expected if name not in names)
            faults[case_id] = f"Case '{case_id}' has no channel {lacking}; the others have {', '.join(expected)}."
        elif tuple(names) != expected:
            faults[case_id] = f"Case '{case_id}' has the channels {', '.join(names)}, the others {', '.join(expected)}."
    return faults


def map_labels(labels: Volume, label_map: LabelMap, case: Case) -> NDArray[np.uint8]:
    """Map the values of a file to class indices [S, H, W]; raises DataError for a value that the map lacks."""
    values = [int(value) for value in np.unique(labels.array)]
    if unknown := [value for value in values if value not in label_map]:
        shown = ", ".join(map(str, unknown[:LISTED])) + (", ..." if len(unknown) > LISTED else "")
        raise DataError(
            f"Case '{case.id}': the mask '{case.mask}' holds {shown}, and the data set's labels name only "
            f"{', '.join(map(str, sorted(label_map)))}. Correct the mask; is it one of this data set?"
        )
    classes = np.zeros(labels.array.shape, dtype=np.uint8)
    for value in values:
        classes[labels.array == value] = label_map[value]
    return classes


def _prepare_case(
    case: Case, label_map: LabelMap, settings: PreparationSettings, cache: Path, plane: Plane
) -> PreparedCase:
    mask, image_hash = _mask(case), scan_hash(case.image)
    content = {
        "version": VERSION,
        "image": image_hash,
        "mask": file_hash(mask),
        "labels": sorted(label_map.items()),
        "channels": list(case.channels),
        "settings": settings.model_dump(mode="json"),
        "plane": plane,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache / "slices" / key[:2] / key
    facts, damaged = _stored_facts(folder)
    if damaged:
        print(f"Case '{case.id}': its slices in '{folder}' are damaged, and are prepared again.", file=sys.stderr)
    if facts is None:
        facts = _write_case(case, mask, label_map, settings, folder, plane)
    else:
        with suppress(OSError):  # of somebody else, or read-only
            os.utime(folder / "case.json")  # when it was used last, for cleaning the cache
    return PreparedCase(
        case=case,
        folder=folder,
        key=key,
        slice_geometry=SliceGeometry(**{**facts["placement"], "native_size": tuple(facts["placement"]["native_size"])}),
        spacing_mm=tuple(facts["spacing_mm"]),
        native_spacing_mm=tuple(facts["native_spacing_mm"]),
        intensities=tuple(tuple(percentiles) for percentiles in facts["intensities"]),
        present=tuple(tuple(indices) for indices in facts["present"]),
        image_hash=image_hash,
        channel_names=tuple(facts["channel_names"]),
        plane=plane,
    )


def _stored_facts(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """Return the facts in case.json, and True if the folder is damaged; no facts for a folder that can't be used.

    The arrays are read once here, to compare them with their checksums, and never again while a run lasts.
    """
    try:
        facts = read_json(folder / "case.json", dict[str, Any], "")
        if "checksums" not in facts or "channel_names" not in facts:
            return None, False  # of an earlier version
        recorded = facts.pop("checksums")
        arrays = {name: np.load(folder / name, mmap_mode="r") for name in ARRAYS}
        whole = recorded == _checksums(facts, arrays)
    except FileNotFoundError:
        return None, False
    except Exception:  # numpy reads the header of a damaged array as Python, and fails in any way
        whole = False
    return (facts, False) if whole else (None, True)


def _checksums(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Return the CRC-32 of the facts, and of each array with its type and its shape."""
    sums = {"case.json": zlib.crc32(json.dumps(facts).encode())}
    for name, array in arrays.items():
        sums[name] = zlib.crc32(array.data, zlib.crc32(f"{array.dtype.str} {array.shape}".encode()))
    return sums


def _write_case(
    case: Case, mask: Pixels, label_map: LabelMap, settings: PreparationSettings, folder: Path, plane: Plane
) -> dict[str, Any]:
    scan, labels = read_scan(case.image, plane, resample=settings.resample_channels), read_labels(mask, plane)
    if differences := scan.geometry.grid_differences(labels.geometry):
        raise DataError(
            f"Case '{case.id}': '{case.first}' and '{mask}' do not lie on each other: "
            f"{'; '.join(differences)}. Resample the mask to the image, or leave out the case."
        )
    prepared = prepare_volume(scan, settings)
    classes = torch.from_numpy(map_labels(labels, label_map, case))
    classes = prepared.slice_geometry.prepare(classes, settings.size, labels=True)
    facts: dict[str, Any] = {
        "placement": asdict(prepared.slice_geometry),
        "spacing_mm": prepared.spacing_mm,
        "native_spacing_mm": scan.spacing_mm,
        "channel_names": scan.channel_names,
        "intensities": prepared.intensities,
        "present": [
            [int(index) for index in np.unique(labels) if index not in (0, IGNORED)] for labels in classes.numpy()
        ],
    }
    facts = json.loads(json.dumps(facts))  # as they are read back
    arrays = {"image.npy": prepared.image.numpy().astype(np.float16), "mask.npy": np.ascontiguousarray(classes.numpy())}
    sums = _checksums(facts, arrays)  # of the memory, so that a fault of the disk is noticed
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        with new_folder(folder) as temporary:
            for name, array in arrays.items():
                with replacing(temporary / name) as path:
                    np.save(path, array)
            write_atomically(temporary / "case.json", json.dumps({**facts, "checksums": sums}))
            if folder.exists() and _stored_facts(folder)[0] is None:  # damaged, or of an earlier version
                folder.rename(aside)  # quicker than its removal: another process may be reading its arrays
                _mapped.cache_clear()
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if _stored_facts(folder)[0] is None:  # else another process was first, with the same content
            raise DataError(
                f"Case '{case.id}': its slices can't be written to '{folder.parent}': {error.strerror or error}. Make "
                "room, or set TEXTSEG_CACHE to a folder that you may write to."
            ) from error
    return facts


def _mask(case: Case) -> Pixels:
    if case.mask is None:
        raise DataError(f"Case '{case.id}' has no mask beside '{case.first}'; it can't be trained or tested on.")
    return case.mask
