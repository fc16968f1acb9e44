"""Scores as text, and tables as Markdown and plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def metric_title(metric: str, unit: str = "") -> str:
    """The heading of a metric: "DSC", "Jaccard", "HD95 (mm)"."""
    first, *rest = metric.split("_")
    title = " ".join([first.upper() if len(first) <= 4 else first.capitalize(), *rest])
    return f"{title} ({unit})" if unit else title


def format_value(value: float | None, unit: str = "") -> str:
    """A score to read: ratios with four decimals, distances with two, a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.2f}" if unit else f"{value:.4f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right; cells can't break out of it."""

    def line(cells: Sequence[str]) -> str:
        plain = (cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(' '.join(cell.split()) for cell in plain)} |"

    rule = f"|:---|{'---:|' * (len(header) - 1)}"
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal, the first column to the left, the others to the right."""
    table = [[" ".join(cell.split()) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]) + "\n"
