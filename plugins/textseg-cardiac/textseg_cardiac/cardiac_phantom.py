"""Synthetic short-axis cine MRI of the heart in ACDC's layout: for trials and tests without data.

Everything is drawn in coordinates that follow the heart, in mm: `along` its axis from the valves to the apex, `beside`
it towards the free wall of the left ventricle, `down` towards the diaphragm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from textseg.contracts import Atlas
from textseg.data.phantoms import PhantomFiles, check_settings, write_drawn
from textseg_cardiac.acdc import ACDC
from textseg_cardiac.atlas import LA, LV, MYO, RA, RV, heart_short_axis

Array = NDArray[np.floating[Any]]

DRAWING = 1  # raise it whenever the same settings give other pictures
GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")
FRAMES = {"ED": 1, "ES": 10}
BLOOD, MUSCLE, LUNG, LIVER, FAT, WALL = 0.85, 0.28, 0.06, 0.38, 0.95, 0.3  # signal, 0 to 1
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)  # a header that says nothing, as ACDC's


def tilted(turn_degrees: float = 45.0, dip_degrees: float = 35.0) -> tuple[float, ...]:
    """Return the direction of a tilted short-axis stack: cosines of columns, rows and slices, row by row."""
    turn, dip = np.radians(turn_degrees), np.radians(dip_degrees)
    columns = np.array([np.cos(turn), np.sin(turn), 0.0])  # to the free wall: leftwards and back
    slices = np.array([np.sin(turn) * np.cos(dip), -np.cos(turn) * np.cos(dip), -np.sin(dip)])  # to the apex
    return tuple(np.stack([columns, np.cross(slices, columns) * -1, slices], axis=1).ravel().tolist())


@dataclass(frozen=True)
class Heart:
    """One patient's heart in one phase; lengths in mm."""

    radius: float  # of the left ventricle's cavity at the valve
    length: float  # from the valve to the cavity's tip
    wall: float  # thickness of the myocardium
    thinned: tuple[float, float]  # share of the wall that a scar has left, and where it lies, in radians
    right: tuple[float, float]  # half axes of the right ventricle: beside, down
    atria: float  # scale
    turn: float  # about the long axis, in radians
    centre: tuple[float, float]  # beside, down, from the middle of the picture
    first: float  # of the first slice, from the valve towards the apex


