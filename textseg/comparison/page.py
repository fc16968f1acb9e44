"""A leaderboard as one HTML file: tables to sort, where methods differ and how surely, and the same slices of all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from textseg.comparison.charts import Strip, heat_map, rank_plot, significance_matrix, strips
from textseg.comparison.leaderboard import Leaderboard, Number, Row, Table
from textseg.comparison.sections import Section, further_sections, mark, notes, picked, published_section, title_of
from textseg.comparison.slices import slices_html
from textseg.comparison.tabulation import prompts_of
from textseg.drawing.page import breakable, page, section
from textseg.drawing.tables import format_value
from textseg.metrics.aggregation import AGGREGATES, DEFINITIONS, Aggregate
from textseg.metrics.definitions import METRICS, lower_is_better
from textseg.metrics.statistics import DRAWS, small_sample_warning
from textseg.system.messages import counted

SHOWN: Aggregate = "penalised"  # at first; ranks are by it
_COST = (
    ("parameters", "M parameters", 1e6, 2),
    ("multiply_accumulates", "G mult.-acc.", 1e9, 2),
    ("milliseconds_per_slice", "ms per slice", 1.0, 1),
    ("peak_memory_bytes", "peak MiB", 2.0**20, 0),
)


def as_html(board: Leaderboard) -> str:
    """The page. It holds its styles, script and pictures: it is read, sorted and printed without a network.

    Slices are drawn from what the evaluations kept, where that and the scans are at hand; else the page says why not.
    """
    parts = [_headline(board)]
    for table in board.tables:
        kind = "" if table.ranked else "oracle"
        parts.append(section(_heading(board, table), _table(board, table), kind=kind))
    if board.published:
        parts.append(section(*_read(published_section(board)), kind="published"))
    both = (_metrics(board, "structures") + _aggregates("structures"), _metrics(board, "cases") + _aggregates("cases"))
    parts.append(section("Structures", both[0] + "".join(_by_structure(board))))
    parts.append(section("Cases", both[1] + "".join(_distributions(board))))
    for table in board.tables:
        if table.differences:
            parts.append(section("Ranks", _metrics(board, "ranks") + "".join(_ranks(board, table))))
            parts.append(section("Differences", _metrics(board, "differences") + "".join(_differences(board, table))))
    if pictures := slices_html(board):
        parts.append(section("The same slices", pictures, kind="slices"))
    for table in board.tables:
        where = f"scopes-{table.kind}"
        scopes = _metrics(board, where) + _aggregates(where) + "".join(_scopes(board, table))
        more = [("Over what is averaged", scopes), *(_read(found) for found in further_sections(board, table))]
        folded = "".join(f"<details><summary>{escape(name)}</summary>{body}</details>" for name, body in more)
        parts.append(section("More numbers" if table.ranked else f"More numbers: {table.title}", folded))
    parts.append(section("How to read this", "".join(f"<p>{escape(note)}</p>" for note in notes(board)), kind="notes"))
    title = f"Leaderboard: {board.settings.get('dataset', 'runs')} · textseg"
    return page(title, "\n".join(parts), styles=("report.css", "leaderboard.css"), script="leaderboard.js")


def _headline(board: Leaderboard) -> str:
    settings = board.settings
    methods = sum(len(table.rows) for table in board.tables)
    tiles = [
        counted(methods, "method"),
        counted(len(board.patients), "test patient"),
        counted(len(board.cases), "case"),
        counted(len(board.structures), "structure"),
    ]
    cells = "".join(
        f'<div class="tile"><b>{number}</b><span>{what}</span></div>'
        for number, what in (tile.split(" ", 1) for tile in tiles)
    )
    about = f"scores per {settings.get('per')} in {settings.get('space')} space, distances in {settings.get('unit')}"
    warnings = [(line, "forced") for line in mark(board)]
    warnings += [(line, "warning") for table in board.tables for line in table.warnings]
    warnings += [(line, "warning") for line in filter(None, [small_sample_warning(len(board.patients))])]
    said = "".join(f'<li class="{kind}">{escape(line.strip())}</li>' for line, kind in warnings)
    return (
        f"<header><h1>{escape(str(settings.get('dataset', 'Leaderboard')))}</h1>"
        f'<p class="quiet">Leaderboard of textseg · {escape(about)}</p><div class="tiles">{cells}</div>'
        f"{said and _list(said)}</header>"
    )


def _list(items: str) -> str:
    return f'<ul class="warnings">{items}</ul>'


def _heading(board: Leaderboard, table: Table) -> str:
    return f"NOT COMPARABLE: {table.title}" if board.mismatches else table.title


def _switch(axis: str, where: str, legend: str, choices: Sequence[tuple[str, str, str]], shown: str) -> str:
    """Buttons that choose what is shown; the script keeps those of one axis alike on the whole page."""
    options = "".join(
        f'<label title="{escape(said)}"><input type="radio" name="{axis}-{where}" data-axis="{axis}" '
        f'value="{escape(value)}"{" checked" if value == shown else ""}><span>{escape(name)}</span></label>'
        for value, name, said in choices
    )
    return f'<fieldset class="switch"><legend>{escape(legend)}</legend>{options}</fieldset>'


def _aggregates(where: str) -> str:
    choices = [(aggregate, aggregate.replace("_", " "), DEFINITIONS[aggregate]) for aggregate in AGGREGATES]
    return _switch("aggregate", where, "misses", choices, SHOWN)


def _metrics(board: Leaderboard, where: str) -> str:
    choices = [(metric, title_of(board, metric), METRICS.get(metric, "")) for metric in board.metrics]
    return _switch("metric", where, "metric", choices, board.metrics[0])


def _read(found: Section) -> tuple[str, str]:
    """The heading of a section of cells, and it as HTML."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in found.header)
    lines = []
    for row, cells in enumerate(found.rows):
        kinds = [
            "best" if (row, n) in found.best else "second" if (row, n) in found.second else ""
            for n in range(len(cells))
        ]
        tags = [f'<td class="{kind}">{escape(cell)}</td>' for kind, cell in zip(kinds, cells, strict=True)]
        lines.append(f'<tr><th scope="row">{breakable(cells[0])}</th>{"".join(tags[1:])}</tr>')
    table = f'<table class="board"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    said = "".join(f'<p class="quiet">{escape(note)}</p>' for note in found.notes)
    return found.title, f'<div class="scroll" tabindex="0">{table}</div>{said}'


