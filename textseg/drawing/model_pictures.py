"""Draw what a network computes: probabilities over a slice, and pixels in a plane by their features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.drawing.pictures import HEADING, figure_png, grey, write_legend
from textseg.volumes.colours import structure_colour

INCHES = 2.6  # width of a panel


@dataclass(frozen=True)
class ProbabilityMaps:
    """Probabilities of some structures in a slice, by one method."""

    method: str
    image: NDArray[np.floating[Any]]  # [H, W]
    maps: Mapping[str, NDArray[np.floating[Any]]]  # by structure, each [H, W], in 0..1
    references: Mapping[str, NDArray[np.bool_]]  # by structure, each [H, W]
    pixel_aspect: float = 1.0  # row distance / column distance


@dataclass(frozen=True)
class PixelPlaces:
    """Pixels in a plane, close together where their features are similar."""

    method: str
    features: str  # what they are features of, such as "96 fused features"
    places: NDArray[np.floating[Any]]  # [N, 2]
    classes: NDArray[np.integer[Any]]  # [N], of the annotation; 0 is background


def probability_png(title: str, lines: Sequence[ProbabilityMaps]) -> bytes:
    """Return a PNG with a line for each method: image, then the probability of each structure with its outline."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    columns = 1 + max(len(line.maps) for line in lines)
    heights = [INCHES * line.image.shape[0] * line.pixel_aspect / line.image.shape[1] for line in lines]
    width, total = columns * INCHES + 0.9, sum(heights) + 0.3 * len(lines) + 0.43
    dots = max(60, min(150, math.floor(9000 / max(width, total))))
    figure = Figure(figsize=(width, total), dpi=dots, facecolor="white")
    figure.text(0.1 / width, 1 - 0.1 / total, title, size=12, **HEADING)
    top, drawn = total - 0.33, None
    for line, height in zip(lines, heights, strict=True):
        top -= height + 0.3
        for column, name in enumerate([line.method, *line.maps]):
            area = ((0.1 + column * INCHES) / width, top / total, (INCHES - 0.08) / width, height / total)
            axes = figure.add_axes(area)
            axes.set_axis_off()
            axes.set_title(name, size=min(10.0, 340 / max(1, len(name))), pad=4, parse_math=False)
            axes.imshow(grey(line.image), cmap="gray", vmin=0, vmax=1, aspect=line.pixel_aspect)
            if column == 0:
                continue
            values, reference = line.maps[name], line.references[name]
            cover = np.clip(2 * values, 0, 0.85)  # the image shows through where nothing is likely
            drawn = axes.imshow(values, cmap="inferno", vmin=0, vmax=1, aspect=line.pixel_aspect, alpha=cover)
            if reference.any() and not reference.all():
                axes.contour(reference, levels=[0.5], colors="#33ddff", linewidths=0.9)
    if drawn is not None:
        bar = figure.add_axes(((width - 0.7) / width, top / total, 0.14 / width, min(heights[-1], 2.5) / total))
        figure.colorbar(ScalarMappable(norm=drawn.norm, cmap="inferno"), cax=bar)
        bar.tick_params(labelsize=8)
    return figure_png(figure)


def pixel_png(title: str, maps: Sequence[PixelPlaces], names: Mapping[int, str]) -> bytes:
    """Return a PNG of pixels in a plane, side by side by method, coloured by structure; the background is grey."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(3, len(maps))
    lines = math.ceil(len(maps) / columns)
    present = sorted({int(index) for pixels in maps for index in np.unique(pixels.classes)})
    side = 4.2
    per_line = max(1, int(columns * side / 1.05))
    colours = {index: structure_colour(index) if index else (0.75, 0.75, 0.75) for index in present}
    legend = 0.25 * math.ceil(len(present) / per_line) + 0.2
    width, total = columns * side + 0.2, lines * (side + 0.5) + legend + 0.35
    figure = Figure(figsize=(width, total), dpi=110, facecolor="white")
    figure.text(0.12 / width, 1 - 0.1 / total, title, size=12, **HEADING)
    for number, pixels in enumerate(maps):
        line, column = divmod(number, columns)
        bottom = total - 0.35 - (line + 1) * (side + 0.5)
        area = ((0.15 + column * side) / width, (bottom + 0.1) / total, (side - 0.15) / width, (side - 0.1) / total)
        axes = figure.add_axes(area)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#bbbbbb")
        axes.set_title(f"{pixels.method}\n{pixels.features}", size=10, pad=4, parse_math=False)
        for index, colour in colours.items():
            x, y = pixels.places[pixels.classes == index].T
            axes.scatter(x, y, s=9, color=[colour], linewidths=0.2, edgecolors="#333333")
        axes.set_aspect("equal", adjustable="datalim")
    dot: dict[str, Any] = {"marker": "o", "linestyle": "", "markeredgecolor": "#333333", "markersize": 6}
    texts = [names.get(index, str(index)) if index else "background" for index in present]
    keys = [Line2D([], [], color=colour, **dot) for colour in colours.values()]
    write_legend(figure, keys, texts, ncol=per_line, handletextpad=0.2)
    return figure_png(figure)
