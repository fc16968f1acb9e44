"""The same slices under every method of a leaderboard, as HTML: each scan once, each method's structures over it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from textseg.comparison.leaderboard import Leaderboard, Row
from textseg.drawing.page import breakable
from textseg.drawing.pictures import grey, label_place, painted
from textseg.drawing.side_by_side import SharedSlice, best_median_worst, shared_slice
from textseg.drawing.tables import format_value, metric_title
from textseg.errors import DataError, RunError
from textseg.metrics.definitions import lower_is_better
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import KeptPredictions, read_kept
from textseg.volumes.colours import structure_colour

MARGIN = 0.08  # of the box around all structures, left about it on each side


def slices_html(board: Leaderboard) -> str:
    """The best, the median and the worst case by the mean of all methods; a sentence for each that can't be drawn."""
    rows = {f"{row.label} {table.badge}".rstrip(): row for table in board.tables for row in table.rows}
    kept: dict[str, KeptPredictions] = {}
    problems = []
    for label, row in rows.items():
        try:
            kept[label] = _kept(row)
        except RunError as error:
            problems.append(f"No picture of {label}: {error}")
    parts: list[str] = []
    for case, what in typical(board, rows).items():
        here = {label: found for label, found in kept.items() if case in found.cases}
        if not here:
            continue
        try:
            shared = shared_slice(here, case)
        except (RunError, DataError) as error:
            problems.append(f"No picture of case {case}: {error}")
            continue
        parts.append(_case(len(parts), what, shared, _captions(board, rows, case)))
    said = "".join(f'<p class="quiet">{escape(problem)}</p>' for problem in problems)
    if parts:
        said = (
            "<p>The best, the median and the worst case by the mean of all methods; of each the slice whose reference "
            "shows most, cut to what is segmented. "
            f'<span class="screen">Point at a picture to see the scan beneath.</span></p>{said}'
        )
    return said + "".join(parts)


def typical(board: Leaderboard, rows: Mapping[str, Row]) -> dict[str, str]:
    """Cases to show and what they are, by the first metric, penalised, where every method has a value."""
    metric = board.metrics[0]
    values = np.array([row.by_case["penalised"][metric] for row in rows.values()])
    sign = -1 if lower_is_better(metric) else 1
    means = sign * values.mean(axis=0)  # NaN where a method has none
    return best_median_worst({case: float(m) for case, m in zip(board.cases, means, strict=True) if not np.isnan(m)})


def _kept(row: Row) -> KeptPredictions:
    """Of all folds, and of the first seed."""
    found = [read_kept(RunFolder(run.folder)) for run in row.repeats.runs]
    return KeptPredictions(found[0].names, {key: case for one in reversed(found) for key, case in one.cases.items()})


def _captions(board: Leaderboard, rows: Mapping[str, Row], case: str) -> dict[str, str]:
    metric, place = board.metrics[0], list(board.cases).index(case)
    unit = board.unit[metric]
    title = metric_title(metric, unit)
    values = {label: float(row.by_case["penalised"][metric][place]) for label, row in rows.items()}
    return {label: f"{title} {format_value(value, unit)}" for label, value in values.items()}


def _case(number: int, what: str, shared: SharedSlice, captions: Mapping[str, str]) -> str:
    masks: dict[str, NDArray[np.uint8] | None] = {"image": None, "reference": shared.reference, **shared.predictions}
    rows, columns = _box([mask for mask in masks.values() if mask is not None])
    image = shared.image[rows, columns]
    height, width = image.shape
    tall = height * shared.pixel_aspect
    scan = _data(np.repeat(grey(image)[..., None], 3, axis=2), "jpeg")
    defined = (
        f'<svg class="scan" aria-hidden="true"><defs><image id="scan{number}" width="{width}" height="{tall:.2f}" '
        f'preserveAspectRatio="none" href="{scan}"/></defs></svg>'
    )
    panels = []
    for name, mask in masks.items():
        own = name in shared.predictions
        cut = None if mask is None else mask[rows, columns]
        found = [] if cut is None else [shared.names.get(int(i), str(i)) for i in np.unique(cut[cut > 0])]
        said = f"{name}, case {shared.case}: {', '.join(found) or ('the scan' if cut is None else 'nothing')}"
        over = "" if cut is None else _overlay(cut, shared, tall)
        caption = f"{breakable(name)}{f'<small>{escape(captions[name])}</small>' if own else ''}"
        panels.append(
            f'<figure><svg viewBox="0 0 {width} {tall:.2f}" role="img" aria-label="{escape(said)}">'
            f'<use href="#scan{number}"/>{over}</svg><figcaption>{caption}</figcaption></figure>'
        )
    present = sorted({int(i) for mask in masks.values() if mask is not None for i in np.unique(mask)} - {0})
    legend = "".join(
        f'<span><i style="background:rgb({_rgb(index)})"></i>{escape(shared.names.get(index, str(index)))}</span>'
        for index in present
    )
    heading = f"{what}: case {shared.case}, slice {shared.index + 1} of {shared.count}"
    return (
        f'<h3>{escape(heading)}</h3>{defined}<div class="panels">{"".join(panels)}</div><p class="names">{legend}</p>'
    )


def _overlay(mask: NDArray[np.uint8], shared: SharedSlice, tall: float) -> str:
    height, width = mask.shape
    scale, size = tall / height, max(tall, width) / 42
    names = []
    for index in np.unique(mask[mask > 0]):
        row, column = label_place(mask == index)
        name = escape(shared.names.get(int(index), str(index)))
        names.append(f'<text x="{column + 0.5:.1f}" y="{(row + 0.5) * scale + size / 3:.1f}">{name}</text>')
    return (
        f'<g class="over" style="font-size:{size:.1f}px"><image width="{width}" height="{tall:.2f}" '
        f'preserveAspectRatio="none" href="{_data(painted(mask), "png")}"/>{"".join(names)}</g>'
    )


def _box(masks: Sequence[NDArray[np.uint8]]) -> tuple[slice, slice]:
    """Rows and columns of what some mask shows, with a margin; everything where none shows anything."""
    shown = np.logical_or.reduce([mask > 0 for mask in masks])
    if not shown.any():
        return slice(None), slice(None)
    found = []
    for axis in (1, 0):
        inside = np.flatnonzero(shown.any(axis=axis))
        margin = int(np.ceil(MARGIN * (inside[-1] - inside[0] + 1)))
        found.append(slice(max(0, int(inside[0]) - margin), int(inside[-1]) + 1 + margin))
    return found[0], found[1]


def _rgb(index: int) -> str:
    return ",".join(str(round(255 * part)) for part in structure_colour(index))


def _data(pixels: NDArray[np.float64], kind: str) -> str:
    """A data URL of [H, W, 3] or [H, W, 4] in 0..1."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels, format=kind, pil_kwargs={"quality": 88} if kind == "jpeg" else {"optimize": True})
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
