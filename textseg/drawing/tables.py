"""Write scores as text, and tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from textseg.metrics.statistics import Interval
from textseg.metrics.window_scores import PERSON_ERRS, StatedBy, WindowMeans

# The texts of windows for readers. Marked texts use the annotation.
TEXTS: Mapping[StatedBy, str] = {
    "simulated": "right (simulated)",
    "template": "template",
    "moved up": "one level up (simulated)",
    "moved down": "one level down (simulated)",
    "none": "none",
}
LANDMARKS = {"all": "", "yes": "with", "no": "without"}


def metric_title(metric: str, unit: str = "") -> str:
    """Return the heading of a metric: "DSC", "Jaccard", "HD95 (mm)"."""
    first, *rest = metric.split("_")
    title = " ".join([first.upper() if len(first) <= 4 else first.capitalize(), *rest])
    return f"{title} ({unit})" if unit else title


def format_value(value: float | None, unit: str = "") -> str:
    """Return a score as text: ratios with four decimals, distances with two, a dash for an undefined one."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.2f}" if unit else f"{value:.4f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, the first column left-aligned, the others right-aligned; cells are escaped."""

    def line(cells: Sequence[str]) -> str:
        plain = (cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(' '.join(cell.split()) for cell in plain)} |"

    rule = f"|:---|{'---:|' * (len(header) - 1)}"
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"


def format_interval(interval: Interval | None) -> str:
    """Return a mean with its bounds as text, such as "0.812 [0.774, 0.846]"; a dash for an undefined number."""
    if interval is None:
        return "–"
    value, low, high = ("–" if math.isnan(n) else f"{n:.3f}" for n in (interval.value, interval.low, interval.high))
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def window_table(means: Iterable[WindowMeans]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the scores in windows, a row for each share, landmark and text."""
    header = ["picture", "landmark", "text", "windows", "DSC [95 %]", "DSC without names", "level shift", "obedience"]
    header.append(f"DSC at {100 * PERSON_ERRS:g} % errors")
    rows = []
    for row in means:
        numbers = (row.dsc, row.dsc_without_names, row.level_shift_rate, row.obedience, row.expected_dsc)
        cells = [share_title(row.share), LANDMARKS[row.landmark], TEXTS[row.stated_by], str(row.windows)]
        part = f" ({row.expected_windows} of {row.windows} windows)" if 0 < row.expected_windows < row.windows else ""
        rows.append([*cells, *map(format_interval, numbers)])
        rows[-1][-1] += part
    return header, rows


def share_title(share: float) -> str:
    """Return the name of the windows of one share."""
    return "whole" if share == 1 else f"{100 * share:g} % of the rows"
