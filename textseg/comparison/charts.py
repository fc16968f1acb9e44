"""The pictures of numbers on the page of a leaderboard, as HTML: each cell and dot says its number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from textseg.comparison.significance import ALPHA, SCHEMES, Difference, Ranking
from textseg.drawing.page import breakable
from textseg.drawing.pictures import ticks
from textseg.drawing.tables import format_value
from textseg.metrics.scores import Mean
from textseg.metrics.statistics import Floats
from textseg.system.messages import counted


@dataclass(frozen=True)
class Strip:
    """The values of one method, each of them named."""

    label: str
    values: Floats
    names: Sequence[str]


def heat_map(
    labels: Sequence[str], rows: Sequence[Mapping[str, Mean]], structures: Sequence[str], *, lower: bool
) -> str:
    """A table of methods and structures; the better a mean, the stronger its cell's colour."""
    known = [mean.value for row in rows for mean in row.values() if not math.isnan(mean.value)]
    highest = max(known, default=0.0)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in structures)
    lines = []
    for label, row in zip(labels, rows, strict=True):
        cells = []
        for name in structures:
            mean = row[name]
            if math.isnan(mean.value):
                share = 0.0
            else:
                share = 1 - mean.value / highest if lower and highest else min(max(mean.value, 0.0), 1.0)
            value = format_value(mean.value, mean.unit)
            counts = f"{counted(mean.n, 'value')}, {mean.missed} missed, {mean.spurious} spurious"
            said = escape(f"{label}, {name}: {value} {mean.unit}".strip() + f" ({counts})")
            short = "–" if math.isnan(mean.value) else f"{mean.value:.1f}" if mean.unit else f"{mean.value:.2f}"
            miss = f'<sup aria-hidden="true">{mean.missed}</sup>' if mean.missed else ""
            cells.append(
                f'<td style="--s:{share:.3f}" title="{said}"><span aria-hidden="true">{short}</span>{miss}'
                f'<span class="sr">{value}, {counts}</span></td>'
            )
        lines.append(f'<tr><th scope="row">{breakable(label)}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll" tabindex="0"><table class="heat"><thead>'
        f'<tr><th scope="col">method</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def strips(groups: Sequence[Strip], unit: str) -> str:
    """For each method a dot for each of its values, the box of their quartiles, and the median; one axis for all."""
    known = [float(value) for strip in groups for value in strip.values if not math.isnan(value)]
    if not known:
        return '<p class="quiet">No method has a value.</p>'
    marks = ticks([0.0, *known]) if unit else [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    low, high = marks[0], marks[-1]

    def place(value: float) -> float:
        return 2 + 96 * (value - low) / (high - low)

    lines = [f'<line class="grid" x1="{place(mark):.2f}%" x2="{place(mark):.2f}%" y1="0" y2="100%"/>' for mark in marks]
    parts = [_strip(number, strip, unit, place, "".join(lines)) for number, strip in enumerate(groups)]
    texts = "".join(f'<text x="{place(mark):.2f}%" y="14" text-anchor="middle">{mark:g}</text>' for mark in marks)
    axis = f'<div class="strip" aria-hidden="true"><span></span><svg height="18">{texts}</svg></div>'
    return f'<div class="strips">{"".join(parts)}{axis}</div>'


def _strip(number: int, strip: Strip, unit: str, place: Callable[[float], float], grid: str) -> str:
    found = strip.values[~np.isnan(strip.values)]
    without = len(strip.values) - len(found)
    if len(found):
        low, median, high = (float(value) for value in np.percentile(found, (25, 50, 75)))
        said = (
            f"median {format_value(median, unit)}, quartiles {format_value(low, unit)} and {format_value(high, unit)}, "
            f"from {format_value(float(found.min()), unit)} to {format_value(float(found.max()), unit)} {unit}"
        ).rstrip()
        box = (
            f'<rect class="box" x="{place(low):.2f}%" width="{max(place(high) - place(low), 0.1):.2f}%" y="8" '
            f'height="22" rx="3"/><line class="median" x1="{place(median):.2f}%" x2="{place(median):.2f}%" y1="6" '
            'y2="32"/>'
        )
    else:
        said, box = "no value", ""
    said += f"; {without} without a value" if without else ""
    dots = []
    for index, (name, value) in enumerate(zip(strip.names, strip.values, strict=True)):
        if not math.isnan(value):
            height = 12 + 14 * ((index * 0.61803398875) % 1.0)  # apart from each other, and always the same
            text = escape(f"{name}: {format_value(float(value), unit)} {unit}".rstrip())
            dots.append(
                f'<circle cx="{place(float(value)):.2f}%" cy="{height:.1f}" r="4.5"><title>{text}</title></circle>'
            )
    return (
        f'<div class="strip c{number % 8}"><span>{breakable(strip.label)}</span><svg height="38" role="img" '
        f'aria-label="{escape(f"{strip.label}: {said}")}"><title>{escape(f"{strip.label}: {said}")}</title>'
        f"{grid}{box}{''.join(dots)}</svg></div>"
    )


def rank_plot(ranking: Ranking) -> str:
    """How often each method has which rank when patients are drawn anew, and its rank by each scheme."""
    count = len(ranking.methods)
    head = "".join(f'<th scope="col">{rank}</th>' for rank in range(1, count + 1))
    schemes = "".join(
        f'<th scope="col" title="{escape(text)}">{escape(name.replace("_", " "))}</th>'
        for name, text in SCHEMES.items()
    )
    lines = []
    for place, method in enumerate(ranking.methods):
        cells = []
        for rank, share in enumerate(ranking.distribution[place], start=1):
            said = escape(f"{method}: rank {rank} in {100 * share:.1f} % of the draws")
            dot = f'<i style="--s:{math.sqrt(share):.3f}"></i>' if share else ""
            text = f"<span>{100 * share:.0f} %</span>" if share >= 0.005 else '<span class="quiet">·</span>'
            cells.append(f'<td class="blob" title="{said}">{dot}{text}</td>')
        low, high = ranking.likely(place)
        by_scheme = "".join(f"<td>{ranking.schemes[name][place]:g}</td>" for name in SCHEMES)
        lines.append(
            f'<tr class="c{place % 8}"><th scope="row">{breakable(method)}</th>{"".join(cells)}'
            f"<td>{low if low == high else f'{low} to {high}'}</td>{by_scheme}</tr>"
        )
    return (
        '<div class="scroll" tabindex="0"><table class="ranks"><thead>'
        f'<tr><td></td><th scope="colgroup" colspan="{count}">rank, in how many draws</th><td></td>'
        f'<th scope="colgroup" colspan="{len(SCHEMES)}">rank by scheme</th></tr>'
        f'<tr><th scope="col">method</th>{head}<th scope="col">95 % of draws</th>{schemes}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def significance_matrix(methods: Sequence[str], differences: Sequence[Difference], unit: str, *, lower: bool) -> str:
    """Each method against each other: the mean difference (row - column) and Holm's p; coloured where p < 0.05."""
    found = {(one.first, one.second): (one, 1) for one in differences}
    found |= {(one.second, one.first): (one, -1) for one in differences}
    head = "".join(
        f'<th scope="col" title="{escape(method)}">{number}<span class="sr"> {escape(method)}</span></th>'
        for number, method in enumerate(methods, start=1)
    )
    lines = []
    for number, method in enumerate(methods, start=1):
        cells = []
        for other in methods:
            if other == method:
                cells.append('<td class="same" aria-label="the same method"></td>')
                continue
            one, sign = found[method, other]
            mean, effect = sign * one.mean, sign * one.test.effect
            known = not math.isnan(one.adjusted)
            verdict = ("better" if effect > 0 else "worse") if known and one.adjusted < ALPHA else "unknown"
            value = "–" if math.isnan(mean) else f"{'+' if mean > 0 else ''}{format_value(mean, unit)}"
            p = f"{one.adjusted:.3g}" if known else "–"
            said = (
                f"{method} - {other}: mean {value} {unit}, effect {effect:+.2f}, p {one.test.p:.3g}, p (Holm) {p}, "
                f"{counted(one.test.patients, 'patient')}; {_SAID[verdict]}"
            )
            cells.append(f'<td class="{verdict}" title="{escape(said)}"><b>{value}</b><small>p {p}</small></td>')
        lines.append(f'<tr><th scope="row">{number} {breakable(method)}</th>{"".join(cells)}</tr>')
    better = "lower" if lower else "higher"
    return (
        '<div class="scroll" tabindex="0"><table class="matrix"><thead>'
        f'<tr><th scope="col">row - column</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        '<p class="quiet"><span class="kept"><span class="key better"></span>'
        f"row significantly better ({better})</span>"
        f' <span class="kept"><span class="key worse"></span>significantly worse:</span> p (Holm) below {ALPHA}. '
        "No colour: not known.</p>"
    )


_SAID = {"better": "significantly better", "worse": "significantly worse", "unknown": "no significant difference"}
