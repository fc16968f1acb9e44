"""A leaderboard as one HTML file: tables to sort, where methods differ and how surely, and the same slices of all."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from textseg.comparison.charts import Strip, heat_map, rank_plot, significance_matrix, strips
from textseg.comparison.leaderboard import Leaderboard, Row, Table, prompts_of
from textseg.comparison.sections import further_sections, mark, notes, picked, published_section, title_of
from textseg.comparison.slices import slices_html
from textseg.drawing.page import render
from textseg.drawing.tables import format_value
from textseg.metrics.aggregation import AGGREGATES, DEFINITIONS, Aggregate
from textseg.metrics.definitions import METRICS, lower_is_better
from textseg.metrics.statistics import DRAWS, small_sample_warning
from textseg.system.messages import counted

_COST = (
    ("parameters", "M parameters", 1e6, 2),
    ("multiply_accumulates", "G mult.-acc.", 1e9, 2),
    ("milliseconds_per_slice", "ms per slice", 1.0, 1),
    ("peak_memory_bytes", "peak MiB", 2.0**20, 0),
)


def as_html(board: Leaderboard) -> str:
    """Return the page. It holds its styles, script and pictures: it is read, sorted and printed without a network.

    Slices are drawn from what the evaluations kept, where that and the scans are at hand; else the page says why not.
    """
    rows = [(f"{row.label} {table.badge}".rstrip(), row) for table in board.tables for row in table.rows]
    labels = [label for label, _ in rows]

    def means_of_structures(metric: str, aggregate: Aggregate) -> Markup:
        means = [row.by_structure[aggregate][metric] for _, row in rows]
        return heat_map(labels, means, board.structures, lower=lower_is_better(metric))

    def case_strips(metric: str, aggregate: Aggregate) -> Markup:
        cases = [Strip(label, row.by_case[aggregate][metric], board.cases) for label, row in rows]
        return strips(cases, board.unit[metric])

    def patient_strips(metric: str, aggregate: Aggregate) -> Markup:
        patients = [Strip(label, row.by_patient[aggregate][metric], board.patients) for label, row in rows]
        return strips(patients, board.unit[metric])

    def matrix(table: Table, metric: str) -> Markup:
        methods = [row.label for row in table.rows]
        differences = table.differences[metric]
        return significance_matrix(methods, differences, board.unit[metric], lower=lower_is_better(metric))

    return render(
        "leaderboard.html.j2",
        board=board,
        tiles=_tiles(board, len(rows)),
        warnings=_warnings(board),
        published=published_section(board) if board.published else None,
        notes=notes(board),
        slices=slices_html(board),
        draws=DRAWS,
        patients_apart=len(board.patients) != len(board.cases) or any(len(row.finished.runs) > 1 for _, row in rows),
        aggregate_choices=[(name, name.replace("_", " "), DEFINITIONS[name]) for name in AGGREGATES],
        metric_choices=[(metric, title_of(board, metric), METRICS.get(metric, "")) for metric in board.metrics],
        columns_of=lambda table: _columns(board, table),
        picks_of=lambda table, aggregate: _picks(board, table, aggregate),
        costs_of=_costs,
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
    columns = [("method", "ascending")] + [("rank", "ascending")] * table.ranked
    columns += [(title_of(board, m), "ascending" if lower_is_better(m) else "descending") for m in board.metrics]
    return columns + [(name, "ascending") for name in ("missed", "spurious", "prompts", *(cost[1] for cost in _COST))]


def _picks(board: Leaderboard, table: Table, aggregate: Aggregate) -> dict[str, tuple[Sequence[int], Sequence[int]]]:
    """Return the rows with the best and the second best value of each metric."""
    if not table.ranked or board.mismatches:
        return dict.fromkeys(board.metrics, ((), ()))
    return {
        metric: picked(
            [format_value(row.number(metric, aggregate).value, board.unit[metric]) for row in table.rows],
            lower=lower_is_better(metric),
        )
        for metric in board.metrics
    }


def _costs(row: Row) -> list[tuple[float | None, str]]:
    """Return each cost, and as it is shown."""
    values = [(row.cost.get(key), scale, digits) for key, _, scale, digits in _COST]
    return [(value, "–" if value is None else f"{value / scale:.{digits}f}") for value, scale, digits in values]
