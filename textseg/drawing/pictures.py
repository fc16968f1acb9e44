"""Draw structures over an image, and the curves of a training."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from textseg.contracts import IGNORED
from textseg.drawing.page import render
from textseg.volumes.colours import structure_colour

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Points = Sequence[tuple[float, float]]

_PAPER, _INK = "#12161c", "#e8ecf1"
_PANEL_INCHES = 4.2
HEADING: Mapping[str, Any] = {"weight": "bold", "va": "top", "parse_math": False}  # of a figure


@dataclass(frozen=True)
class OverlayPicture:
    """A slice to draw: class indices of reference and prediction over the image."""

    title: str
    image: NDArray[np.floating[Any]]  # [H, W]
    reference: NDArray[np.integer[Any]]  # [H, W], 0 is background
    prediction: NDArray[np.integer[Any]]  # [H, W], 0 is background
    names: Mapping[int, str]  # of the structures, by class index
    pixel_aspect: float = 1.0  # row distance / column distance


@dataclass(frozen=True)
class Panels:
    """A slice with several label maps to draw over it, by heading; None for the image alone."""

    title: str
    image: NDArray[np.floating[Any]]  # [H, W], or [N, H, W]: one for each of N masks
    masks: Mapping[str, NDArray[np.integer[Any]] | None]  # each [H, W]
    names: Mapping[int, str]  # of the structures, by class index
    pixel_aspect: float = 1.0  # row distance / column distance


def label_place(region: NDArray[np.bool_]) -> tuple[int, int]:
    """Return row and column for the name of a region [H, W]: near the centroid of its largest part.

    A centroid alone may lie outside, as with a bent canal, or between two islands; this point lies well inside.
    """
    from scipy import ndimage

    parts, _ = ndimage.label(region)
    largest = parts == 1 + np.bincount(parts[region])[1:].argmax()
    depth = ndimage.distance_transform_edt(largest)
    inside = np.argwhere(depth >= depth.max() / 2)
    row, column = inside[((inside - np.argwhere(largest).mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(row), int(column)


def overlay_png(*pictures: OverlayPicture) -> bytes:
    """Return a PNG of image, reference and prediction side by side, with coloured and named structures and a legend."""
    panels = []
    for picture in pictures:
        masks = {"image": None, "reference": picture.reference, "prediction": picture.prediction}
        panels.append(Panels(picture.title, picture.image, masks, picture.names, picture.pixel_aspect))
    return panels_png(panels)


def panels_png(
    pictures: Sequence[Panels], *, columns: int = 3, panel_inches: float = _PANEL_INCHES, paper: str = _PAPER
) -> bytes:
    """Return a PNG of slices below one another, each with its panels in lines of `columns`, and one legend for all."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ink = _INK if paper == _PAPER else _PAPER
    names = {IGNORED: "ignored"} | {index: name for picture in pictures for index, name in picture.names.items()}
    masks = [mask for picture in pictures for mask in picture.masks.values() if mask is not None]
    present = sorted({int(index) for mask in masks for index in np.unique(mask)} - {0})
    columns = min(columns, max(len(picture.masks) for picture in pictures))
    width = columns * panel_inches + 0.2
    per_line = max(1, min(int((width - 0.2) / 1.26), 20))
    legend_inches = 0.32 * math.ceil(len(present) / per_line) + 0.1
    heights = [
        min(max(panel_inches * p.image.shape[-2] * p.pixel_aspect / p.image.shape[-1], 1.5), 2.5 * panel_inches)
        for p in pictures
    ]
    lines = [math.ceil(len(picture.masks) / columns) for picture in pictures]
    title_inches, heading_inches = 0.36, 0.3
    total = legend_inches + sum(title_inches + n * (h + heading_inches) for n, h in zip(lines, heights, strict=True))
    dots = max(60, min(110, math.floor(12000 / max(width, total))))
    figure = Figure(figsize=(width, total), dpi=dots, facecolor=paper)
    name_size = min(8.0, max(5.0, 2.2 * panel_inches))
    top = total
    for picture, height, count in zip(pictures, heights, lines, strict=True):
        # At the left, since a phone shows only the first panel at first.
        figure.text(0.1 / width, (top - 0.12) / total, picture.title, color=ink, size=13, **HEADING)
        top -= title_inches
        for number, (heading, mask) in enumerate(picture.masks.items()):
            line, column = divmod(number, columns)
            bottom = top - (line + 1) * (height + heading_inches)
            left = 0.1 + column * panel_inches + 0.04
            axes = figure.add_axes((left / width, bottom / total, (panel_inches - 0.08) / width, height / total))
            size = 11 if len(heading) <= 12 * panel_inches else max(6.0, 11 * 12 * panel_inches / len(heading))
            axes.set_title(heading, color=ink, size=size, pad=4, parse_math=False)
            image, aspect = picture.image if picture.image.ndim == 2 else picture.image[number], picture.pixel_aspect
            draw_structures(axes, image, mask, picture.names, pixel_aspect=aspect, name_size=name_size)
        top -= count * (height + heading_inches)
    if present:
        patches = [Patch(color=_colour(index)) for index in present]
        style = {"labelcolor": ink, "columnspacing": 1.2, "handlelength": 1.1, "borderaxespad": 0.1}
        texts = [names.get(index, str(index)) for index in present]
        write_legend(figure, patches, texts, ncol=min(per_line, len(present)), **style)
    return figure_png(figure)


