"""Phantoms as files: they are drawn once into a folder named after their settings, and then read like real scans."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from textseg.contracts import Atlas, Case, Dataset, LabelMap
from textseg.data.phantoms.spine import Phantom, render
from textseg.data.phantoms.spine_anatomy import T1, T2, T2_SPACE, Anatomy, Contrast
from textseg.errors import DataError, RecipeError, suggestion
from textseg.system.files import cache_folder, new_folder, temporary_folder
from textseg.volumes.files import write_image

_apart: ContextVar[Path | None] = ContextVar("_apart", default=None)
THICKEST_SLICE_MM = 6.0
LOWEST_PICTURE_MM = 20.0
FINEST_MM, COARSEST_MM = 0.01, 100.0  # spacing
CONTRASTS = (T1, T2, T2_SPACE)
MOST_CASES, MOST_VOXELS = 100_000, 2**27  # voxels are drawn in float64, several arrays at once
ORIGIN_MM = (-110.0, 150.0)  # to posterior and to superior, of the first voxel


@contextmanager
def drawn_apart() -> Iterator[None]:
    """Draw phantoms that are not on disk into the cache, and remove them in the end, so that a dry run leaves none."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with temporary_folder(cache_folder()) as folder:
        token = _apart.set(folder)
        try:
            yield
        finally:
            _apart.reset(token)


