"""Synthetic cervical MRI: for trials and tests without data."""

from __future__ import annotations

import csv
from pathlib import Path

from textseg.contracts import Dataset
from textseg.data.phantoms import Anatomy, Level, Part, SpinePhantom
from textseg.registry import installed_registry
from textseg_cervical.atlas import CORD, cervical_spine

SEXES = {"F": "female", "M": "male"}


def _cervical(
    name: str, disc: str, height: float, depth: float, width: float, tilt: float, gap: float, *more: Part, spine: float
) -> Level:
    """A cervical vertebra; `spine` is half the length of its spinous process, in mm."""
    side = width / 2
    parts = (
        Part(0.55, 21 + spine, 0, (5.5, spine, 3.5), 0.35),  # spinous process
        Part(0.35, 19, 8, (7, 3, 7), 0.25),  # laminae
        Part(0.0, 3, side + 3, (4.5, 5, 3)),  # pedicles
        Part(0.15, 8, side + 7, (8.5, 6, 5.5), 0.5),  # articular pillars
        Part(0.1, -3, side + 8, (4, 4, 5)),  # transverse processes
    )
    return Level(name, disc, height, depth, width, tilt, gap, (*parts, *more))


def _thoracic(name: str, disc: str, height: float, depth: float, width: float, tilt: float, gap: float) -> Level:
    side = width / 2
    parts = (
        Part(0.8, 36, 0, (6, 16, 3.5), 0.55),
        Part(0.35, 19, 7, (9, 3.5, 7), 0.2),
        Part(-0.15, 5, side - 1, (5, 7, 3.5)),
        Part(0.0, 14, side + 6, (8, 6, 7)),
    )
    return Level(name, disc, height, depth, width, tilt, gap, parts)


DENS = Part(-0.9, -8, 0, (12, 5.5, 5.5))

CERVICAL = Anatomy(
    levels=(  # height, depth and width of the body, tilt, height of the disc
        _cervical("C2", "C2/C3", 20, 16, 19, -13, 4.8, DENS, spine=11),
        _cervical("C3", "C3/C4", 13.5, 15.5, 20, -9, 5, spine=8),
        _cervical("C4", "C4/C5", 13, 15.5, 21, -3, 5.2, spine=8),
        _cervical("C5", "C5/C6", 12.5, 16, 22.5, 4, 5.5, spine=9),
        _cervical("C6", "C6/C7", 12.8, 16.5, 25, 10, 5.5, spine=11),
        _cervical("C7", "C7/T1", 14, 17, 27, 16, 5, spine=16),
        _thoracic("T1", "T1/T2", 15.5, 17, 27, 20, 4),
        _thoracic("T2", "T2/T3", 17, 18, 27, 20, 3.5),
        _thoracic("T3", "T3/T4", 17.5, 19.5, 26, 16, 3.5),
        _thoracic("T4", "T4/T5", 18, 21, 26, 11, 3.5),
        _thoracic("T5", "T5/T6", 18.5, 23, 26, 6, 3.5),
    ),
    anchor="C5/C6",
    anchor_row=(0.38, 0.68),
    cord=CORD,
    canal_size_mm=(14.0, 23.0),
    cord_size_mm=(7.5, 13.0),
    back_mm=(52.0, 70.0),
    front_mm=(42.0, 60.0),
)


class CervicalPhantom(SpinePhantom):
    """Synthetic sagittal T1, T2 and T2 SPACE series of cervical spines, as a plain folder.

    The files are written once, into a folder of `folder` that is named after a hash of the settings, when the first
    method is called: images/, masks/ and cases.csv, which `nifti_folder` reads. `cases` counts series: some patients
    have T1 and T2. `size` is H, W in pixels of `spacing_mm`. `begins_below: C2` cuts the pictures below C2, so that
    no picture shows the landmark of the atlas; `ends_above` cuts them at the lower end. Raises RecipeError for
    impossible settings and DataError for a folder that can't be written.
    """

    anatomy = CERVICAL
    slab_mm = 36.0
    drawing = 1

    def __init__(
        self,
        *,
        folder: str,
        cases: int = 24,
        slices: int = 9,
        size: tuple[int, int] = (144, 112),
        spacing_mm: float = 1.1,
        seed: int = 0,
        begins_below: str | None = None,
        ends_above: str | None = None,
    ) -> None:
        super().__init__(
            cervical_spine(),
            folder=folder,
            cases=cases,
            slices=slices,
            size=size,
            spacing_mm=spacing_mm,
            seed=seed,
            begins_below=begins_below,
            ends_above=ends_above,
        )

    def read(self, folder: Path) -> Dataset:
        """Return a reader of a plain folder of volumes."""
        settings = {"folder": str(folder), "atlas": self.atlas.name}
        reader: Dataset = installed_registry().build("dataset", "nifti_folder", settings=settings)
        return reader

    def write(self, folder: Path) -> None:
        """Write images/, masks/ and cases.csv; mask values are the class indices of the atlas."""
        for name in ("images", "masks"):
            (folder / name).mkdir()
        with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("case", "patient", "split", "sequence", "view", "sex"))
            for patient in self.patients():
                for series in self.series(patient):
                    sequence = series.contrast.sequence
                    stem = f"neck{patient.number:02}_{sequence.lower().replace(' ', '_')}"
                    for name, volume in (("images", series.image), ("masks", series.mask)):
                        self.store(volume, folder / name / f"{stem}.nii.gz", patient, first_row=series.first_row)
                    part = "test" if patient.testing else "train"
                    table.writerow((stem, patient.number, part, sequence, "sagittal", SEXES[patient.sex]))