def _table(board: Leaderboard, table: Table) -> str:
    """The methods with all their means, once for each way to count a miss."""
    views = []
    for aggregate in AGGREGATES:
        said = f"Misses {aggregate.replace('_', ' ')}: {DEFINITIONS[aggregate]}."
        views.append(
            f'<div data-aggregate="{aggregate}"><div class="scroll" tabindex="0"><table class="board sortable">'
            f"{_head(board, table)}<tbody>{''.join(_lines(board, table, aggregate))}</tbody></table></div>"
            f'<p class="quiet">{escape(said)}</p></div>'
        )
    key = (
        "Below each mean its 95 % interval over patients. Bold: best, underlined: second, as printed. "
        if table.ranked and not board.mismatches
        else "Below each mean its 95 % interval over patients. "
    )
    where = f"table-{table.kind}"
    key += '<span class="screen">Click a heading to sort.</span>'
    return f'{_aggregates(where)}{"".join(views)}<p class="quiet">{key}</p>'


def _head(board: Leaderboard, table: Table) -> str:
    columns = [("method", "ascending")] + [("rank", "ascending")] * table.ranked
    columns += [(title_of(board, m), "ascending" if lower_is_better(m) else "descending") for m in board.metrics]
    columns += [("missed", "ascending"), ("spurious", "ascending"), ("prompts", "ascending")]
    columns += [(name, "ascending") for _, name, _, _ in _COST]
    cells = "".join(
        f'<th scope="col" data-first="{order}"><button type="button">{escape(name)}</button></th>'
        for name, order in columns
    )
    return f"<thead><tr>{cells}</tr></thead>"


def _lines(board: Leaderboard, table: Table, aggregate: Aggregate) -> Iterator[str]:
    chosen: dict[str, tuple[list[int], list[int]]] = {metric: ([], []) for metric in board.metrics}
    if table.ranked and not board.mismatches:
        for metric in board.metrics:
            values = [format_value(row.number(metric, aggregate).value, board.unit[metric]) for row in table.rows]
            chosen[metric] = picked(values, lower=lower_is_better(metric))
    for place, row in enumerate(table.rows):
        badge = f'<span class="badge oracle">{table.badge}</span> ' if table.badge else ""
        cells = [f'<th scope="row" data-value="{escape(row.label)}">{badge}{breakable(row.label)}</th>']
        if table.ranked:
            rank = row.ranks[aggregate][board.metrics[0]]
            cells.append(f'<td data-value="{rank}">{rank}</td>')
        for metric in board.metrics:
            best, second = chosen[metric]
            kind = "best" if place in best else "second" if place in second else ""
            cells.append(_mean(board, metric, row.number(metric, aggregate), kind))
        first = row.number(board.metrics[0], aggregate)
        cells += [
            f'<td data-value="{count}" class="{"bad" if count else ""}">{count}</td>'
            for count in (first.missed, first.spurious)
        ]
        prompts = escape(prompts_of(row.repeats))
        cells.append(f'<td data-value="{prompts}">{prompts}</td>')
        for key, _, scale, digits in _COST:
            value = row.cost.get(key)
            shown = "–" if value is None else f"{value / scale:.{digits}f}"
            cells.append(f'<td data-value="{"" if value is None else value}">{shown}</td>')
        yield f"<tr>{''.join(cells)}</tr>"


