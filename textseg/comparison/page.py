"""A leaderboard as one HTML file: tables to sort, where methods differ and how surely, and the same slices of all."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from textseg.comparison.charts import Strip, heat_map, rank_plot, significance_matrix, strips
from textseg.comparison.leaderboard import Leaderboard, Row, Table, prompts_of
from textseg.comparison.sections import (
    cost_cells,
    further_sections,
    further_titles,
    mark,
    notes,
    picks,
    published_section,
    title_of,
)
from textseg.drawing.page import image_address, render
from textseg.drawing.pictures import grey, label_place, painted
from textseg.drawing.side_by_side import SharedSlice, best_median_worst, shared_slice
from textseg.drawing.tables import format_value
from textseg.errors import DataError, RunError
from textseg.metrics.aggregation import AGGREGATES, DEFINITIONS, Aggregate
from textseg.metrics.statistics import DRAWS, small_sample_warning
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import KeptPredictions, read_kept
from textseg.system.messages import counted
from textseg.volumes.colours import structure_colour

MARGIN = 0.08  # of the box around all structures in a picture, left about it on each side


def as_html(board: Leaderboard) -> str:
    """Return the page. It holds its styles, script and pictures: it is read, sorted and printed without a network.

    Slices are drawn from what the evaluations kept, where that and the scans are at hand; else the page says why not.
    """
    rows = {f"{row.label} {table.badge}".rstrip(): row for table in board.tables for row in table.rows}

    def means_of_structures(metric: str, aggregate: Aggregate) -> Markup:
        means = [row.by_structure[aggregate][metric] for row in rows.values()]
        return heat_map(list(rows), means, board.structures, lower=board.lower(metric))

    def case_strips(metric: str, aggregate: Aggregate) -> Markup:
        cases = [Strip(label, row.by_case[aggregate][metric], board.cases) for label, row in rows.items()]
        return strips(cases, board.unit[metric])

    def patient_strips(metric: str, aggregate: Aggregate) -> Markup:
        patients = [Strip(label, row.by_patient[aggregate][metric], board.patients) for label, row in rows.items()]
        return strips(patients, board.unit[metric])

    def matrix(table: Table, metric: str) -> Markup:
        methods, pairs = [row.label for row in table.rows], table.differences[metric]
        return significance_matrix(methods, pairs, board.unit[metric], lower=board.lower(metric))

    return render(
        "leaderboard.html.j2",
        board=board,
        tiles=_tiles(board, len(rows)),
        warnings=_warnings(board),
        published=published_section(board) if board.published else None,
        notes=notes(board),
        slices=_slices(board, rows),
        draws=DRAWS,
        patients_apart=len(board.patients) != len(board.cases)
        or any(len(row.finished.runs) > 1 for row in rows.values()),
        aggregate_choices=[(name, name.replace("_", " "), DEFINITIONS[name]) for name in AGGREGATES],
        metric_choices=[(metric, title_of(board, metric), board.facts[metric].definition) for metric in board.metrics],
        columns_of=lambda table: _columns(board, table),
        picks_of=lambda table, aggregate: {m: picks(board, table, m, aggregate) for m in board.metrics},
        further_of=lambda table, row: row.further(table),
        costs_of=lambda row: zip(row.cost.values(), cost_cells(row), strict=True),
        prompts_of=prompts_of,
        title_of=title_of,
        further_sections=further_sections,
        heat_map=means_of_structures,
        case_strips=case_strips,
        patient_strips=patient_strips,
        rank_plot=rank_plot,
        significance_matrix=matrix,
    )


def _tiles(board: Leaderboard, methods: int) -> list[list[str]]:
    """Return number and noun of each tile at the top."""
    counts = (methods, "method"), (len(board.patients), "test patient"), (len(board.cases), "case")
    return [counted(*count).split(" ", 1) for count in (*counts, (len(board.structures), "structure"))]


def _warnings(board: Leaderboard) -> list[tuple[str, str]]:
    """Return each warning with the class of its style."""
    lines = [(line.strip(), "forced") for line in mark(board)]
    lines += [(line, "warning") for table in board.tables for line in table.warnings]
    return lines + [(line, "warning") for line in filter(None, [small_sample_warning(len(board.patients))])]


def _columns(board: Leaderboard, table: Table) -> list[tuple[str, str]]:
    """Return the heading of each column, and the order in which it is sorted first."""
    costs = ("M parameters", "G mult.-acc.", "ms per slice", "peak MiB")
    titles = {title_of(board, m): "ascending" if board.lower(m) else "descending" for m in board.metrics}
    titles |= dict.fromkeys(further_titles(table), "descending")
    names = ["method", *["rank"] * table.ranked, *titles, "missed", "spurious", "prompts", *costs]
    return [(name, titles.get(name, "ascending")) for name in names]


def _slices(board: Leaderboard, rows: Mapping[str, Row]) -> Markup:
    """Return the best, the median and the worst case by the mean of all methods, and a sentence for each problem."""
    kept: dict[str, KeptPredictions] = {}
    cases, problems = [], []
    for label, row in rows.items():
        try:
            kept[label] = _kept(row)
        except RunError as error:
            problems.append(f"No picture of {label}: {error}")
    for case, rank in _typical(board, rows).items():
        if predictions := {label: saved for label, saved in kept.items() if case in saved.cases}:
            try:
                cases.append(_case(rank, shared_slice(predictions, case), _captions(board, rows, case)))
            except (RunError, DataError) as error:
                problems.append(f"No picture of case {case}: {error}")
    return Markup(render("same_slices.html.j2", cases=cases, problems=problems) if cases or problems else "")


def _typical(board: Leaderboard, rows: Mapping[str, Row]) -> dict[str, str]:
    """Return the cases to show and what they are, by the first metric, penalised, where every method has a value."""
    metric = board.metrics[0]
    values = np.array([row.by_case["penalised"][metric] for row in rows.values()])
    sign = -1 if board.lower(metric) else 1
    means = sign * values.mean(axis=0)  # NaN where a method has none
    return best_median_worst({case: float(m) for case, m in zip(board.cases, means, strict=True) if not np.isnan(m)})


def _kept(row: Row) -> KeptPredictions:
    """Return the predictions of all folds, and of the first seed."""
    saved = [read_kept(RunFolder(run.folder)) for run in row.finished.runs]
    return KeptPredictions(saved[0].names, {key: case for each in reversed(saved) for key, case in each.cases.items()})


def _captions(board: Leaderboard, rows: Mapping[str, Row], case: str) -> dict[str, str]:
    metric, position = board.metrics[0], list(board.cases).index(case)
    values = {label: row.by_case["penalised"][metric][position] for label, row in rows.items()}
    title, unit = title_of(board, metric), board.unit[metric]
    return {label: f"{title} {format_value(value, unit)}" for label, value in values.items()}


def _case(rank: str, shared: SharedSlice, captions: Mapping[str, str]) -> dict[str, object]:
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
        overlay = "" if mask is None else _address(painted(cut), "png")
        caption = captions[name] if name in shared.predictions else ""
        texts = {"name": name, "title": f"{name}, case {shared.case}: {shown}", "caption": caption}
        panels.append({**texts, "overlay": overlay, "names": names})
    present = np.unique([mask for mask in masks.values() if mask is not None])
    colours = {index: [str(round(255 * part)) for part in structure_colour(int(index))] for index in present if index}
    return {
        "heading": f"{rank}: case {shared.case}, slice {shared.index + 1} of {shared.count}",
        "width": width,
        "tall": tall,
        "font_size": font_size,
        "scan": _address(np.repeat(grey(image)[..., None], 3, axis=2), "jpeg"),
        "panels": panels,
        "legend": [(name_of(index), ",".join(colour)) for index, colour in colours.items()],
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


def _address(pixels: NDArray[np.float64], kind: str) -> Markup:
    """Return [H, W, 3] or [H, W, 4] in 0..1 as the value of `src` of an image."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels, format=kind, pil_kwargs={"quality": 88} if kind == "jpeg" else {"optimize": True})
    return image_address(file.getvalue(), kind)