class PhantomFiles(ABC):
    """A data set whose files are drawn at the first call of a method; a subclass defines their content and layout.

    The files are in a folder below `folder` with a hash of `settings`, which determine the pictures, as its name.
    Raises DataError for a folder that can't be written.
    """

    atlas: Atlas

    def __init__(self, folder: str, settings: Sequence[object]) -> None:
        self.folder = Path(folder) / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Draw every case into a folder that exists and is empty."""

    @abstractmethod
    def read(self, folder: Path) -> Dataset:
        """The reader of what `write` wrote."""

    def cases(self) -> Sequence[Case]:
        """Return every series, from the reader of the layout."""
        return self._reader.cases()

    def label_map(self, case: Case) -> LabelMap:
        """Return the class index of each value, from the reader of the layout."""
        return self._reader.label_map(case)

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        """Return the patients for training and for testing."""
        return self._reader.official_split()

    @cached_property
    def _reader(self) -> Dataset:
        if not self.folder.is_dir():
            self.folder = (_apart.get() or self.folder.parent) / self.folder.name
            self._generate()
        return self.read(self.folder)

    def _generate(self) -> None:
        """Write all files into a temporary folder, then rename it, so that readers see all files or none.

        One process draws at a time. The operating system frees the lock of a killed one, whose folder is then removed.
        """
        from filelock import FileLock

        name = self.folder.name
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder.with_name(f".{name}.lock")):
                if self.folder.is_dir():  # another process has just drawn it
                    return
                with new_folder(self.folder) as unfinished:
                    self.write(unfinished)
        except OSError as error:
            raise DataError(
                f"The phantom can't be written to {self.folder}: {error}. "
                "Set `dataset.folder` to a folder that can be written to."
            ) from error


@dataclass(frozen=True)
class Patient:
    """The properties of one synthetic patient and of its scans."""

    number: int  # from 1
    sex: str  # F or M
    testing: bool
    contrasts: tuple[Contrast, ...]  # one series each
    stored_lps: bool
    oblique_degrees: float


@dataclass(frozen=True)
class Series:
    """A series: one contrast of a patient."""

    contrast: Contrast
    image: NDArray[np.int16]  # [S, H, W]
    mask: NDArray[np.uint8]  # [S, H, W] `values` of the phantom
    age: int
    first_row: int = 0  # of the picture, in the picture that is not cut


class SpinePhantom(PhantomFiles):
    """Synthetic sagittal T1, T2 and T2 SPACE series of a region of the spine; every fourth patient is for testing.

    A region is a subclass with an `anatomy`, a `slab_mm` and a `drawing`, that says in which layout `series` are
    stored. Raises RecipeError for impossible settings.

    A picture that `begins_below` or `ends_above` a structure is the picture of the same patient without these
    settings, with fewer rows: neither that structure nor any structure beyond it is in view.

    Args:
        atlas: Its sequence must be covered by the levels of `anatomy`.
        folder: Where the files go.
        cases: Series, of which some patients have T1 and T2; with `channels`, patients.
        slices: Of each series.
        size: H, W in pixels.
        spacing_mm: Of rows and columns.
        seed: Of all chance.
        begins_below: The lowest structure above the upper end of the pictures; None if the pictures are not cut there.
        ends_above: The highest structure below the lower end of the pictures; None if the pictures are not cut there.
        channels: Sequences that every patient has, and that the reader joins to one case; none for single series.
    """

    anatomy: Anatomy
    slab_mm: ClassVar[float]  # from the first slice to the last
    drawing: ClassVar[int]  # increased whenever equal settings give different pictures

    def __init__(
        self,
        atlas: Atlas,
        *,
        folder: str,
        cases: int,
        slices: int,
        size: tuple[int, int],
        spacing_mm: float,
        seed: int,
        begins_below: str | None = None,
        ends_above: str | None = None,
        channels: Sequence[str] = (),
    ) -> None:
        check_settings(cases=cases, slices=slices, size=size, spacing_mm=spacing_mm, seed=seed)
        self.atlas = atlas
        self.count, self.slices, self.spacing_mm, self.seed = cases, slices, float(spacing_mm), seed
        self.size = (int(size[0]), int(size[1]))
        self.begins_below, self.ends_above = begins_below, ends_above
        self.channels = tuple(contrast for name in channels for contrast in CONTRASTS if contrast.sequence == name)
        self._check_ends()
        settings = [self.drawing, cases, slices, self.size, self.spacing_mm, seed, asdict(self.anatomy)]
        # Whole pictures keep the folder that they had before pictures could be cut
        cut = [[begins_below, ends_above]] if begins_below or ends_above else []
        joined = [["channels", *channels]] if channels else []
        super().__init__(folder, [*settings, *cut, *joined])

    def values(self) -> Mapping[str, int]:
        """Return the value in a mask of each structure: its class index, unless a subclass has other values.

        Raises DataError if the anatomy lacks a structure of the atlas's sequence.
        """
        known = {name for level in self.anatomy.levels for name in (level.name, level.disc)}
        if missing := [name for name in self.atlas.sequence if name not in known]:
            raise DataError(
                f"The phantom's anatomy has no {', '.join(missing)}, which atlas '{self.atlas.name}' has in its "
                "sequence. Use an anatomy whose levels cover the atlas."
            )
        return {structure.name: structure.index for structure in self.atlas.structures}

    def patients(self) -> Iterator[Patient]:
        """Draw patients until they have `cases` series, or until there are as many where each has all channels."""
        remaining, number = self.count, 0
        while remaining:
            number += 1
            series = {2: (T1, T2), 4: (T2_SPACE,), 5: (T1,)}.get(number % 6, (T2,))[:remaining]
            contrasts = self.channels or series
            remaining -= 1 if self.channels else len(series)
            random = np.random.default_rng((self.seed, number, 0))
            yield Patient(
                number=number,
                sex="FM"[number % 2],
                testing=number % 4 == 3,
                contrasts=contrasts,
                stored_lps=number % 3 == 0,
                oblique_degrees=float(random.uniform(-4, 4)) if number % 3 else 0.0,
            )

    def series(self, patient: Patient) -> Iterator[Series]:
        """A patient's series, drawn."""
        random = np.random.default_rng((self.seed, patient.number, 1))
        phantom: Phantom = render(
            self.values(),
            self.anatomy,
            patient.contrasts,
            shape=(self.slices, *self.size),
            spacing_mm=self.spacing_mm,
            slice_distance_mm=self._slice_mm,
            seed=(self.seed, patient.number, 2),
            scale=1.02 if patient.sex == "F" else 1.09,
        )
        rows = self._rows(phantom.mask, patient)
        for contrast, image in zip(patient.contrasts, phantom.images, strict=True):
            gain = random.uniform(250, 1200)
            picture, age = (image[:, rows] * gain).astype(np.int16), int(random.integers(25, 80))
            yield Series(contrast, picture, phantom.mask[:, rows], age, rows.start)

    def store(self, volume: NDArray[np.generic], path: Path, patient: Patient, *, first_row: int = 0) -> None:
        """Write a volume [S, H, W] as the scanner placed it in the patient; `first_row` is that of its series."""
        sine, cosine = (turn(math.radians(patient.oblique_degrees)) for turn in (math.sin, math.cos))
        below_mm = first_row * self.spacing_mm
        write_drawn(
            volume,
            path,
            spacing_mm=(self._slice_mm, self.spacing_mm, self.spacing_mm),
            origin=(self.slab_mm / 2, ORIGIN_MM[0] + below_mm * sine, ORIGIN_MM[1] - below_mm * cosine),
            direction=(0, 0, -1, cosine, sine, 0, sine, -cosine, 0),  # turned about the left-right axis
            orientation="LPS" if patient.stored_lps else None,
        )

    def _check_ends(self) -> None:
        """Raise RecipeError for ends of the pictures that the patients do not have, or between which nothing lies."""
        ends = {"begins_below": self.begins_below, "ends_above": self.ends_above}
        named = {key: name for key, name in ends.items() if name is not None}
        if not named:
            return
        possible = [name for name in self.atlas.sequence if name in self.values()]
        for key, name in named.items():
            if name not in possible:
                raise RecipeError(f"The phantom's {key} is '{name}'.{suggestion(name, possible)}")
        if len(named) == 2 and possible.index(named["begins_below"]) + 1 >= possible.index(named["ends_above"]):
            raise RecipeError(
                f"The phantom's pictures begin below {self.begins_below} and end above {self.ends_above}, and nothing "
                "lies between them. Set a higher `begins_below` or a lower `ends_above`."
            )

    def _rows(self, mask: NDArray[np.uint8], patient: Patient) -> slice:
        """Return the rows of the picture, from the mask of the whole picture."""
        sequence, values = self.atlas.sequence, self.values()

        def rows_of(hidden: Sequence[str]) -> NDArray[np.intp]:
            shown = np.isin(mask, [values[name] for name in hidden if name in values])
            return np.flatnonzero(shown.any(axis=(0, 2)))

        first, last = 0, mask.shape[1]
        if self.begins_below and len(above := rows_of(sequence[: sequence.index(self.begins_below) + 1])):
            first = int(above[-1]) + 1
        if self.ends_above and len(below := rows_of(sequence[sequence.index(self.ends_above) :])):
            last = int(below[0])
        if (self.begins_below or self.ends_above) and (last - first) * self.spacing_mm < LOWEST_PICTURE_MM:
            ends = [f"begins below {self.begins_below}"] if self.begins_below else []
            ends += [f"ends above {self.ends_above}"] if self.ends_above else []
            raise DataError(
                f"The picture of patient {patient.number} that {' and '.join(ends)} is less than "
                f"{LOWEST_PICTURE_MM:g} mm high. Set ends that are further apart, or use more rows or larger pixels."
            )
        return slice(first, last)

    @property
    def _slice_mm(self) -> float:
        return min(self.slab_mm / max(self.slices - 1, 1), THICKEST_SLICE_MM)


