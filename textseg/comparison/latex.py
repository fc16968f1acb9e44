"""A leaderboard as a LaTeX table, as papers print it: booktabs, the best bold, the second best underlined."""

from __future__ import annotations

import math
from collections.abc import Sequence

from textseg.comparison.leaderboard import Leaderboard, Table, prompts_of
from textseg.comparison.published import PublishedRow
from textseg.comparison.sections import (
    cost_cells,
    further_titles,
    interval_of,
    mark,
    own_metrics,
    picks,
    title_of,
    with_unit,
)
from textseg.drawing.tables import format_interval, format_value
from textseg.metrics.aggregation import Aggregate
from textseg.system.messages import counted

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


_APART = {
    "report": "Reports: words that came with the cases, not ranked",
    "simulated": "Simulated: first and last structure from the annotation, not ranked",
    "oracle": "Oracle: prompts from the annotation, not ranked",
}


def as_latex(board: Leaderboard) -> str:
    """Return one table, which needs the package booktabs: ranked runs, oracles and published results, each set apart.

    A metric that is undefined for a miss stands twice: as published, and over what every run of the table found.
    """
    columns = [(m, a) for m in board.metrics for a in _aggregates(board, m)]
    further = [f"{escape(title)} $\\uparrow$" for title in further_titles(board)]
    header = [
        "Method",
        *(_heading(board, m, a) for m, a in columns),
        *further,
        "Missed",
        "Prompts",
        "Par. (M)",
        "MACs (G)",
        "ms",
    ]
    span = len(header)
    lines = []
    for table in board.tables:
        if not table.ranked:
            lines += [r"\midrule", _across(_APART[table.kind], span)]
        lines += _rows(board, table, columns)
    if board.published:
        title = f"Published on {board.published[0].dataset}, another protocol, not ranked with the runs"
        lines += [r"\midrule", _across(title, span), *(_published(board, row, columns) for row in board.published)]
    if not board.tables[0].ranked:
        lines = lines[1:]  # the header's own rule stands there
    comments = [*mark(board), *(warning for table in board.tables for warning in table.warnings)]
    top = [r"\begin{table}[t]", r"\centering", f"\\caption{{{_caption(board)}}}", r"\label{tab:leaderboard}"]
    tabular = f"\\begin{{tabular}}{{l{'r' * (span - 1)}}}"
    head = [tabular, r"\toprule", f"{' & '.join(header)} \\\\", r"\midrule"]
    end = [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    needed = r"% needs \usepackage{booktabs}"
    return "\n".join([needed, *(f"% {line}" for line in comments), *top, *head, *lines, *end])


def escape(text: str) -> str:
    """Return text in which LaTeX finds no commands."""
    return "".join(_SPECIAL.get(sign, sign) for sign in " ".join(text.split()))


def _aggregates(board: Leaderboard, metric: str) -> Sequence[Aggregate]:
    return ("as_published", "common") if board.facts[metric].missed is None else ("as_published",)


def _heading(board: Leaderboard, metric: str, aggregate: Aggregate) -> str:
    arrow = r"$\downarrow$" if board.lower(metric) else r"$\uparrow$"
    suffix = ", common" if aggregate == "common" else ""
    return f"{escape(title_of(board, metric))}{suffix} {arrow}"


def _across(text: str, span: int) -> str:
    return f"\\multicolumn{{{span}}}{{l}}{{\\emph{{{escape(text)}}}}} \\\\"


def _rows(board: Leaderboard, table: Table, columns: Sequence[tuple[str, Aggregate]]) -> list[str]:
    cells = [[escape(row.label)] for row in table.rows]
    for metric, aggregate in columns:
        best, second = picks(board, table, metric, aggregate)
        for index, row in enumerate(table.rows):
            number = row.number(metric, aggregate)
            text = escape(format_value(number.value, number.unit))
            text = f"\\textbf{{{text}}}" if index in best else f"\\underline{{{text}}}" if index in second else text
            if number.unit != board.unit[metric]:
                text += f" {escape(number.unit)}"
            if not math.isnan(number.low):
                text += f" {{\\scriptsize {interval_of(number)}}}"
            cells[index].append(text)
    for row, line in zip(table.rows, cells, strict=True):
        line += [escape(format_interval(mean)) for mean in row.further(board)]
        line += [str(row.number(board.metrics[0], "as_published").missed), escape(prompts_of(row.finished))]
        line += map(escape, cost_cells(row)[:3])  # without the memory
    return [f"{' & '.join(line)} \\\\" for line in cells]


def _published(board: Leaderboard, row: PublishedRow, columns: Sequence[tuple[str, Aggregate]]) -> str:
    cells = [f"\\emph{{{escape(row.method)}}}"]
    cells += [escape(with_unit(board, m, row.value(m, aggregate), row.unit(m))) for m, aggregate in columns]
    cells += ["--"] * len(further_titles(board))
    parameters = "--" if row.parameters is None else f"{row.parameters / 1e6:.2f}"
    speed = "--" if row.milliseconds_per_slice is None else f"{row.milliseconds_per_slice:.1f}"
    return f"{' & '.join([*cells, '--', 'not stated', parameters, '--', speed])} \\\\"


def _caption(board: Leaderboard) -> str:
    settings = board.settings
    sizes = f"{counted(len(board.structures), 'structure')}, {counted(len(board.patients), 'test patient')}"
    protocol = f"per {settings.get('per')} in {settings.get('space')} space"
    caption = (
        f"{settings.get('dataset')}: means over {sizes}, {protocol}; 95 % intervals (BCa bootstrap over patients). "
        "A missed structure is 0 in a ratio and left out of a distance; common: over what every run found."
    )
    caption = " ".join([caption, *own_metrics(board)])
    marked = "".join(f"\\textbf{{{escape(line)}}} " for line in mark(board)[:1])
    return f"{marked}{escape(caption)}"
