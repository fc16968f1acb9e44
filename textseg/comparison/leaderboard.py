"""A leaderboard as data: tables of methods, their means three ways, and how sure these are.

Text, files and the page are made from it; nothing is computed there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from textseg.comparison.comparability import Mismatch
from textseg.comparison.finished_runs import Repeats
from textseg.comparison.published import PublishedRow
from textseg.comparison.significance import Difference, Ranking
from textseg.metrics.aggregation import Aggregate, Scope
from textseg.metrics.scores import Mean
from textseg.metrics.statistics import Floats

Kind = Literal["ranked", "simulated", "oracle"]
TITLES: Mapping[Kind, str] = {
    "ranked": "Leaderboard",
    "simulated": "Simulated interaction (first and last structure read off the annotation), not ranked",
    "oracle": "Oracle runs (prompts from the ground truth), not ranked",
}
STRUCTURES, CASES, WITHOUT_RARE = "structures", "cases", "without_rare"


@dataclass(frozen=True)
class Number:
    """A mean with all that it stands on.

    `structures` have a value in it; `used` are the values in it, `missed` and `spurious` the places that are so, all of
    them over repeats. The interval is over `patients`, the standard deviations between seeds and between folds.
    """

    value: float
    unit: str
    structures: int
    used: int
    missed: int
    spurious: int
    low: float
    high: float
    patients: int
    seed_sd: float
    fold_sd: float


@dataclass(frozen=True)
class Row:
    """A method: one run, or several seeds and folds of one recipe."""

    label: str
    repeats: Repeats
    rank: int | None  # by the first of `Leaderboard.metrics`, penalised; None in tables that are not ranked
    means: Mapping[str, Mapping[Aggregate, Mapping[str, Number]]]  # by name of a scope, aggregate, metric
    ranks: Mapping[Aggregate, Mapping[str, int]]  # by metric, over structures; shared ones at their lower end
    by_structure: Mapping[Aggregate, Mapping[str, Mapping[str, Mean]]]  # by metric and structure
    by_case: Mapping[Aggregate, Mapping[str, Floats]]  # by metric: [C], means of `Leaderboard.cases`
    by_patient: Mapping[Aggregate, Mapping[str, Floats]]  # by metric: [P], means of `Leaderboard.patients`
    cost: Mapping[str, float | None]
    enumeration: Mapping[str, float] | None

    def number(self, metric: str, aggregate: Aggregate, scope: str = STRUCTURES) -> Number:
        """One mean."""
        return self.means[scope][aggregate][metric]


@dataclass(frozen=True)
class Table:
    """Methods that are ranked with each other, or those told what the annotation shows, which are not."""

    kind: Kind
    title: str
    rows: Sequence[Row]
    common_places: Mapping[str, int]  # by metric: structures in their cases that every run of the table found
    all_places: int
    differences: Mapping[str, Sequence[Difference]]  # by metric, penalised; empty where not ranked
    rankings: Mapping[str, Ranking]  # by metric, penalised, methods in the order of `rows`; empty for oracles
    warnings: Sequence[str]

    @property
    def ranked(self) -> bool:
        """What was told of the annotation is not."""
        return self.kind == "ranked"

    @property
    def badge(self) -> str:
        """What each of its rows is called beside its label; empty for those that are ranked."""
        return "" if self.ranked else self.kind.upper()


@dataclass(frozen=True)
class Leaderboard:
    """All of it."""

    tables: Sequence[Table]
    metrics: Sequence[str]  # the first is what rows are sorted by
    scopes: Mapping[str, Scope]
    structures: Sequence[str]
    rare: Mapping[str, tuple[int, int]]  # structures seldom shown: in how many cases of how many
    rare_share: float
    groups_missing: bool  # the runs do not say which structures make a group
    patients: Sequence[str]
    cases: Sequence[str]
    settings: Mapping[str, Any]  # dataset, and what run.json says under evaluation, of the first run
    mismatches: Sequence[Mismatch]  # what a forced comparison passes over
    published: Sequence[PublishedRow]

    @property
    def unit(self) -> Mapping[str, str]:
        """That of each metric in the first row."""
        row = self.tables[0].rows[0]
        return {metric: row.number(metric, "as_published").unit for metric in self.metrics}