def check_settings(*, seed: int, slices: int = 1, size: tuple[int, int] = (1, 1), **positive: float) -> None:
    """Raise RecipeError for settings from which no phantom can be drawn, or none that fits into memory."""
    for name, value in {"slices": slices, "size": min(size), **positive}.items():
        if not value > 0:
            raise RecipeError(f"The phantom's {name} is {value}, but must be above 0.")
        if name.endswith("_mm") and not FINEST_MM <= value <= COARSEST_MM:
            raise RecipeError(f"The phantom's {name} is {value:g}, but must be {FINEST_MM:g} to {COARSEST_MM:g} mm.")
        if name in ("cases", "patients") and value > MOST_CASES:
            raise RecipeError(f"The phantom has {value} {name}, but must have at most {MOST_CASES:,}.")
    if slices * size[0] * size[1] > MOST_VOXELS:
        raise RecipeError(
            f"The phantom's volumes have {slices} x {size[0]} x {size[1]} voxels; {MOST_VOXELS:,} are possible."
        )
    if seed < 0:
        raise RecipeError(f"The phantom's seed is {seed}, but must not be below 0.")


def write_drawn(
    volume: NDArray[np.generic],
    path: Path,
    *,
    spacing_mm: tuple[float, float, float],
    origin: tuple[float, float, float],
    direction: Sequence[float],
    orientation: str | None = None,
) -> None:
    """Write a volume [S, H, W], compressed; the format follows from the name.

    Args:
        volume: in the type that the file shall have.
        path: in a folder that exists.
        spacing_mm: slice, row and column distance.
        origin: of the first voxel, in ITK's frame (x to the left, y to posterior, z to superior), mm.
        direction: 3 x 3 cosines row by row; its columns are the directions of columns, rows and slices.
        orientation: three letters, such as LPS, where the file shall be stored turned by whole axes.
    """
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing_mm[::-1])  # type: ignore[no-untyped-call]
    image.SetDirection(tuple(direction))  # type: ignore[no-untyped-call]
    image.SetOrigin(origin)  # type: ignore[no-untyped-call]
    if orientation is not None:
        image = sitk.DICOMOrient(image, orientation)  # type: ignore[no-untyped-call]
    write_image(image, path)
