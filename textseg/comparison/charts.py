"""The charts on the page of a leaderboard, as HTML: each cell and dot says its number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from textseg.comparison.significance import ALPHA, SCHEMES, Difference, Ranking
from textseg.drawing.page import render
from textseg.drawing.pictures import ticks
from textseg.drawing.tables import format_value
from textseg.metrics.scores import Mean
from textseg.metrics.statistics import Floats
from textseg.system.messages import counted

_VERDICTS = {"better": "significantly better", "worse": "significantly worse", "unknown": "no significant difference"}


@dataclass(frozen=True)
class Strip:
    """The values of one method, each of them named."""

    label: str
    values: Floats
    names: Sequence[str]


def heat_map(
    labels: Sequence[str], rows: Sequence[Mapping[str, Mean]], structures: Sequence[str], *, lower: bool
) -> Markup:
    """Return a table of methods and structures; the better a mean, the stronger its cell's colour."""
    known = [mean.value for row in rows for mean in row.values() if not math.isnan(mean.value)]
    # A ratio from 0 to 1 has these ends; any other number those of the table, of which a distance has 0, too.
    least, highest = min([0.0, *known]), max(known if lower else [1.0, *known], default=0.0)

    def cell(label: str, name: str, mean: Mean) -> dict[str, Any]:
        if math.isnan(mean.value):
            share, short = 0.0, "–"
        else:
            share = (mean.value - least) / (highest - least) if highest > least else 0.0
            share = 1 - share if lower and highest > least else share
            short = f"{mean.value:.1f}" if mean.unit else f"{mean.value:.2f}"
        value = format_value(mean.value, mean.unit)
        counts = f"{counted(mean.n, 'value')}, {mean.missed} missed, {mean.spurious} spurious"
        title = f"{label}, {name}: {value} {mean.unit}".strip() + f" ({counts})"
        texts = {"title": title, "short": short, "spoken": f"{value}, {counts}"}
        return {"share": f"{share:.3f}", "missed": mean.missed, **texts}

    cells = [[cell(label, name, row[name]) for name in structures] for label, row in zip(labels, rows, strict=True)]
    return Markup(render("heat_map.html.j2", structures=structures, rows=list(zip(labels, cells, strict=True))))


def strips(groups: Sequence[Strip], unit: str) -> Markup:
    """Return for each method a dot for each value, the box of their quartiles and the median, on one axis."""
    known = [float(value) for strip in groups for value in strip.values if not math.isnan(value)]
    ratios = not unit and all(0 <= value <= 1 for value in known)
    marks = ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0] if ratios else ticks([0.0, *known])) if known else []

    def percent(value: float) -> float:
        return 2 + 96 * (value - marks[0]) / (marks[-1] - marks[0])

    def drawn(strip: Strip) -> dict[str, Any]:
        values = strip.values[~np.isnan(strip.values)]
        box, summary = None, "no value"
        if len(values):
            low, median, high = (float(value) for value in np.percentile(values, (25, 50, 75)))
            m, q1, q3, least, most = (format_value(v, unit) for v in (median, low, high, values.min(), values.max()))
            summary = f"median {m}, quartiles {q1} and {q3}, from {least} to {most} {unit}".rstrip()
            width = max(percent(high) - percent(low), 0.1)
            box = {"low": f"{percent(low):.2f}", "width": f"{width:.2f}", "median": f"{percent(median):.2f}"}
        if without := len(strip.values) - len(values):
            summary += f"; {without} without a value"
        dots = [
            (
                f"{percent(float(value)):.2f}",
                f"{12 + 14 * ((index * 0.61803398875) % 1.0):.1f}",  # apart from each other, and always the same
                f"{name}: {format_value(float(value), unit)} {unit}".rstrip(),
            )
            for index, (name, value) in enumerate(zip(strip.names, strip.values, strict=True))
            if not math.isnan(value)
        ]
        return {"label": strip.label, "title": f"{strip.label}: {summary}", "box": box, "dots": dots}

    lines = [(f"{percent(mark):.2f}", f"{mark:g}") for mark in marks]
    return Markup(render("strips.html.j2", marks=lines, strips=[drawn(strip) for strip in groups] if marks else []))


def rank_plot(ranking: Ranking) -> Markup:
    """Return a table: the share of each rank of each method in the bootstrap over patients, and its rank by scheme."""
    rows = []
    for index, method in enumerate(ranking.methods):
        low, high = ranking.likely(index)
        likely = low if low == high else f"{low} to {high}"
        ranks = [f"{ranking.schemes[name][index]:g}" for name in SCHEMES]
        rows.append({"method": method, "shares": ranking.distribution[index], "likely": likely, "ranks": ranks})
    return Markup(render("rank_plot.html.j2", rows=rows, schemes=SCHEMES))


def significance_matrix(methods: Sequence[str], differences: Sequence[Difference], unit: str, *, lower: bool) -> Markup:
    """Return each method against each other: the mean difference (row - column) and Holm's p, coloured by ALPHA."""
    pairs = {(pair.first, pair.second): (pair, 1) for pair in differences}
    pairs |= {(pair.second, pair.first): (pair, -1) for pair in differences}

    def cell(method: str, rival: str) -> dict[str, str] | None:
        if method == rival:
            return None
        pair, sign = pairs[method, rival]
        mean, effect = sign * pair.mean, sign * pair.test.effect
        known = not math.isnan(pair.adjusted)
        verdict = ("better" if effect > 0 else "worse") if known and pair.adjusted < ALPHA else "unknown"
        value = "–" if math.isnan(mean) else f"{'+' if mean > 0 else ''}{format_value(mean, unit)}"
        p = f"{pair.adjusted:.3g}" if known else "–"
        title = (
            f"{method} - {rival}: mean {value} {unit}, effect {effect:+.2f}, p {pair.test.p:.3g}, p (Holm) {p}, "
            f"{counted(pair.test.patients, 'patient')}; {_VERDICTS[verdict]}"
        )
        return {"verdict": verdict, "value": value, "p": p, "title": title}

    rows = [(method, [cell(method, rival) for rival in methods]) for method in methods]
    better = "lower" if lower else "higher"
    return Markup(render("significance_matrix.html.j2", rows=rows, better=better, alpha=ALPHA))
