"""Write scores as text, and tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


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