def _mean(board: Leaderboard, metric: str, number: Number, kind: str) -> str:
    unit = "" if number.unit == board.unit[metric] else f" {number.unit}"
    said = f"{counted(number.used, 'value')} of {counted(number.patients, 'patient')}, "
    said += f"{number.missed} missed, {number.spurious} spurious"
    between = [
        f"± {format_value(sd, number.unit)} {what}"
        for sd, what in ((number.seed_sd, "seeds"), (number.fold_sd, "folds"))
        if not math.isnan(sd)
    ]
    below = "".join(f"<small>{escape(line)}</small>" for line in between)
    bounds = f"[{format_value(number.low, number.unit)}, {format_value(number.high, number.unit)}]"
    value = "" if math.isnan(number.value) else repr(number.value)
    return (
        f'<td class="mean" data-value="{value}" title="{escape(said)}"><span class="{kind}">'
        f"{format_value(number.value, number.unit)}{escape(unit)}</span><small>{bounds}</small>{below}</td>"
    )


def _scopes(board: Leaderboard, table: Table) -> Iterator[str]:
    head = "".join(
        f'<th scope="col" title="{escape(", ".join(scope.structures))}">{escape(name.replace("_", " "))}</th>'
        for name, scope in board.scopes.items()
    )
    for metric in board.metrics:
        for aggregate in AGGREGATES:
            lines = [
                f'<tr><th scope="row">{breakable(row.label)}</th>'
                + "".join(_mean(board, metric, row.number(metric, aggregate, scope), "") for scope in board.scopes)
                + "</tr>"
                for row in table.rows
            ]
            yield (
                f'<div data-metric="{metric}" data-aggregate="{aggregate}"><div class="scroll" tabindex="0">'
                f'<table class="board"><thead><tr><th scope="col">method</th>{head}</tr></thead>'
                f"<tbody>{''.join(lines)}</tbody></table></div></div>"
            )


def _all_rows(board: Leaderboard) -> list[tuple[str, Row]]:
    """Every method, oracles and simulated interaction called so."""
    return [(f"{row.label} {table.badge}".rstrip(), row) for table in board.tables for row in table.rows]


def _by_structure(board: Leaderboard) -> Iterator[str]:
    rows = _all_rows(board)
    labels = [label for label, _ in rows]
    for metric in board.metrics:
        lower = lower_is_better(metric)
        for aggregate in AGGREGATES:
            means = [row.by_structure[aggregate][metric] for _, row in rows]
            table = heat_map(labels, means, board.structures, lower=lower)
            said = f"Mean {title_of(board, metric)}, misses {aggregate.replace('_', ' ')}; a stronger colour is better."
            yield (
                f'<div data-metric="{metric}" data-aggregate="{aggregate}">{table}'
                f'<p class="quiet">{escape(said)} Raised: how often it was missed.</p></div>'
            )


def _distributions(board: Leaderboard) -> Iterator[str]:
    rows = _all_rows(board)
    for metric in board.metrics:
        unit = board.unit[metric]
        for aggregate in AGGREGATES:
            said = f"{title_of(board, metric)}, misses {aggregate.replace('_', ' ')}"
            cases = [Strip(label, row.by_case[aggregate][metric], board.cases) for label, row in rows]
            body = f"<h3>{escape(said)}: mean of each case</h3>{strips(cases, unit)}"
            if len(board.patients) != len(board.cases) or any(len(row.repeats.runs) > 1 for _, row in rows):
                patients = [Strip(label, row.by_patient[aggregate][metric], board.patients) for label, row in rows]
                summary = escape(f"{said}: mean of each patient")
                body += f"<details><summary>{summary}</summary>{strips(patients, unit)}</details>"
            yield f'<div data-metric="{metric}" data-aggregate="{aggregate}">{body}</div>'


def _ranks(board: Leaderboard, table: Table) -> Iterator[str]:
    for metric, ranking in table.rankings.items():
        taus = "; ".join(
            f"{one.replace('_', ' ')} and {other.replace('_', ' ')} {format_value(tau)}"
            for (one, other), tau in ranking.tau.items()
        )
        said = (
            f"Ranks by {title_of(board, metric)}, misses penalised, in {DRAWS} bootstrap draws of the patients. "
            f"Kendall's tau between the schemes: {taus}; between the ranking and those of the draws "
            f"{format_value(ranking.stability)} on average."
        )
        yield f'<div data-metric="{metric}">{rank_plot(ranking)}<p class="quiet">{escape(said)}</p></div>'


def _differences(board: Leaderboard, table: Table) -> Iterator[str]:
    methods = [row.label for row in table.rows]
    for metric, found in table.differences.items():
        matrix = significance_matrix(methods, found, board.unit[metric], lower=lower_is_better(metric))
        said = (
            f"Mean difference of the patients' {title_of(board, metric)}, misses penalised; Wilcoxon's signed-rank "
            "test, p adjusted for the number of pairs by Holm."
        )
        yield f'<div data-metric="{metric}">{matrix}<p class="quiet">{escape(said)}</p></div>'
