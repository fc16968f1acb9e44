"""The tables of the ATM-Net paper (arXiv 2504.03476) as data, and what they say when their means are computed again."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from textseg.errors import RunError, suggestion

FOLDER = Path(__file__).with_name("published_results")
RARE = ("T9", "T10", "T9/T10")  # seldom in view, by the paper's own figure 4
ROUNDING = 0.0101  # two decimals in each value and in the printed mean
LOWER_IS_BETTER = frozenset({"hd95", "asd"})
PROTOCOL = (
    "Published results are of another protocol (2-D slices after resizing, distances in pixels, an unnamed split, one "
    "run, prompts not said); they are shown beside runs, not ranked with them."
)


@dataclass(frozen=True)
class PublishedMean:
    """One mean of a published table: as printed, and over the values that the table itself gives.

    `as_published` leaves out the structures that the method never found, `common` those that some method never found,
    `without_rare` T9, T10 and T9/T10. `found` counts the structures that the method found.
    """

    dataset: str
    metric: str
    unit: str
    method: str
    printed: float
    as_published: float
    common: float
    without_rare: float
    found: int

    @property
    def wrong(self) -> bool:
        """Whether the printed mean is not that of the printed values, by more than their rounding."""
        return abs(self.printed - self.as_published) > ROUNDING


@dataclass(frozen=True)
class PublishedRow:
    """A method of the published tables beside runs: of another protocol, never ranked with them.

    `means` are by metric; ratios are from 0 to 1, distances in the unit of the table (pixels). Millions of parameters
    and milliseconds are the paper's; its FLOPs are of a batch of 8 and are left out.
    """

    dataset: str
    method: str
    means: Mapping[str, PublishedMean]
    parameters: float | None
    milliseconds_per_slice: float | None

    def value(self, metric: str, aggregate: str = "printed") -> float:
        """As printed, or over what every method found (`common`); NaN for a metric that the paper lacks."""
        mean = self.means.get(metric)
        if mean is None:
            return math.nan
        value = mean.common if aggregate == "common" else mean.printed
        return value / (100 if mean.unit == "percent" else 1)

    def unit(self, metric: str) -> str:
        """Empty for ratios."""
        mean = self.means.get(metric)
        return "" if mean is None or mean.unit == "percent" else mean.unit


def published_rows(dataset: str) -> list[PublishedRow]:
    """The methods of a data set's tables, in their order. Raises RunError for a data set that they don't have."""
    means: dict[str, dict[str, PublishedMean]] = {}
    for mean in published_means(dataset):
        means.setdefault(mean.method, {})[mean.metric] = mean
    costs = {row["method"]: row for row in _read("complexity")}
    return [
        PublishedRow(
            dataset,
            method,
            found,
            round(float(costs[method]["parameters_m"]) * 1e6) if method in costs else None,
            float(costs[method]["inference_ms"]) if method in costs else None,
        )
        for method, found in means.items()
    ]


def published_datasets() -> list[str]:
    """The data sets of the tables."""
    return list(dict.fromkeys(dataset for dataset, _, _ in _values()))


@cache
def published_means(dataset: str) -> tuple[PublishedMean, ...]:
    """Every mean of a data set's tables, computed again; raises RunError for a data set that they don't have."""
    if dataset not in published_datasets():
        raise RunError(f"--published: there are no results of '{dataset}'.{suggestion(dataset, published_datasets())}")
    means = []
    for row in _read("average"):
        if row["dataset"] == dataset:
            methods = _values()[dataset, row["metric"], row["unit"]]
            everywhere = set.intersection(
                *({name for name, v in m.items() if not math.isnan(v)} for m in methods.values())
            )
            found = {name: v for name, v in methods[row["method"]].items() if not math.isnan(v)}
            means.append(
                PublishedMean(
                    dataset,
                    row["metric"],
                    row["unit"],
                    row["method"],
                    printed=float(row["value"]),
                    as_published=_mean([*found.values()]),
                    common=_mean([v for name, v in found.items() if name in everywhere]),
                    without_rare=_mean([v for name, v in found.items() if name not in RARE]),
                    found=len(found),
                )
            )
    return tuple(means)


def ranks(means: Sequence[PublishedMean], aggregate: str) -> dict[str, int]:
    """The rank of each method by one aggregate of one metric, 1 the best; equal values share the better rank."""
    values = {mean.method: getattr(mean, aggregate) for mean in means}
    sign = 1 if means[0].metric in LOWER_IS_BETTER else -1
    return {
        method: 1 + sum(sign * other < sign * value for other in values.values()) for method, value in values.items()
    }


def published_report(dataset: str) -> str:
    """The tables of a data set computed again: each mean four ways, what was printed wrongly, whose rank changes."""
    means = published_means(dataset)
    lines = [f"Published results on {dataset}, computed again from the values of each structure", ""]
    changes = []
    for metric in dict.fromkeys(mean.metric for mean in means):
        table = [mean for mean in means if mean.metric == metric]
        printed, common = ranks(table, "printed"), ranks(table, "common")
        structures = len(next(iter(_values()[dataset, metric, table[0].unit].values())))
        lines.append(f"{metric} [{table[0].unit}]")
        lines.append(f"{'method':18}{'printed':>14}{'as published':>14}{'common':>14}{'without rare':>14}{'found':>8}")
        for mean in sorted(table, key=lambda mean: printed[mean.method]):
            cells = [
                f"{mean.printed:.2f} ({printed[mean.method]})",
                f"{mean.as_published:.2f}{'*' if mean.wrong else ''}",
                f"{mean.common:.2f} ({common[mean.method]})",
                f"{mean.without_rare:.2f}",
            ]
            lines.append(f"{mean.method:18}{''.join(f'{cell:>14}' for cell in cells)}{f'{mean.found}/{structures}':>8}")
            if printed[mean.method] != common[mean.method]:
                changes.append((metric, mean.method, printed[mean.method], common[mean.method]))
        lines.append("")
    wrong = [mean for mean in means if mean.wrong]
    lines.append(
        f"{len(means)} means computed again; * {len(wrong)} are not the mean of the values printed beside them:"
    )
    lines += [f"  {m.method} {m.metric}: printed {m.printed:.2f}, computed {m.as_published:.2f}" for m in wrong]
    lines.append("Ranks (in parentheses) that change where only structures count that every method found:")
    lines += [f"  {method} by {metric}: {before} -> {after}" for metric, method, before, after in changes]
    return "\n".join([*lines, PROTOCOL]) + "\n"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


@cache
def _values() -> Mapping[tuple[str, str, str], Mapping[str, Mapping[str, float]]]:
    """By data set, metric and unit; by method; by structure. NaN where the method never found the structure."""
    tables: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for row in _read("per_class"):
        methods = tables.setdefault((row["dataset"], row["metric"], row["unit"]), {})
        methods.setdefault(row["method"], {})[row["structure"]] = float(row["value"] or "nan")
    return tables


def _read(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
