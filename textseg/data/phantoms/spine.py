"""Synthetic sagittal MRI of a spine: drawn from the numbers of a region, so that tests and tutorials need no patient.

Everything is drawn in coordinates that follow the spine: `along` its axis (downwards), `behind` it (to posterior) and
`beside` it (to the right), all in mm. A bent spine is then a stack of simple shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from textseg.data.phantoms.spine_anatomy import Anatomy, Array, Contrast, Level, Space, Spine, Window


@dataclass(frozen=True)
class Phantom:
    """The images and the mask of a synthetic patient."""

    images: tuple[NDArray[np.float32], ...]  # [S, H, W] for each contrast, background about 0, brightest about 1
    mask: NDArray[np.uint8]  # [S, H, W] the value of each structure
    spacing_mm: tuple[float, float, float]  # of slices, rows, columns


def render(
    values: Mapping[str, int],
    anatomy: Anatomy,
    contrasts: Sequence[Contrast],
    *,
    shape: tuple[int, int, int],
    spacing_mm: float,
    slice_distance_mm: float,
    seed: int | Sequence[int],
    scale: float = 1.0,
) -> Phantom:
    """Draw a patient, once for each contrast; the same arguments give the same arrays.

    `values` gives the value in the mask of each structure that the mask shows; other structures stay background.
    `shape` is S, H, W; `scale` makes the whole patient larger. Raises DataError if the picture is lower than 20 mm.
    """
    random = np.random.default_rng(seed)
    spine = Spine(anatomy, random, scale)
    space = Space(spine, random, shape, spacing_mm, slice_distance_mm)
    canvas = _Canvas(values, contrasts, space, spacing_mm)
    _draw_surroundings(canvas, spine, random)
    for level, above in zip(spine.levels, [None, *spine.levels], strict=False):
        _draw_posterior(canvas, spine, level, above)
    for level, below in pairwise(spine.levels):
        _draw_disc(canvas, spine, level, below)
    for level in spine.levels:
        _draw_body(canvas, spine, level, random)
    _draw_canal(canvas, spine, random)
    images = tuple(_acquire(image, space, random) for image in canvas.images)
    return Phantom(images, canvas.mask, (slice_distance_mm, spacing_mm, spacing_mm))


class _Canvas:
    """The signal of each contrast and the mask, painted with soft edges, later over earlier."""

    def __init__(
        self, values: Mapping[str, int], contrasts: Sequence[Contrast], space: Space, spacing_mm: float
    ) -> None:
        self.values, self.space, self.contrasts = values, space, contrasts
        self.edge_mm = 0.8 * spacing_mm
        self.images = [np.zeros(space.beside.shape) for _ in contrasts]
        self.mask = np.zeros(space.beside.shape, np.uint8)

    def paint(self, distance: Array, window: Window | None = None, **amounts: float | Array) -> None:
        """Mix tissues where `distance` (mm to the edge, negative inside) says so."""
        cover = np.clip(0.5 - distance / self.edge_mm, 0, 1)
        for image, contrast in zip(self.images, self.contrasts, strict=True):
            region = image[(..., *window)] if window else image
            region += cover * (sum(getattr(contrast, tissue) * share for tissue, share in amounts.items()) - region)

    def label(self, name: str, inside: NDArray[np.bool_], window: Window | None = None) -> None:
        if name in self.values:
            (self.mask[(..., *window)] if window else self.mask)[inside] = self.values[name]


def _norm(power: float, *parts: Array) -> Array:
    """Length of a vector in the p-norm: below 1 inside a rounded block."""
    total: Array = sum((np.abs(part) ** power for part in parts[1:]), np.abs(parts[0]) ** power)
    return total ** (1 / power)


def _texture(random: np.random.Generator, shape: tuple[int, ...], width: tuple[float, ...]) -> Array:
    """Smooth noise of mean 0 and standard deviation 1."""
    noise = gaussian_filter(random.standard_normal(shape, np.float32), width)
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-6))


def _draw_surroundings(canvas: _Canvas, spine: Spine, random: np.random.Generator) -> None:
    """Abdomen, vessels, muscles, fat and skin."""
    space, anatomy = canvas.space, spine.anatomy
    shape = space.beside.shape
    half_depth, half_width = (np.interp(space.along, spine.along, values / 2) for values in (spine.depth, spine.width))
    aside = np.abs(space.beside)
    blobs, streaks = _texture(random, shape, (0.8, 7, 7)), _texture(random, shape, (0.6, 6, 1.2))
    organ = 0.5 + 0.5 * np.tanh(2 * blobs)
    bowel = np.clip(_texture(random, shape, (0.8, 4, 4)) - 1, 0, 1) * (0.3 + 0.7 * space.rows / space.rows.max())
    canvas.paint(np.full(shape, -99.0), organ=organ * (1 - bowel), fat=0.6 * (1 - organ), fluid=0.5 * bowel)
    canvas.paint(_norm(2, (space.behind + half_depth) / 9, np.zeros(1)) * 9 - 9 + 0 * aside, fat=0.6, muscle=0.4)
    psoas = _norm(3, (space.behind + 4) / 24, (aside - half_width - 14) / 18)
    canvas.paint((psoas - 1) * 18, muscle=1.0, fat=0.05)
    for side, wide in ((-9.0, 7.0), (14.0, 8.0)):  # the aorta on the left, the vena cava on the right
        radius = wide * spine.scale * np.clip((spine.anchor - 40 - space.along) / 25, 0.01, 1) ** 0.5  # they fork
        front = half_depth + 4 + wide + 4 * _texture(random, space.along.shape, (25, 25))
        vessel = _norm(2, space.behind + front, space.beside - side * random.uniform(0.7, 1.3))
        canvas.paint(vessel - radius, cortex=0.8, muscle=0.2)
    fatty = np.clip(0.25 + 0.2 * streaks + 0.25 * random.random() + (aside < 7) * 0.1, 0, 1)
    canvas.paint(half_depth + 4 - space.behind + 0 * aside, muscle=1 - fatty, fat=fatty)
    back = space.axis_column + spine.scale * random.uniform(*anatomy.back_mm) + 0.06 * (aside - 20)
    front = space.axis_column - spine.scale * random.uniform(*anatomy.front_mm)
    rind = random.uniform(6, 26) * (0.7 + 0.6 * space.rows / space.rows.max())
    outside = np.maximum(space.columns - back, front - space.columns)
    canvas.paint(-(outside + rind), fat=0.95 + 0.05 * streaks)
    canvas.paint(-(outside + 2.5), muscle=1.0)
    canvas.paint(-outside, muscle=0.0)


def _draw_posterior(canvas: _Canvas, spine: Spine, level: Level, above: Level | None) -> None:
    """Pedicles, laminae and processes; those of the level above stay in front where both meet."""
    centre = spine.centre[level.name]
    wall = level.depth_mm / 2
    window = canvas.space.window((centre - 45, centre + 75), (-wall, wall + 75))
    if window is None or not level.parts:
        return
    along, behind, beside = canvas.space.at(window)
    distance = np.full(beside.shape, 99.0)
    for part in level.parts:
        half = np.array(part.half_mm) * spine.scale
        back = behind - wall - part.behind_mm * spine.scale
        down = along - centre - part.along * level.height_mm - part.slope * back
        aside = np.abs(beside) - part.beside_mm * spine.scale if part.beside_mm else beside
        block = (_norm(3, down / half[0], back / half[1], aside / half[2]) - 1) * half.min()
        distance = -1.5 * np.logaddexp(-distance / 1.5, -block / 1.5)  # a soft minimum: parts grow together
    if above is not None and above.name in canvas.values:
        taken = canvas.mask[(..., *window)] == canvas.values[above.name]
        distance = np.where(taken, np.maximum(distance, 0.5 * canvas.edge_mm), distance)
    canvas.paint(distance, window, cortex=1.0)
    canvas.paint(distance + 1.3, window, marrow=0.8, fat=0.15)
    canvas.label(level.name, distance < 0, window)


def _draw_disc(canvas: _Canvas, spine: Spine, level: Level, below: Level) -> None:
    """Fills what the two bodies leave free; its nucleus is bright where the disc is young."""
    worn, gap = spine.wear[level.name], level.disc_height_mm / 2
    centre = spine.centre[level.name] + level.height_mm / 2 + gap
    depth, width = (level.depth_mm + below.depth_mm) / 4 * 1.03, (level.width_mm + below.width_mm) / 4 * 1.03
    window = canvas.space.window((centre - 20, centre + 20), (-depth - 8, depth + 8))
    if window is None:
        return
    along, behind, beside = canvas.space.at(window)
    bulge = 0.0 if level.fused else 1.0 + 3.0 * worn**2
    rim = _norm(2.5, (behind - bulge / 2) / (depth + bulge / 2), beside / width)
    half = gap + 1.5 + 0.06 * level.height_mm * np.clip(1 - rim**2, 0, 1)
    distance = (_norm(6, rim, (along - centre) / half) - 1) * np.minimum(half, depth)
    canvas.paint(distance, window, annulus=1.0)
    nucleus = _norm(2, (behind + 1) / (0.68 * depth), beside / (0.72 * width), (along - centre) / (0.75 * half))
    cleft = 0.35 * np.exp(-(((along - centre) / 1.2) ** 2))
    bright = (1 - worn) * (1 - cleft)
    canvas.paint((nucleus - 1) * half, window, nucleus=bright, annulus=1 - bright)
    canvas.label(level.disc, distance < 0, window)


def _draw_body(canvas: _Canvas, spine: Spine, level: Level, random: np.random.Generator) -> None:
    """A waisted block with rounded corners, concave endplates and a flat back."""
    centre, half, depth, width = (spine.centre[level.name], level.height_mm / 2, level.depth_mm / 2, level.width_mm / 2)
    window = canvas.space.window((centre - half - 6, centre + half + 6), (-depth - 6, depth + 6))
    if window is None:
        return
    along, behind, beside = canvas.space.at(window)
    height = (along - centre) / half
    slim = 1 - 0.09 * np.clip(1 - height**2, 0, 1)
    hollow = 2.5 * np.clip(1 - (beside / (0.6 * width)) ** 2, 0, 1)  # the posterior wall gives room to the canal
    rim = _norm(3, (behind + hollow / 2) / (depth * slim - hollow / 2), beside / (width * slim))
    dish = 1 - 0.1 * np.clip(1 - rim**2, 0, 1)
    distance = (_norm(9, rim, height / dish) - 1) * np.minimum(half, depth)
    canvas.paint(distance, window, cortex=1.0)
    vein: Array = np.exp(-(((along - centre) / 2.5) ** 2) - ((behind - depth) / 9) ** 2 - (beside / 6) ** 2)
    fat = np.clip(random.normal(0.12, 0.08), 0, 0.3) * np.ones_like(beside)
    canvas.paint(distance + 1.0, window, marrow=0.95 - fat, fat=fat, fluid=0.3 * vein)
    canvas.label(level.name, distance < 0, window)


def _draw_canal(canvas: _Canvas, spine: Spine, random: np.random.Generator) -> None:
    """Dural sac with cord and roots, epidural fat behind it, and worn discs that press on it."""
    anatomy, space, scale = spine.anatomy, canvas.space, spine.scale
    along, behind, beside = space.along, space.behind, space.beside
    wall = np.interp(along, spine.along, spine.depth / 2)
    pressed = np.zeros_like(along)
    for level in spine.levels:
        disc = spine.centre[level.name] + level.height_mm / 2 + level.disc_height_mm / 2
        if not level.fused:
            pressed += 4.5 * spine.wear[level.name] ** 2 * np.exp(-(((along - disc) / 5) ** 2))
    taper = np.ones_like(along)
    if anatomy.canal_end:
        taper = np.clip(1 - (along - spine.centre[anatomy.canal_end] + 12) / 55, 0.02, 1) ** 0.6
    depth = np.maximum((anatomy.canal_size_mm[0] * scale - pressed) * taper, 0.5) / 2
    width = anatomy.canal_size_mm[1] * scale * taper / 2
    front = wall + anatomy.canal_gap_mm * scale + pressed * taper
    sac = (_norm(2.3, (behind - front - depth) / depth, beside / width) - 1) * depth
    fat = (_norm(2, (behind - front - 2 * depth) / (6 * taper), beside / (0.6 * width)) - 1) * 6 * taper
    free = canvas.mask == 0
    canvas.paint(np.where(free, np.maximum(fat, 0.5 - 99.0 * (taper > 0.05)), 99.0), fat=0.9)
    canvas.paint(sac - 1.0, cortex=0.6, fat=0.4)
    canvas.paint(sac, fluid=1.0)
    end = spine.centre[anatomy.cord_end] + random.normal(0, 14) if anatomy.cord_end else np.inf
    thick = np.clip((end - along) / 30, 0, 1) ** 0.7
    cord_depth, cord_width = (mm * scale / 2 * np.maximum(thick, 0.02) for mm in anatomy.cord_size_mm)
    cord = (_norm(2, (behind - front - 1.05 * depth) / cord_depth, beside / cord_width) - 1) * cord_depth
    canvas.paint(np.where(sac < -0.5, cord, 99.0), cord=1.0)
    strands = _texture(random, beside.shape, (0.7, 5, 0.8))
    roots = np.clip(0.45 + 0.25 * strands, 0, 0.9) * (behind > front + 0.9 * depth) * (along > end - 20)
    canvas.paint(np.where(roots > 0, sac + 1, 99.0), cord=roots, fluid=1 - roots)
    canvas.label(anatomy.canal, (sac < 0) & (taper > 0.05) & (depth > 1.2))
    canvas.label(anatomy.cord, (cord < 0) & (sac < 0) & (along < end))


def _acquire(signal: Array, space: Space, random: np.random.Generator) -> NDArray[np.float32]:
    """Simulate the scanner: grain, blur, the sensitivity of the coil, Rician noise."""
    shape = signal.shape
    grain = 1 + 0.06 * _texture(random, shape, (0.3, 0.8, 0.8)) + 0.06 * _texture(random, shape, (1, 4, 4))
    blurred = gaussian_filter(signal * grain, (0.25, 0.4, 0.4))
    reach = random.uniform(100, 300)
    middle = space.rows.max() * random.uniform(0.4, 0.6)
    from_back = np.clip(space.axis_column + 60 - space.columns, 0, None)
    coil = np.exp(-from_back / reach - ((space.rows - middle) / (space.rows.max() * random.uniform(0.6, 1.0))) ** 2)
    drift = np.exp(0.08 * _texture(random, shape, (3, shape[1] / 5, shape[2] / 5)))
    image = blurred * coil * drift
    sigma = random.uniform(0.008, 0.026)
    noisy = np.hypot(image + random.normal(0, sigma, shape), random.normal(0, sigma, shape))
    return np.asarray(noisy, dtype=np.float32)
