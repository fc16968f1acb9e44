"""Anatomy of phantoms: tissues, parts and levels in millimetres, and their positions in the image of one patient.

Another region of the spine is another `Anatomy`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import KDTree

from textseg.errors import DataError

Array = NDArray[np.floating[Any]]
Window = tuple[slice, slice]  # rows and columns, valid for [S, H, W] behind an ellipsis


@dataclass(frozen=True)
class Contrast:
    """Signal of each tissue in one kind of sequence, 0 to 1."""

    sequence: str
    marrow: float
    cortex: float
    annulus: float
    nucleus: float
    fluid: float
    cord: float
    fat: float
    muscle: float
    organ: float


T1 = Contrast("T1", 0.55, 0.12, 0.30, 0.34, 0.17, 0.36, 1.00, 0.30, 0.36)
T2 = Contrast("T2", 0.40, 0.07, 0.13, 0.72, 1.00, 0.42, 0.80, 0.20, 0.30)
T2_SPACE = Contrast("T2 SPACE", 0.27, 0.06, 0.12, 0.45, 1.00, 0.34, 0.55, 0.15, 0.22)


@dataclass(frozen=True)
class Part:
    """A posterior element: a rounded block that belongs to a vertebra; on both sides where `beside_mm` is not 0."""

    along: float  # of its centre, from the centre of the body, in heights of the body
    behind_mm: float  # of its centre, from the posterior wall of the body
    beside_mm: float
    half_mm: tuple[float, float, float]  # along, behind, beside
    slope: float = 0.0  # mm down for each mm back


@dataclass(frozen=True)
class Level:
    """A vertebra and the disc below it; what the atlas does not name is drawn and stays background."""

    name: str
    disc: str
    height_mm: float  # of the body
    depth_mm: float  # of the body, anterior to posterior
    width_mm: float  # of the body, left to right
    tilt_degrees: float  # of the axis at the body: positive where it runs backwards on its way down
    disc_height_mm: float
    parts: tuple[Part, ...] = ()
    fused: bool = False  # with the next: its disc is a dry remnant


@dataclass(frozen=True)
class Anatomy:
    """The numbers of a region of the spine."""

    levels: tuple[Level, ...]  # from superior to inferior, and beyond the atlas where the picture reaches further
    anchor: str  # the disc whose row in the picture is drawn first
    anchor_row: tuple[float, float]  # where it may lie, as fractions of H
    canal: str = ""  # its name in the atlas
    canal_gap_mm: float = 2.0  # behind the bodies
    canal_size_mm: tuple[float, float] = (15.0, 22.0)  # depth, width
    canal_end: str = ""  # vertebra at whose upper end the canal begins to taper; empty: never
    cord: str = ""  # its name in the atlas
    cord_size_mm: tuple[float, float] = (8.5, 10.5)  # depth, width
    cord_end: str = ""  # vertebra at whose centre the cord ends; empty: never
    back_mm: tuple[float, float] = (66.0, 92.0)  # from the axis to the skin of the back
    front_mm: tuple[float, float] = (105.0, 180.0)  # from the axis to the skin of the front


class Spine:
    """The spine of a patient: its levels and their positions along the axis."""

    def __init__(self, anatomy: Anatomy, random: np.random.Generator, scale: float) -> None:
        self.anatomy = anatomy
        self.scale = scale * float(np.clip(random.normal(1.0, 0.05), 0.9, 1.1))
        bend, lean, shape = random.uniform(0.7, 1.2), random.normal(0, 4), random.normal(0, 1)
        wear = random.beta(1.2, 1.6)
        self.wear: dict[str, float] = {}
        self.levels: list[Level] = []
        for position, level in enumerate(anatomy.levels):
            worn = float(np.clip(wear + random.normal(0, 0.3), 0, 1))
            self.wear[level.name] = 1.0 if level.fused else worn
            fracture = 0.75 if random.random() < 0.02 and not level.fused else 1.0
            size = self.scale * random.normal(1, 0.02, 4)
            height, depth, width, disc = size * (level.height_mm, level.depth_mm, level.width_mm, level.disc_height_mm)
            disc *= 1.0 if level.fused else 1.08 - 0.5 * worn**2
            tilt = level.tilt_degrees * bend + lean + 3 * shape * np.sin(position / 2) + random.normal(0, 1)
            sizes = {"height_mm": height * fracture, "depth_mm": depth, "width_mm": width, "disc_height_mm": disc}
            self.levels.append(replace(level, tilt_degrees=tilt, **sizes))
        heights = np.array([(level.height_mm, level.disc_height_mm) for level in self.levels])
        tops = np.cumsum(heights.sum(axis=1)) - heights.sum(axis=1)
        centres = tops + heights[:, 0] / 2
        self.centre = dict(zip((level.name for level in self.levels), centres.tolist(), strict=True))
        anchor = [level.disc for level in self.levels].index(anatomy.anchor)
        self.anchor = float(tops[anchor] + heights[anchor, 0] + heights[anchor, 1] / 2)
        self.along = np.arange(-80.0, float(tops[-1] + heights[-1].sum() + 60.0))
        tilt = np.interp(self.along, centres, np.radians([level.tilt_degrees for level in self.levels]))
        self.tilt = gaussian_filter1d(tilt, 8, mode="nearest")
        self.back = np.cumsum(np.sin(self.tilt))  # of the axis, mm to posterior
        self.down = np.cumsum(np.cos(self.tilt))
        self.depth = np.interp(self.along, centres, [level.depth_mm for level in self.levels])
        self.width = np.interp(self.along, centres, [level.width_mm for level in self.levels])
        waves = random.normal(0, 2.5, 2) * self.scale
        phase = self.along / 110 + random.uniform(0, 2 * np.pi)
        self.aside = np.clip(waves[0] * np.sin(phase) + waves[1] * np.sin(phase / 2), -10, 10)  # scoliosis


class Space:
    """The positions of voxels, along and behind the axis [H, W] and beside it [S, H, W], and of the axis itself."""

    def __init__(
        self, spine: Spine, random: np.random.Generator, shape: tuple[int, int, int], pixel_mm: float, slice_mm: float
    ) -> None:
        height, width = shape[1] * pixel_mm, shape[2] * pixel_mm
        at_anchor = float(np.interp(spine.anchor, spine.along, spine.down))
        down = spine.down - at_anchor + height * random.uniform(*spine.anatomy.anchor_row)
        inside = (down > 0) & (down < height)
        if np.count_nonzero(inside) < 20:
            raise DataError(
                f"A picture of {shape[1]} rows of {pixel_mm} mm shows less than 20 mm of the spine. "
                "Use more rows or larger pixels."
            )
        back = spine.back - spine.back[inside].mean() + width * random.uniform(0.46, 0.58)
        self.rows, self.columns = np.meshgrid(
            *((np.arange(side) + 0.5) * pixel_mm for side in shape[1:]), indexing="ij"
        )
        nearest = KDTree(np.stack([down, back], axis=1)).query(np.stack([self.rows, self.columns], axis=-1))[1]
        d_down, d_back, tilt = self.rows - down[nearest], self.columns - back[nearest], spine.tilt[nearest]
        self.along = spine.along[nearest] + d_down * np.cos(tilt) + d_back * np.sin(tilt)
        self.behind = d_back * np.cos(tilt) - d_down * np.sin(tilt)
        places = (np.arange(shape[0]) - (shape[0] - 1) / 2) * slice_mm + random.uniform(-3, 3)
        self.beside = places[:, None, None] - np.interp(self.along, spine.along, spine.aside)
        smooth = gaussian_filter1d(back, 25, mode="nearest")
        flat = 0.45 * smooth[inside] + 0.55 * np.polyval(np.polyfit(down[inside], back[inside], 1), down[inside])
        self.axis_column = np.interp(self.rows[:, 0], down[inside], flat)[:, None]  # [H, 1], as the skin follows it

    def window(self, along: tuple[float, float], behind: tuple[float, float]) -> Window | None:
        """The box of rows and columns that holds a stretch of the spine; None where it is out of the picture."""
        inside = (self.along > along[0]) & (self.along < along[1])
        inside &= (self.behind > behind[0]) & (self.behind < behind[1])
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if not len(rows):
            return None
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)

    def at(self, window: Window) -> tuple[Array, Array, Array]:
        """Along [h, w], behind [h, w] and beside [S, h, w] in a window."""
        return self.along[window], self.behind[window], self.beside[:, window[0], window[1]]
