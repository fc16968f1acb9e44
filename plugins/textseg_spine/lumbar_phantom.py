"""Synthetic lumbar MRI in SPIDER's layout: for tutorials, for tests, for a machine without the data."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from textseg.data.phantoms import Anatomy, Level, Part, Patient, Series, SpinePhantom
from textseg_spine.atlas import lumbar_spider
from textseg_spine.spider import PARTIAL_OFFSET, Spider

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


class LumbarPhantom(SpinePhantom):
    """Synthetic sagittal T1, T2 and T2 SPACE series of lumbar spines, as files in SPIDER's layout.

    The files are written once, into a folder of `folder` that is named after a hash of the settings, when the first
    method is called; they then are read as SPIDER's are. `cases` counts series: some patients have T1 and T2. `size`
    is H, W in pixels of `spacing_mm`. Raises RecipeError for impossible settings and DataError for a folder that
    can't be written.
    """

    anatomy = LUMBAR
    slab_mm = 52.0
    drawing = 1

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
        super().__init__(
            lumbar_spider(), folder=folder, cases=cases, slices=slices, size=size, spacing_mm=spacing_mm, seed=seed
        )

    def read(self, folder: Path) -> Spider:
        """Return a reader of SPIDER's layout."""
        return Spider(folder=str(folder))

    def write(self, folder: Path) -> None:
        """Write images/, masks/ and overview.csv."""
        for name in ("images", "masks"):
            (folder / name).mkdir()
        with (folder / "overview.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)  # CRLF, as SPIDER's
            table.writerow(("new_file_name", "num_vertebrae", "num_discs", "sex", "birth_date", "subset"))
            for patient in self.patients():
                for series in self.series(patient):
                    table.writerow(self._write_series(folder, patient, series))

    def _write_series(self, folder: Path, patient: Patient, series: Series) -> tuple[str | int, ...]:
        """Write one series and return its row of overview.csv."""
        # In some patients the picture's edge turns a vertebra's value into that of a partial one
        values = spider_values(series.mask, partial=patient.number % 2 == 0)
        stem = f"{patient.number}_{SUFFIXES[series.contrast.sequence]}"
        self.store(series.image, folder / "images" / f"{stem}.mha", patient)
        self.store(values, folder / "masks" / f"{stem}.mha", patient)
        numbers = set(np.unique(values).tolist())
        vertebrae = len({value % 100 for value in numbers if value < 200} - {0})
        discs = sum(value > 200 for value in numbers)
        return stem, vertebrae, discs, f"{patient.sex} ", series.age, "validation" if patient.testing else "training"


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
