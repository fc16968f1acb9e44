"""What a phantom is drawn from: tissues, parts and levels, in millimetres. Another region is another `Anatomy`."""

from __future__ import annotations

from dataclasses import dataclass


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
    cord_size_mm: tuple[float, float] = (8.5, 10.5)  # depth, width
    cord_end: str = ""  # vertebra at whose centre the cord ends; empty: never
    back_mm: tuple[float, float] = (66.0, 92.0)  # from the axis to the skin of the back
    front_mm: tuple[float, float] = (105.0, 180.0)  # from the axis to the skin of the front
