"""Synthetic lumbar MRI in SPIDER's layout: for tutorials, for tests, for a machine without the data."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from textseg.anatomy import T1, T2, T2_SPACE, Anatomy, Contrast, Level, Part
from textseg.contracts import Case, LabelMap
from textseg.errors import DataError, RecipeError
from textseg.phantom import render
from textseg_spine.atlas import lumbar_spider
from textseg_spine.spider import PARTIAL_OFFSET, Spider

DRAWING = 1  # raise it whenever the same settings give other pictures
SLAB_MM = 52.0  # from the first slice to the last
THICKEST_SLICE_MM = 6.0
SUFFIXES = {"T1": "t1", "T2": "t2", "T2 SPACE": "t2_SPACE"}


def _lumbar_parts(width_mm: float) -> tuple[Part, ...]:
    side = width_mm / 2 - 4
    return (
        Part(0.55, 34, 0, (12, 15, 4.0), 0.12),  # spinous process
        Part(0.35, 21, 7, (11, 3.5, 7), 0.25),  # laminae
        Part(-0.2, 6, side - 3, (7, 9, 4.5)),  # pedicles
        Part(-0.5, 15, side - 1, (8, 4.5, 5.5)),  # superior articular processes
        Part(0.05, 18, side - 3, (9, 4.5, 5)),  # between the articular processes
        Part(0.65, 23, side - 4, (10, 4.5, 5)),  # inferior articular processes
        Part(-0.1, 16, side + 12, (5, 4, 12)),  # transverse processes
    )


def _thoracic_parts(width_mm: float) -> tuple[Part, ...]:
    side = width_mm / 2 - 2
    return (
        Part(0.95, 31, 0, (6, 15, 3.5), 0.6),
        Part(0.4, 20, 6, (10, 3.5, 7), 0.2),
        Part(-0.2, 6, side - 3, (6, 8, 4)),
        Part(-0.4, 15, side - 2, (7, 4, 5)),
        Part(0.1, 18, side - 3, (8, 4, 5)),
        Part(0.7, 21, side - 4, (8, 4, 5)),
        Part(-0.1, 22, side + 8, (5, 6, 8), -0.2),
    )


def _thoracic(name: str, disc: str, height: float, depth: float, width: float, tilt: float, gap: float) -> Level:
    return Level(name, disc, height, depth, width, tilt, gap, _thoracic_parts(width))


def _lumbar(name: str, disc: str, height: float, depth: float, width: float, tilt: float, gap: float) -> Level:
    return Level(name, disc, height, depth, width, tilt, gap, _lumbar_parts(width))


def _sacral(name: str, height: float, depth: float, width: float, tilt: float, gap: float) -> Level:
    crest = Part(0.0, depth / 3 + 9, 0, (11, 3.5, 5))
    return Level(name, "", height, depth, width, tilt, gap, (crest,), fused=True)


LUMBAR = Anatomy(
    levels=(  # height, depth and width of the body, tilt, height of the disc
        _thoracic("T5", "T5/T6", 18, 24, 26, 8, 3.5),
        _thoracic("T6", "T6/T7", 18.5, 25, 27, 3, 3.5),
        _thoracic("T7", "T7/T8", 19, 26, 28, -2, 4),
        _thoracic("T8", "T8/T9", 19.5, 27, 29, -7, 4),
        _thoracic("T9", "T9/T10", 20, 28, 30, -11, 4.5),
        _thoracic("T10", "T10/T11", 21.5, 29, 32, -14, 5),
        _thoracic("T11", "T11/T12", 22.5, 30, 35, -17, 6),
        _thoracic("T12", "T12/L1", 24.5, 31, 38, -18, 7),
        _lumbar("L1", "L1/L2", 26, 32, 41, -16, 8.5),
        _lumbar("L2", "L2/L3", 27, 33, 43, -10, 10),
        _lumbar("L3", "L3/L4", 27.5, 34, 45, -1, 11),
        _lumbar("L4", "L4/L5", 27.5, 35, 48, 9, 12),
        _lumbar("L5", "L5/S", 27, 35.5, 51, 24, 11),
        _sacral("S1", 29, 33, 58, 49, 3.5),
        _sacral("S2", 25, 25, 50, 60, 2.5),
        _sacral("S3", 21, 18, 42, 60, 2),
        _sacral("S4", 18, 13, 34, 48, 2),
        _sacral("S5", 15, 10, 26, 30, 2),
    ),
    anchor="L5/S",
    anchor_row=(0.63, 0.95),
    canal="SC",
    canal_end="S1",
    cord_end="L1",
)


@dataclass(frozen=True)
class _Patient:
    number: int
    sex: str
    subset: str
    contrasts: tuple[Contrast, ...]
    stored_lps: bool
    oblique_degrees: float
    partial_values: bool  # whether the picture's edge turns a vertebra's value into that of a partial one


class LumbarPhantom:
    """Synthetic sagittal T1, T2 and T2 SPACE series of lumbar spines, as files in SPIDER's layout.

    The files are written once, into a folder of `folder` that is named after a hash of the settings, when the first
    method is called; they then are read as SPIDER's are. `cases` counts series: some patients have T1 and T2. `size`
    is H, W in pixels of `spacing_mm`. Raises RecipeError for impossible settings and DataError for a folder that
    can't be written.
    """

    def __init__(
        self,
        *,
        folder: str,
        cases: int = 24,
        slices: int = 9,
        size: tuple[int, int] = (160, 128),
        spacing_mm: float = 1.9,
        seed: int = 0,
    ) -> None:
        for name, value in {"cases": cases, "slices": slices, "size": min(size), "spacing_mm": spacing_mm}.items():
            if not value > 0:
                raise RecipeError(f"lumbar_phantom: {name} is {value}, but must be above 0.")
        if seed < 0:
            raise RecipeError(f"lumbar_phantom: seed is {seed}, but must not be below 0.")
        self.atlas = lumbar_spider()
        self._count, self._slices, self._spacing_mm, self._seed = cases, slices, float(spacing_mm), seed
        self._size = (int(size[0]), int(size[1]))
        settings = [DRAWING, cases, slices, self._size, self._spacing_mm, seed, asdict(LUMBAR)]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        self.folder = Path(folder) / digest

    def cases(self) -> Sequence[Case]:
        """Every series, as `Spider.cases`."""
        return self._spider.cases()

    def label_map(self, case: Case) -> LabelMap:
        """Class index of each value, as `Spider.label_map`."""
        return self._spider.label_map(case)

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        """Every fourth patient is for testing."""
        return self._spider.official_split()

    @cached_property
    def _spider(self) -> Spider:
        if not self.folder.is_dir():
            self._generate()
        return Spider(folder=str(self.folder))

    def _generate(self) -> None:
        """Write everything into a folder beside the final one, then rename: readers see all of it or nothing."""
        unfinished = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}")
        try:
            for name in ("images", "masks"):
                (unfinished / name).mkdir(parents=True)
            with (unfinished / "overview.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)  # CRLF, as SPIDER's
                table.writerow(("new_file_name", "num_vertebrae", "num_discs", "sex", "birth_date", "subset"))
                for patient in self._patients():
                    table.writerows(self._write(unfinished, patient))
            unfinished.rename(self.folder)
        except OSError as error:
            if not self.folder.is_dir():  # otherwise another process was faster, with the same files
                raise DataError(
                    f"The phantom can't be written to {self.folder}: {error}. "
                    "Set `dataset.folder` to a folder that can be written to."
                ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _patients(self) -> Iterator[_Patient]:
        remaining, number = self._count, 0
        while remaining:
            number += 1
            contrasts = {2: (T1, T2), 4: (T2_SPACE,), 5: (T1,)}.get(number % 6, (T2,))[:remaining]
            remaining -= len(contrasts)
            random = np.random.default_rng((self._seed, number, 0))
            yield _Patient(
                number=number,
                sex="FM"[number % 2],
                subset="validation" if number % 4 == 3 else "training",
                contrasts=contrasts,
                stored_lps=number % 3 == 0,
                oblique_degrees=float(random.uniform(-4, 4)) if number % 3 else 0.0,
                partial_values=number % 2 == 0,
            )

    def _write(self, folder: Path, patient: _Patient) -> Iterator[tuple[str | int, ...]]:
        """Write a patient's series; yields their rows of overview.csv."""
        random = np.random.default_rng((self._seed, patient.number, 1))
        distance = min(SLAB_MM / max(self._slices - 1, 1), THICKEST_SLICE_MM)
        phantom = render(
            self.atlas,
            LUMBAR,
            patient.contrasts,
            slices=self._slices,
            size=self._size,
            spacing_mm=self._spacing_mm,
            slice_distance_mm=distance,
            seed=(self._seed, patient.number, 2),
            scale=1.02 if patient.sex == "F" else 1.09,
        )
        values = spider_values(phantom.mask, partial=patient.partial_values)
        numbers = set(np.unique(values).tolist())
        vertebrae = len({value % 100 for value in numbers if value < 200} - {0})
        discs = sum(value > 200 for value in numbers)
        for contrast, image in zip(patient.contrasts, phantom.images, strict=True):
            stem = f"{patient.number}_{SUFFIXES[contrast.sequence]}"
            gain = random.uniform(250, 1200)
            self._store(image * gain, np.int16, folder / "images" / f"{stem}.mha", patient, distance)
            self._store(values, np.uint8, folder / "masks" / f"{stem}.mha", patient, distance)
            yield stem, vertebrae, discs, f"{patient.sex} ", int(random.integers(25, 80)), patient.subset

    def _store(self, volume: NDArray[np.generic], kind: type, path: Path, patient: _Patient, distance: float) -> None:
        image = sitk.GetImageFromArray(volume.astype(kind))
        image.SetSpacing((self._spacing_mm, self._spacing_mm, distance))  # type: ignore[no-untyped-call]
        sine, cosine = math.sin(math.radians(patient.oblique_degrees)), math.cos(math.radians(patient.oblique_degrees))
        turned_pir = (0, 0, -1, cosine, sine, 0, sine, -cosine, 0)  # about the left-right axis
        image.SetDirection(turned_pir)  # type: ignore[no-untyped-call]
        image.SetOrigin((SLAB_MM / 2, -110.0, 150.0))  # type: ignore[no-untyped-call]
        if patient.stored_lps:
            image = sitk.DICOMOrient(image, "LPS")  # type: ignore[no-untyped-call]
        sitk.WriteImage(image, os.fspath(path), useCompression=True)


def spider_values(mask: NDArray[np.uint8], *, partial: bool = False) -> NDArray[np.uint8]:
    """Class indices of the atlas `lumbar_spider` [S, H, W] as SPIDER's values.

    With `partial`, vertebrae whose body the first row cuts take the values of partially visible ones.
    """
    values = np.zeros(20, np.uint8)
    values[1:10], values[10:19], values[19] = range(1, 10), range(201, 210), 100
    result = values[mask]
    if partial:
        cut = np.unique(result[:, 0])
        highest = result[(result > 0) & (result < 10)].max(initial=0)
        if highest and highest in cut:
            result[result == highest] = PARTIAL_OFFSET + highest
    return result
