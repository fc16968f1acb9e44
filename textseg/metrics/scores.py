"""The table of scores: its row, how it is read and written, and the means over it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from textseg.contracts import Source
from textseg.errors import DataError, RunError, suggestion
from textseg.metrics.definitions import Status
from textseg.system.commands import evaluate
from textseg.system.files import write_atomically
from textseg.system.messages import counted
from textseg.system.user_files import csv_text, read_rows

StatedSource = Source | Literal["simulated"]  # the source of the prompts that scores state
# Set if the prompts of scores used the annotation, or words that came with the cases.
Mark = Literal["", "report", "simulated", "oracle"]


@dataclass(frozen=True)
class Score:
    """A value of a metric, for one structure in one volume or slice."""

    case: str
    patient: str
    slice: int | None  # None for a whole volume
    structure: str
    metric: str
    unit: str  # "mm", "pixel", or "" for ratios
    space: str  # "native" or "prepared"
    value: float
    worst: float  # the value of a miss: 0 for ratios, the diagonal of the image for distances; in the unit
    status: Status
    prompt_source: str  # a Source of the contracts, or "none" without text

    @property
    def place(self) -> tuple[str, int | None, str]:
        """The case, the slice and the structure of the score."""
        return self.case, self.slice, self.structure


COLUMNS = tuple(item.name for item in fields(Score))


@dataclass(frozen=True)
class Mean:
    """The mean of one metric: over volumes or slices for one structure, over the structures' means for all (None).

    `n` counts what the mean stands on (values that are not NaN; structures that have a mean). `missed` and `spurious`
    count rows of those statuses. Distances (`unit` not empty) are better when lower, ratios when higher.
    """

    structure: str | None
    metric: str
    unit: str
    value: float
    n: int
    missed: int
    spurious: int


@dataclass(frozen=True)
class Summary:
    """Means of a table of scores; metrics are in the order of their first row."""

    per_structure: Mapping[tuple[str, str], Mean]  # (structure, metric)
    overall: Mapping[str, Mean]  # metric -> macro mean over structures


def write_scores(path: Path, rows: Iterable[Score]) -> None:
    """Write scores.csv atomically."""
    write_atomically(path, csv_text(COLUMNS, ([getattr(row, name) for name in COLUMNS] for row in rows)))


def read_scores(path: Path) -> list[Score]:
    """The rows of scores.csv. Raises RunError where the file is missing or is not such a table."""
    try:
        lines = read_rows(path)
    except DataError as error:
        raise RunError(f"{error} It is a table of scores. Make it with: {evaluate(path.parent)}") from None
    if not lines or tuple(lines[0][1]) != COLUMNS:
        first_line = ", ".join(lines[0][1]) if lines else "nothing"
        raise RunError(
            f"'{path}' is not a table of scores: its first line must be {','.join(COLUMNS)}, and it is {first_line}. "
            f"Make it again with: {evaluate(path.parent)}"
        )
    return [_score(path, number, line) for number, line in lines[1:]]


def _score(path: Path, number: int, line: Sequence[str]) -> Score:
    where = f"'{path}', line {number}"
    if len(line) != len(COLUMNS):
        raise RunError(
            f"{where}: {counted(len(line), 'column')} instead of {len(COLUMNS)}. Restore the file or evaluate again."
        )
    cells: dict[str, Any] = dict(zip(COLUMNS, line, strict=True))
    statuses = get_args(Status)
    if cells["status"] not in statuses:
        raise RunError(f"{where}: unknown status '{cells['status']}'.{suggestion(cells['status'], statuses)}")
    try:
        position = int(cells["slice"]) if cells["slice"] else None
        value, worst = float(cells["value"]), float(cells["worst"])
    except ValueError:
        raise RunError(
            f"{where}: slice '{cells['slice']}' must be a whole number or empty, value '{cells['value']}' and worst "
            f"'{cells['worst']}' must be numbers. Restore the file or evaluate again."
        ) from None
    return Score(**{**cells, "slice": position, "value": value, "worst": worst})


def summarise(scores: Sequence[Score], *, structures: Sequence[str]) -> Summary:
    """The mean of each metric over volumes or slices, for each of `structures`, and the mean over these means.

    Every row counts once; NaN (see the policy in textseg.metrics.definitions) is left out. Raises RunError where one
    thing is scored twice, or one metric stands in two units or spaces: their mean would mean nothing.
    """
    rows: dict[tuple[str, str], list[Score]] = {}
    for row in scores:
        rows.setdefault((row.structure, row.metric), []).append(row)
    per_structure, overall = {}, {}
    for metric, unit in metric_units(scores).items():
        means = [_mean(structure, metric, unit, rows.get((structure, metric), ())) for structure in structures]
        per_structure.update({(name, metric): mean for name, mean in zip(structures, means, strict=True)})
        values = [mean.value for mean in means if mean.n]
        missed, spurious = sum(mean.missed for mean in means), sum(mean.spurious for mean in means)
        overall[metric] = Mean(None, metric, unit, _average(values), len(values), missed, spurious)
    return Summary(per_structure, overall)


def metric_units(scores: Sequence[Score], subject: str = "The scores") -> dict[str, str]:
    """Return the unit of each metric; `subject` is how messages call the scores.

    Raises RunError where one thing is scored twice, or one metric stands in two units or spaces.
    """
    twice = [key for key, count in Counter((*row.place, row.metric) for row in scores).items() if count > 1]
    if twice:
        case, position, structure, metric = twice[0]
        raise RunError(
            f"{subject} hold {counted(len(twice), 'value')} more than once, the first: {metric} of '{structure}' in "
            f"case '{case}'{'' if position is None else f', slice {position}'}. Evaluate the run again."
        )
    kinds: dict[str, tuple[str, str]] = {}
    for row in scores:
        kind, present = kinds.setdefault(row.metric, (row.unit, row.space)), (row.unit, row.space)
        if kind != present:
            raise RunError(
                f"{subject} mix {row.metric} in {' '.join(kind).strip()} and in {' '.join(present).strip()} space: "
                "evaluate the run again, or summarise them apart."
            )
    return {metric: unit for metric, (unit, _) in kinds.items()}


def _mean(structure: str, metric: str, unit: str, rows: Sequence[Score]) -> Mean:
    values = [row.value for row in rows if not math.isnan(row.value)]
    statuses = Counter(row.status for row in rows)
    return Mean(structure, metric, unit, _average(values), len(values), statuses["missed"], statuses["spurious"])


def _average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