def write_legend(figure: Figure, keys: Sequence[Artist], names: Sequence[str], **style: Any) -> None:
    """Write the names of structures at the lower left of a figure, as they are: a dollar sign begins no formula."""
    legend = figure.legend(keys, ["name"] * len(names), loc="lower left", frameon=False, fontsize=9, **style)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def figure_png(figure: Figure) -> bytes:
    """Return a figure as PNG, on its own background."""
    png = io.BytesIO()
    figure.savefig(png, format="png", facecolor=figure.get_facecolor())
    return png.getvalue()


def draw_structures(
    axes: Axes,
    image: NDArray[np.floating[Any]],
    mask: NDArray[np.integer[Any]] | None,
    names: Mapping[int, str],
    *,
    pixel_aspect: float,
    name_size: float = 8.0,
) -> None:
    """Draw an image [H, W] and, over it, the structures of a mask [H, W], each coloured and named at its place."""
    from matplotlib.patheffects import withStroke

    axes.set_axis_off()
    axes.imshow(grey(image), cmap="gray", vmin=0, vmax=1, aspect=pixel_aspect)
    if mask is None:
        return
    axes.imshow(painted(mask), interpolation="nearest", aspect=pixel_aspect)
    style: dict[str, Any] = {"color": "white", "size": name_size, "weight": "bold", "ha": "center", "va": "center"}
    outline = [withStroke(linewidth=0.275 * name_size, foreground="black")]
    for index in np.unique(mask[(mask > 0) & (mask != IGNORED)]):
        row, column = label_place(mask == index)
        name = names.get(int(index), str(index))
        axes.text(column, row, name, parse_math=False, path_effects=outline, clip_on=True, **style)


def grey(image: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return an image [H, W] scaled to 0..1 between its outer percentiles."""
    shown = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = np.percentile(shown, (0.5, 99.5))
    scaled: NDArray[np.float64] = np.clip((shown - low) / max(high - low, 1e-12), 0, 1)
    return scaled


def painted(mask: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return colours [H, W, 4] in 0..1 for classes [H, W]: structures half transparent, their borders opaque."""
    padded = np.pad(mask, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border = np.logical_or.reduce([mask != neighbour for neighbour in neighbours])
    painted = np.zeros((*mask.shape, 4))
    for index in np.unique(mask[mask > 0]):
        painted[mask == index, :3] = _colour(int(index))
    painted[..., 3] = np.where(mask > 0, np.where(border, 1.0, 0.42), 0.0)
    return painted


def _colour(index: int) -> tuple[float, float, float]:
    """Return the colour of a class; ignored pixels are grey."""
    return (0.6, 0.6, 0.6) if index == IGNORED else structure_colour(index)


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    epochs: Sequence[float] = (),
    mark: tuple[float, float, str] | None = None,
) -> Markup:
    """Return an inline SVG of curves over epochs, coloured by the classes c0, c1, ... of its page.

    `mark` is a point with its label. The axis spans all `epochs`, so that charts side by side have the same one.
    """
    width, height = 440, 250
    left, right, top, bottom = 54, width - 14, 12, height - 34  # of the area with the curves
    points = [point for curve in series.values() for point in curve]
    xs, ys = ticks([*epochs, *(x for x, _ in points)], whole=True), ticks([y for _, y in points])
    (x_low, x_high), (y_low, y_high) = (xs[0], max(xs[-1], *epochs, *(x for x, _ in points))), (ys[0], ys[-1])

    def position(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return left + across * (right - left), bottom - up * (bottom - top)

    area = {"width": width, "height": height, "left": left, "right": right, "top": top, "bottom": bottom}
    svg = render(
        "line_chart.svg.j2",
        **area,
        title=title,
        rows=[(position(x_low, y)[1], _short(y, y_high)) for y in ys],
        columns=[(position(x, y_low)[0], f"{x:g}") for x in xs],
        curves=[(name, [position(x, y) for x, y in curve]) for name, curve in series.items()],
        mark=(*position(*mark[:2]), mark[2]) if mark else None,
    )
    return Markup(svg)


def _short(tick: float, highest: float) -> str:
    return f"{tick:.1e}".replace("e-0", "e-") if tick and abs(highest) < 1e-3 else f"{tick:g}"


def ticks(values: Sequence[float], *, whole: bool = False) -> list[float]:
    """Return round numbers that span `values`, at least two; with `whole`, integers of which the last is no larger."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(abs(high), 1e-300):
        low, high = (low, low + 1) if whole else (low - abs(low) / 2, high + abs(high) / 2 or 1.0)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    first = math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if whole else math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, max(last, first + 1) + 1)]