class CardiacPhantom(PhantomFiles):
    """Synthetic short-axis stacks of hearts at end-diastole and end-systole, as files in ACDC's layout.

    The files are written once, into a folder of `folder` that is named after a hash of the settings, when the first
    method is called; they then are read as ACDC's are, and hold the atria besides: 4 (left), 5 (right). Every patient
    is two cases; every fourth patient is for testing. `size` is H, W in pixels of `spacing_mm`. Raises RecipeError for
    impossible settings and DataError for a folder that can't be written.
    """

    def __init__(
        self,
        *,
        folder: str,
        patients: int = 16,
        slices: int = 10,
        size: tuple[int, int] = (112, 112),
        spacing_mm: float = 1.8,
        slice_distance_mm: float = 10.0,
        seed: int = 0,
    ) -> None:
        check_settings(
            patients=patients,
            slices=slices,
            size=size,
            spacing_mm=spacing_mm,
            slice_distance_mm=slice_distance_mm,
            seed=seed,
        )
        self.atlas: Atlas = heart_short_axis()
        self.patients, self.slices, self.size = patients, slices, (int(size[0]), int(size[1]))
        self.spacing_mm, self.slice_mm, self.seed = float(spacing_mm), float(slice_distance_mm), seed
        super().__init__(folder, [DRAWING, patients, slices, self.size, self.spacing_mm, self.slice_mm, seed])

    def read(self, folder: Path) -> ACDC:
        """Return a reader of ACDC's layout, with an atlas that has the atria."""
        reader = ACDC(folder=str(folder))
        reader.atlas = self.atlas
        return reader

    def write(self, folder: Path) -> None:
        """Write training/ and testing/, with a folder for each patient."""
        for number in range(1, self.patients + 1):
            part = "testing" if number % 4 == 3 else "training"
            patient_folder = folder / part / f"patient{number:03}"
            patient_folder.mkdir(parents=True)
            random = np.random.default_rng((self.seed, number, 0))
            group = GROUPS[number % len(GROUPS)]
            lines = {**FRAMES, "Group": group, "Height": random.integers(155, 195), "Weight": random.integers(55, 105)}
            (patient_folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
            gain = random.uniform(150, 700)
            for (_, frame), heart in zip(FRAMES.items(), _hearts(group, random), strict=True):
                image, mask = self._draw(heart, np.random.default_rng((self.seed, number, frame)))
                stem = f"patient{number:03}_frame{frame:02}"
                for volume, name in (((image * gain).astype(np.int16), stem), (mask, f"{stem}_gt")):
                    write_drawn(
                        volume,
                        patient_folder / f"{name}.nii.gz",
                        spacing_mm=(self.slice_mm, self.spacing_mm, self.spacing_mm),
                        origin=(0.0, 0.0, 0.0),
                        direction=tilted() if number % 2 else STRAIGHT,
                    )

    def _draw(self, heart: Heart, random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return image and class indices [S, H, W], slices from base to apex."""
        height, width = self.size
        along, rows, columns = np.meshgrid(
            heart.first + self.slice_mm * np.arange(self.slices),
            (np.arange(height) - (height - 1) / 2) * self.spacing_mm,
            (np.arange(width) - (width - 1) / 2) * self.spacing_mm,
            indexing="ij",
        )
        canvas = _Canvas(self.atlas, along.shape, 0.8 * self.spacing_mm)
        _draw_chest(canvas, rows, columns, random)
        drift = 0.05 * along  # the axis is never quite that of the stack
        across, below = columns - heart.centre[0] - drift, rows - heart.centre[1] - 0.5 * drift
        cosine, sine = np.cos(heart.turn), np.sin(heart.turn)
        _draw_heart(canvas, heart, along, cosine * across + sine * below, cosine * below - sine * across, random)
        return _acquire(canvas.image, rows, random), canvas.mask


def _hearts(group: str, random: np.random.Generator) -> Iterator[Heart]:
    """Return the heart of one patient at end-diastole and at end-systole."""
    size = random.uniform(0.9, 1.12)
    radius, wall, ejected = 25.0 * size, 8.5 * size, random.uniform(0.55, 0.68)
    right = (27.0 * size, 36.0 * size)
    scar = (1.0, 0.0)
    if group == "DCM":
        radius, wall, ejected = radius * 1.35, wall * 0.85, random.uniform(0.15, 0.35)
    elif group == "HCM":
        radius, wall = radius * 0.9, wall * 1.9
    elif group == "MINF":
        radius, ejected, scar = radius * 1.15, random.uniform(0.25, 0.4), (0.5, random.uniform(-np.pi, np.pi))
    elif group == "RV":
        right = (right[0] * 1.4, right[1] * 1.15)
    length, atria = 84.0 * size, size * random.uniform(0.9, 1.15)
    turn, centre = random.normal(0, 0.2), tuple(random.uniform(-12, 12, 2).tolist())
    first = random.uniform(-19, -7)
    yield Heart(radius, length, wall, scar, right, atria, turn, (centre[0], centre[1]), first)
    smaller = (1 - ejected) ** 0.4  # the rest of the volume goes with the length
    thicker = 1 + 0.9 * ejected
    narrow = 1 - 0.35 * ejected
    yield Heart(
        radius * smaller,
        length * (1 - ejected) ** 0.2,
        wall * thicker,
        scar,
        (right[0] * narrow, right[1] * narrow),
        atria * 1.12,
        turn,
        (centre[0], centre[1]),
        first - 6.0,  # the valve moves towards the apex, and the slices do not
    )


class _Canvas:
    """Signal and mask, painted with soft edges; later structures cover earlier ones."""

    def __init__(self, atlas: Atlas, shape: tuple[int, ...], edge_mm: float) -> None:
        self.image = np.zeros(shape)
        self.mask = np.zeros(shape, np.uint8)
        self.classes = {structure.name: structure.index for structure in atlas.structures}
        self.edge_mm = edge_mm

    def paint(self, distance: Array, signal: float | Array, name: str | None = None) -> None:
        """Paint `signal` and a label inside the edge; `distance` is in mm to the edge, negative inside."""
        cover = np.clip(0.5 - distance / self.edge_mm, 0, 1)
        self.image += cover * (signal - self.image)
        self.mask[distance < 0] = self.classes[name] if name else 0


def _texture(random: np.random.Generator, shape: tuple[int, ...], width: tuple[float, ...]) -> Array:
    """Return smooth noise with mean 0 and standard deviation 1."""
    noise = gaussian_filter(random.standard_normal(shape), width)
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-6))


def _ellipse(beside: Array, down: Array, half_beside: float | Array, half_down: float | Array) -> Array:
    """Return the approximate distance to the edge of an ellipse, in mm."""
    half_beside, half_down = np.maximum(half_beside, 0.5), np.maximum(half_down, 0.5)
    norm = np.hypot(beside / half_beside, down / half_down)
    return np.asarray((norm - 1) * np.minimum(half_beside, half_down))


def _draw_chest(canvas: _Canvas, rows: Array, columns: Array, random: np.random.Generator) -> None:
    """Paint lungs, liver and stomach below, the chest wall in front, the spine behind."""
    blobs = _texture(random, rows.shape, (0.7, 5, 5))
    canvas.paint(np.full(rows.shape, -99.0), LUNG + 0.03 * np.clip(blobs, 0, 2))
    dome = 48 + 6 * random.standard_normal() - 0.25 * columns + 6 * _texture(random, rows.shape, (2, 12, 12))
    canvas.paint(dome - rows, LIVER + 0.05 * blobs)
    ribs = _texture(random, rows.shape, (0.5, 3, 8))
    front = -62 + 5 * random.standard_normal() + 0.004 * columns**2
    canvas.paint(rows - front, WALL + 0.12 * ribs)
    canvas.paint(rows - front + 14, FAT - 0.1 * np.abs(ribs))
    canvas.paint(rows - front + 26, 0.0)
    aorta = np.hypot(columns - 28, rows - 55)
    canvas.paint(aorta - 11, BLOOD)


def _draw_heart(
    canvas: _Canvas, heart: Heart, along: Array, beside: Array, down: Array, random: np.random.Generator
) -> None:
    """Paint the atria and the aortic root above the valve, and below it two ventricles, the left one in its muscle."""
    ventricle = along >= 0
    depth = np.clip(along / heart.length, 0, 1)
    radius = np.where(along < heart.length, heart.radius * np.sqrt(np.clip(1 - depth**2, 0, 1)), -heart.wall)
    angle = np.arctan2(down, beside)
    scarred = 1 - (1 - heart.thinned[0]) * np.exp(
        -(((np.mod(angle - heart.thinned[1] + np.pi, 2 * np.pi) - np.pi) / 0.6) ** 2)
    )
    wall = heart.wall * scarred * (1 - 0.25 * depth**2)
    beyond = np.clip((along - heart.length) / heart.wall, 0, 1)  # the muscle closes over the tip of the cavity
    outer = np.where(along < heart.length, radius + wall, heart.wall * np.sqrt(1 - beyond**2) - 2 * beyond)
    distance = np.hypot(beside, down)
    fat = distance - outer - 5
    canvas.paint(np.where(ventricle & (along < heart.length + heart.wall), fat, 99.0), FAT * 0.7)
    # The right ventricle leans on the muscle from the septum's side, as a crescent
    shrink = np.sqrt(np.clip(1 - (along / (0.86 * heart.length)) ** 2, 0, 1))
    right = _ellipse(
        beside + heart.radius + 0.8 * heart.wall, down - 3, heart.right[0] * shrink, heart.right[1] * shrink
    )
    there = ventricle & (shrink > 0.15)
    canvas.paint(np.where(there, right - 3, 99.0), MUSCLE)
    crescent = np.maximum(right, outer - distance)
    trabeculae = 0.1 * np.clip(_texture(random, along.shape, (0.4, 1.2, 1.2)), -1, 2)
    canvas.paint(np.where(there, crescent, 99.0), BLOOD - trabeculae, RV)
    canvas.paint(np.where(ventricle, distance - outer, 99.0), MUSCLE + 0.02 * trabeculae, MYO)
    cavity = np.where(ventricle, distance - radius, 99.0)
    canvas.paint(cavity, BLOOD, LV)
    for side in (0.6, 2.4):  # papillary muscles belong to the cavity, as ACDC's annotation has it
        muscle = np.hypot(beside - 0.62 * radius * np.cos(side), down - 0.62 * radius * np.sin(side)) - 0.17 * radius
        lies = ventricle & (depth > 0.25) & (depth < 0.75)
        canvas.image += np.where(lies, np.clip(0.5 - muscle / canvas.edge_mm, 0, 1), 0) * (MUSCLE - canvas.image)
    above = (along < 0) & (along > -45 * heart.atria)
    for name, center, half in ((LA, (9.0, 17.0), (26.0, 17.0)), (RA, (-38.0, 10.0), (21.0, 24.0))):
        edge = _ellipse(beside - center[0], down - center[1], half[0] * heart.atria, half[1] * heart.atria)
        canvas.paint(np.where(above, edge - 2.5, 99.0), MUSCLE)
        canvas.paint(np.where(above, edge, 99.0), BLOOD, name)
    root = np.hypot(beside + 6, down + 14) - 14 * heart.atria
    canvas.paint(np.where(along < 0, root - 2, 99.0), MUSCLE)
    canvas.paint(np.where(along < 0, root, 99.0), BLOOD)


def _acquire(signal: Array, rows: Array, random: np.random.Generator) -> NDArray[np.float32]:
    """Return the signal as a scanner records it: blurred, weighted by the chest coil, with Rician noise."""
    shape = signal.shape
    image = gaussian_filter(signal * (1 + 0.05 * _texture(random, shape, (0.3, 1, 1))), (0.2, 0.5, 0.5))
    coil = np.exp(-(rows - rows.min()) / random.uniform(180, 420))
    drift = np.exp(0.07 * _texture(random, shape, (3, shape[1] / 4, shape[2] / 4)))
    image = image * coil * drift
    sigma = random.uniform(0.01, 0.03)
    noisy = np.hypot(image + random.normal(0, sigma, shape), random.normal(0, sigma, shape))
    return np.asarray(noisy, dtype=np.float32)
