"""Published results that plug-ins bring, and their means computed again from the values of each structure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from textseg.errors import RunError, TextsegError, suggestion
from textseg.hookspecs import PublishedMethod, PublishedTable
from textseg.metrics.named import metric_named
from textseg.registry.discovery import installed_registry

ROUNDING = 0.0101  # two decimals in each value and in the printed mean


@dataclass(frozen=True)
class PublishedMean:
    """One mean of a published table: as printed, and over the values that the table itself gives.

    `as_published` leaves out the structures that the method never found, `common` those that some method never found,
    `without_rare` the rare ones of the table; they are NaN where the table gives no values by structure. `structures`
    counts those that the method found.
    """

    dataset: str
    metric: str
    unit: str
    method: str
    printed: float
    as_published: float
    common: float
    without_rare: float
    structures: int

    @property
    def wrong(self) -> bool:
        """True if the printed mean differs from that of the printed values by more than their rounding."""
        return abs(self.printed - self.as_published) > ROUNDING


@dataclass(frozen=True)
class PublishedRow:
    """A method of published tables beside runs: of another protocol, never ranked with them.

    `means` are by metric; ratios are from 0 to 1, distances in the unit of the table.
    """

    dataset: str
    method: str
    means: Mapping[str, PublishedMean]
    parameters: float | None
    milliseconds_per_slice: float | None
    note: str  # source and protocol

    def value(self, metric: str, aggregate: str = "printed") -> float:
        """Return the mean as printed, or over what every method found (`common`); NaN for a metric without one."""
        mean = self.means.get(metric)
        if mean is None:
            return math.nan
        value = mean.common if aggregate == "common" else mean.printed
        return value / (100 if mean.unit == "percent" else 1)

    def unit(self, metric: str) -> str:
        """Return the unit of a metric; empty for ratios."""
        mean = self.means.get(metric)
        return "" if mean is None or mean.unit == "percent" else mean.unit


def published_tables(dataset: str | None = None) -> list[PublishedTable]:
    """Return the tables of all plug-ins, or those of a data set. Raises RunError for one that has none."""
    tables = installed_registry().published_results()
    datasets = list(dict.fromkeys(table.dataset for table in tables))
    if dataset is not None and dataset not in datasets:
        possible = suggestion(dataset, datasets) if datasets else " No installed plug-in brings any."
        raise RunError(f"There are no published results of '{dataset}'.{possible}")
    return [table for table in tables if dataset in (None, table.dataset)]


def published_rows(dataset: str) -> list[PublishedRow]:
    """Return the methods that were published on a data set; raises RunError where there are none."""
    return [
        PublishedRow(
            dataset,
            method.name,
            {metric: _mean(table, method, metric) for metric in method.means},
            method.parameters,
            method.milliseconds_per_slice,
            f"Published results ({table.source}) are of another protocol ({table.protocol}); they are shown beside "
            "runs, not ranked with them.",
        )
        for table in published_tables(dataset)
        for method in table.methods
    ]


def published_means(table: PublishedTable) -> Iterator[list[PublishedMean]]:
    """Yield the means of all methods for each metric of a table, computed again."""
    for metric in table.units:
        yield [_mean(table, method, metric) for method in table.methods if metric in method.means]


def _mean(table: PublishedTable, method: PublishedMethod, metric: str) -> PublishedMean:
    values = _known_values(method, metric)
    names = [set(_known_values(each, metric)) for each in table.methods if metric in each.by_structure]
    everywhere = set.intersection(*names) if names else set()
    return PublishedMean(
        table.dataset,
        metric,
        table.units[metric],
        method.name,
        printed=method.means[metric],
        as_published=_average([*values.values()]),
        common=_average([value for name, value in values.items() if name in everywhere]),
        without_rare=_average([value for name, value in values.items() if name not in table.rare]),
        structures=len(values),
    )


def _known_values(method: PublishedMethod, metric: str) -> dict[str, float]:
    values = method.by_structure.get(metric, {})
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def ranks(means: Sequence[PublishedMean], aggregate: str) -> dict[str, int]:
    """Return the rank of each method by one aggregate of one metric, 1 the best; equal values share the better rank."""
    values = {mean.method: getattr(mean, aggregate) for mean in means}
    sign = 1 if _lower_is_better(means[0]) else -1
    return {
        method: 1 + sum(sign * rival < sign * value for rival in values.values()) for method, value in values.items()
    }


def _lower_is_better(mean: PublishedMean) -> bool:
    """Return what the installed metric of that name says, or else True for a length."""
    try:
        return not metric_named(mean.metric).metric.higher_is_better
    except TextsegError:
        return mean.unit in ("mm", "pixel")
