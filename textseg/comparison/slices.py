"""Slices under every method of a leaderboard, as HTML: each scan once, with the structures of each method over it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from textseg.comparison.leaderboard import Leaderboard, Row
from textseg.drawing.page import render
from textseg.drawing.pictures import grey, label_place, painted
from textseg.drawing.side_by_side import SharedSlice, best_median_worst, shared_slice
from textseg.drawing.tables import format_value, metric_title
from textseg.errors import DataError, RunError
from textseg.metrics.definitions import lower_is_better
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import KeptPredictions, read_kept
from textseg.volumes.colours import structure_colour

MARGIN = 0.08  # of the box around all structures, left about it on each side


def slices_html(board: Leaderboard) -> Markup:
    """Return the best, the median and the worst case by the mean of all methods, and a sentence for each problem."""
    rows = {f"{row.label} {table.badge}".rstrip(): row for table in board.tables for row in table.rows}
    kept: dict[str, KeptPredictions] = {}
    problems = []
    for label, row in rows.items():
        try:
            kept[label] = _kept(row)
        except RunError as error:
            problems.append(f"No picture of {label}: {error}")
    cases = []
    for case, kind in typical(board, rows).items():
        predictions = {label: saved for label, saved in kept.items() if case in saved.cases}
        if not predictions:
            continue
        try:
            shared = shared_slice(predictions, case)
        except (RunError, DataError) as error:
            problems.append(f"No picture of case {case}: {error}")
            continue
        cases.append(_case(kind, shared, _captions(board, rows, case)))
    return Markup(render("same_slices.html.j2", cases=cases, problems=problems) if cases or problems else "")


def typical(board: Leaderboard, rows: Mapping[str, Row]) -> dict[str, str]:
    """Return the cases to show and what they are, by the first metric, penalised, where every method has a value."""
    metric = board.metrics[0]
    values = np.array([row.by_case["penalised"][metric] for row in rows.values()])
    sign = -1 if lower_is_better(metric) else 1
    means = sign * values.mean(axis=0)  # NaN where a method has none
    return best_median_worst({case: float(m) for case, m in zip(board.cases, means, strict=True) if not np.isnan(m)})


def _kept(row: Row) -> KeptPredictions:
    """Return the predictions of all folds, and of the first seed."""
    saved = [read_kept(RunFolder(run.folder)) for run in row.finished.runs]
    return KeptPredictions(saved[0].names, {key: case for each in reversed(saved) for key, case in each.cases.items()})


def _captions(board: Leaderboard, rows: Mapping[str, Row], case: str) -> dict[str, str]:
    metric, position = board.metrics[0], list(board.cases).index(case)
    unit = board.unit[metric]
    title = metric_title(metric, unit)
    values = {label: float(row.by_case["penalised"][metric][position]) for label, row in rows.items()}
    return {label: f"{title} {format_value(value, unit)}" for label, value in values.items()}


def _case(kind: str, shared: SharedSlice, captions: Mapping[str, str]) -> dict[str, object]:
    masks: dict[str, NDArray[np.uint8] | None] = {"image": None, "reference": shared.reference, **shared.predictions}
    rows, columns = _box([mask for mask in masks.values() if mask is not None])
    image = shared.image[rows, columns]
    height, width = image.shape
    tall = height * shared.pixel_aspect
    font_size = max(tall, width) / 42

    def name_of(index: int) -> str:
        return shared.names.get(int(index), str(index))

    panels = []
    for name, mask in masks.items():
        cut = np.zeros(image.shape, np.uint8) if mask is None else mask[rows, columns]
        indices = np.unique(cut[cut > 0])
        shown = ", ".join(map(name_of, indices)) or ("the scan" if mask is None else "nothing")
        names = []
        for index in indices:
            row, column = label_place(cut == index)
            names.append((name_of(index), column + 0.5, (row + 0.5) * tall / height + font_size / 3))
        panels.append(
            {
                "name": name,
                "title": f"{name}, case {shared.case}: {shown}",
                "caption": captions[name] if name in shared.predictions else "",
                "overlay": "" if mask is None else _data(painted(cut), "png"),
                "names": names,
            }
        )
    present = sorted({int(i) for mask in masks.values() if mask is not None for i in np.unique(mask)} - {0})
    return {
        "heading": f"{kind}: case {shared.case}, slice {shared.index + 1} of {shared.count}",
        "width": width,
        "tall": tall,
        "font_size": font_size,
        "scan": _data(np.repeat(grey(image)[..., None], 3, axis=2), "jpeg"),
        "panels": panels,
        "legend": [(name_of(index), _rgb(index)) for index in present],
    }


def _box(masks: Sequence[NDArray[np.uint8]]) -> tuple[slice, slice]:
    """Return the rows and columns of what some mask shows, with a margin; everything where none shows anything."""
    shown = np.logical_or.reduce([mask > 0 for mask in masks])
    if not shown.any():
        return slice(None), slice(None)
    ranges = []
    for axis in (1, 0):
        inside = np.flatnonzero(shown.any(axis=axis))
        margin = int(np.ceil(MARGIN * (inside[-1] - inside[0] + 1)))
        ranges.append(slice(max(0, int(inside[0]) - margin), int(inside[-1]) + 1 + margin))
    return ranges[0], ranges[1]


def _rgb(index: int) -> str:
    return ",".join(str(round(255 * part)) for part in structure_colour(index))


def _data(pixels: NDArray[np.float64], kind: str) -> str:
    """Return a data URL of [H, W, 3] or [H, W, 4] in 0..1."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels, format=kind, pil_kwargs={"quality": 88} if kind == "jpeg" else {"optimize": True})
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
