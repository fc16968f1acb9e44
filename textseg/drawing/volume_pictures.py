"""Draw volumes: the structures of a case or of a mask, and the frequency of each structure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textseg.contracts import Atlas, Case
from textseg.data.preparation import map_labels
from textseg.drawing.pictures import HEADING, Panels, draw_structures, figure_png, panels_png
from textseg.errors import DataError
from textseg.system.messages import counted
from textseg.volumes.colours import structure_colour
from textseg.volumes.files import read_labels
from textseg.volumes.labels import fullest_slice
from textseg.volumes.mask import Mask
from textseg.volumes.scan import read_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from textseg.contracts import LabelMap

PANEL_INCHES = 5.0
HEADER_INCHES = 0.95
MONTAGE = 6  # slices of a mask
INK = "#12161c"


def case_png(case: Case, label_map: LabelMap, atlas: Atlas, slices: Sequence[int] | None = None) -> bytes:
    """Return a PNG of slices of a case (0-based; by default three around the one that shows most), with names.

    Raises DataError for a slice that the case lacks, and for a case that can't be read or has no mask.
    """
    volume = read_picture(case.image, atlas.plane)
    if case.mask is None:
        raise DataError(f"Case '{case.id}' has no mask, so there is nothing to name in it.")
    classes = map_labels(read_labels(case.mask, atlas.plane), label_map, case)
    count = len(volume.array)
    if classes.shape != volume.array.shape:
        raise DataError(f"Case '{case.id}': image {volume.array.shape} and mask {classes.shape} differ in size.")
    if slices is None:
        middle, step = fullest_slice(classes), max(1, count // 8)
        slices = sorted({index for index in (middle - step, middle, middle + step) if 0 <= index < count})
    if beyond := [index for index in slices if not 0 <= index < count]:
        raise DataError(f"Case '{case.id}' has slices 1 to {count}, and no {beyond[0] + 1}.")
    slice_mm, row_mm, column_mm = volume.spacing_mm
    height, width = volume.array.shape[1:]
    panel = min(max(PANEL_INCHES * height * row_mm / (width * column_mm), 1.5), 2.5 * PANEL_INCHES)
    figure = _figure((PANEL_INCHES * len(slices), panel + HEADER_INCHES), INK)
    facts = ", ".join(f"{key} {value}" for key, value in case.facts.items())
    title = f"{case.id}  patient {case.patient}"
    size = f"{counted(count, 'slice')}, {slice_mm:.3g} x {row_mm:.3g} x {column_mm:.3g} mm"
    figure.text(0.01, 1 - 0.1 / (panel + HEADER_INCHES), title, color="white", size=12, **HEADING)
    for line, down in ((facts, 0.34), (size, 0.5)):
        figure.text(0.01, 1 - down / (panel + HEADER_INCHES), line, color="white", size=9, va="top", parse_math=False)
    names = {structure.index: structure.name for structure in atlas.structures}
    for position, index in enumerate(slices):
        area = (position / len(slices) + 0.004, 0, 1 / len(slices) - 0.008, panel / (panel + HEADER_INCHES))
        axes = figure.add_axes(area)
        axes.set_title(f"slice {index + 1} of {count}", color="white", size=10, pad=4)
        draw_structures(axes, volume.array[index], classes[index], names, pixel_aspect=row_mm / column_mm)
    return figure_png(figure)


def mask_png(title: str, mask: Mask, image: NDArray[np.floating[Any]]) -> bytes:
    """Return a PNG of up to six slices of a volume [S, H, W], spread evenly over those with structures, with names."""
    shown = np.flatnonzero(mask.array.any(axis=(1, 2)))
    if not len(shown):
        shown = np.arange(len(mask.array))
    places = np.linspace(0, len(shown) - 1, min(MONTAGE, len(shown)))
    chosen = shown[np.unique(places.round().astype(int))]
    panels = {f"slice {index + 1} of {len(mask.array)}": mask.array[index] for index in chosen.tolist()}
    _, row_mm, column_mm = mask.geometry.spacing_mm
    return panels_png([Panels(title, image[chosen], panels, mask.names, row_mm / column_mm)])


def frequency_png(title: str, atlas: Atlas, cases: Sequence[Mapping[str, int]]) -> bytes:
    """Return a PNG of the number of cases and slices with each structure; `cases` map structures to slice counts."""
    from matplotlib.ticker import MaxNLocator

    names = [*atlas.sequence, *(name for name in atlas.names if name not in atlas.sequence)]
    in_cases = [sum(name in case for case in cases) for name in names]
    in_slices = [sum(case.get(name, 0) for case in cases) for name in names]
    figure = _figure((9.0, 0.32 * len(names) + 1.4), "white")
    figure.suptitle(title, x=0.01, ha="left", weight="bold", size=12, parse_math=False)
    for column, (unit, counts) in enumerate((("cases", in_cases), ("slices", in_slices))):
        axes = figure.add_axes((0.1 + 0.46 * column, 0.08, 0.4, 0.8))
        colours = [structure_colour(atlas[name].index) for name in names]
        bars = axes.barh(range(len(names)), counts, color=colours, edgecolor="#333333", linewidth=0.5)
        axes.bar_label(bars, labels=[str(count) for count in counts], padding=3, fontsize=8)
        axes.set_yticks(range(len(names)), names if column == 0 else [""] * len(names), parse_math=False)
        axes.invert_yaxis()
        axes.set_xlim(0, max([*counts, 1]) * 1.15)
        axes.set_title(f"{unit} that show it", size=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure_png(figure)


def _figure(inches: tuple[float, float], background: str) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=inches, dpi=max(60, min(110, math.floor(3000 / inches[0]))), facecolor=background)
