"""Synthetic lumbar MRI in SPIDER's layout: for tutorials, for tests, for a machine without the data."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from textseg.data.phantoms import Anatomy, Level, Part, Patient, Series, SpinePhantom
from textseg_spine.atlas import CANAL, VERTEBRAE, lumbar_spider
from textseg_spine.spider import CANAL_VALUE, DISC_OFFSET, PARTIAL_OFFSET, Spider

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


def lumbar_anatomy(vertebrae: int) -> Anatomy:
    """Return the anatomy of patients with four, five or six lumbar vertebrae, which are named from T12 downwards.

    Counted from the sacrum, all patients look alike: a sixth vertebra has the form of L1, and with four L1 is missing.
    """
    thoracic, lumbar, sacral = LUMBAR.levels[:8], LUMBAR.levels[8:13], LUMBAR.levels[13:]
    forms = (lumbar[0], *lumbar)[-vertebrae:]
    names = [*(f"L{number}" for number in range(1, vertebrae + 1)), "S"]
    labelled = zip(forms, pairwise(names), strict=True)
    named = (replace(form, name=name, disc=f"{name}/{below}") for form, (name, below) in labelled)
    return replace(LUMBAR, levels=(*thoracic, *named, *sacral), anchor=f"L{vertebrae}/S")


class LumbarPhantom(SpinePhantom):
    """Synthetic sagittal T1, T2 and T2 SPACE series of lumbar spines, as files in SPIDER's layout.

    The files are written once, into a folder of `folder` that is named after a hash of the settings, when the first
    method is called; they then are read as SPIDER's are. `cases` counts series: some patients have T1 and T2. `size`
    is H, W in pixels of `spacing_mm`.

    The names of the levels are known: they are counted from T12 downwards. `lumbar_vertebrae` is 4, 5 or 6. The lowest
    of six is L6, which the atlas does not have, so it is background; the disc below L5 keeps the atlas's name for it,
    L5/S. With four, the lowest vertebra is L4, and the disc below it is the atlas's L4/L5. The masks count from the
    sacrum as SPIDER's do, and numbering.csv gives the lowest level, as a user of SPIDER would write it. Counting from
    the sacrum, or a model that was trained on patients with five, gives names that are wrong by one level.

    With `channels: [T1, T2]` every patient has these series, and each case shows them as the channels of one image;
    `cases` then counts patients.

    `ends_above: L4` cuts the pictures above L4, so that no picture shows a landmark of the atlas; `begins_below: L1`
    keeps the lower part of the spine, with the sacrum.

    A picture shows these signs of a level, apart from the sacrum. The processes behind T12 have a thoracic form, and
    those behind L1 a lumbar form. From T5 to L4, a body is up to 9 % and a disc up to 21 % higher than the one above,
    while the size of patients differs by up to 30 %. The cord ends near the centre of L1 (standard deviation 14 mm,
    half a level). The great vessels fork 40 mm above the sacrum, and the curve of the spine is steepest near it. There
    are no ribs. A picture of L2 to L4 alone (`begins_below: L1`, `ends_above: L5`) shows the fewest of these signs.

    Raises RecipeError for impossible settings and DataError for a folder that can't be written.
    """

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
        lumbar_vertebrae: Literal[4, 5, 6] = 5,
        begins_below: str | None = None,
        ends_above: str | None = None,
        channels: tuple[Literal["T1", "T2", "T2 SPACE"], ...] = (),
    ) -> None:
        self.lumbar_vertebrae = lumbar_vertebrae
        self.anatomy = lumbar_anatomy(lumbar_vertebrae)
        super().__init__(
            lumbar_spider(),
            folder=folder,
            cases=cases,
            slices=slices,
            size=size,
            spacing_mm=spacing_mm,
            seed=seed,
            begins_below=begins_below,
            ends_above=ends_above,
            channels=channels,
        )
        self._joined = channels

    def values(self) -> Mapping[str, int]:
        """Return SPIDER's values, which count vertebrae and discs from the lowest one upwards, as far as the atlas."""
        names = [level.name for level in self.anatomy.levels]
        annotated = self.anatomy.levels[names.index(VERTEBRAE[-1]) : names.index("S1")]
        values = {CANAL: CANAL_VALUE}
        for number, level in enumerate(reversed(annotated), start=1):
            values |= {level.name: number, level.disc: DISC_OFFSET + number}
        return values

    def read(self, folder: Path) -> Spider:
        """Return a reader of SPIDER's layout."""
        return Spider(folder=str(folder), channels=self._joined)

    def write(self, folder: Path) -> None:
        """Write images/, masks/ and overview.csv, and numbering.csv for patients without five lumbar vertebrae."""
        for name in ("images", "masks"):
            (folder / name).mkdir()
        with (folder / "overview.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)  # CRLF, as SPIDER's
            table.writerow(("new_file_name", "num_vertebrae", "num_discs", "sex", "birth_date", "subset"))
            for patient in self.patients():
                for series in self.series(patient):
                    table.writerow(self._write_series(folder, patient, series))
        if self.lumbar_vertebrae != 5:
            rows = [f"{patient.number},L{self.lumbar_vertebrae}\n" for patient in self.patients()]
            (folder / "numbering.csv").write_text("patient,lowest_level\n" + "".join(rows), encoding="utf-8")

    def _write_series(self, folder: Path, patient: Patient, series: Series) -> tuple[str | int, ...]:
        """Write one series and return its row of overview.csv."""
        # In some patients the picture's edge turns a vertebra's value into that of a partial one
        values = with_partial_vertebra(series.mask) if patient.number % 2 == 0 else series.mask
        stem = f"{patient.number}_{SUFFIXES[series.contrast.sequence]}"
        self.store(series.image, folder / "images" / f"{stem}.mha", patient, first_row=series.first_row)
        self.store(values, folder / "masks" / f"{stem}.mha", patient, first_row=series.first_row)
        numbers = set(np.unique(values).tolist())
        vertebrae = len({value % 100 for value in numbers if value < 200} - {0})
        discs = sum(value > 200 for value in numbers)
        return stem, vertebrae, discs, f"{patient.sex} ", series.age, "validation" if patient.testing else "training"


def with_partial_vertebra(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return SPIDER's values [S, H, W], with that of a partially visible vertebra where the first row cuts the highest.

    `mask` has the values of complete vertebrae.
    """
    highest = mask[mask < CANAL_VALUE].max(initial=0)
    cut = highest > 0 and bool((mask[:, 0] == highest).any())
    return np.where(mask == highest, np.uint8(PARTIAL_OFFSET + highest), mask) if cut else mask
