"""The table of scores in windows, fields_of_view.csv: its row, how it is read and written, and the means over it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from textseg.errors import DataError, RunError
from textseg.metrics.statistics import Interval, macro_mean_interval
from textseg.system.commands import evaluate
from textseg.system.files import write_atomically
from textseg.system.user_files import csv_text, read_rows

StatedBy = Literal["simulated", "template", "moved up", "moved down", "none"]
STATED_BY: tuple[StatedBy, ...] = get_args(StatedBy)
MOVED: Mapping[StatedBy, int] = {"moved up": -1, "moved down": 1}  # levels, downwards positive
MARKED: frozenset[StatedBy] = frozenset({"simulated", *MOVED})  # they use the annotation, so they are never ranked
PLACES = ("whole", "upper", "middle", "lower")
METRICS = ("dsc", "dsc_without_names", "level_shift", "obedience")
PERSON_ERRS = 0.14  # share of lumbar MRI numbered wrongly without a localiser: Korean J Radiol 2014, 1049 patients

POLICY = (
    "A window is a cut of the rows of the file, prepared like a file of its own. Named and scored are the first and "
    "the last structure of the row with at least 30 % of their voxels in the window, and all between them; "
    "others are neither named nor scored. Texts: 'simulated' names them correctly; 'moved up' and 'moved down' move "
    "every name by one level; 'template' is the text without a person; 'none' is a model without text. The expected "
    f"DSC assumes a person who errs by one level in {100 * PERSON_ERRS:g} % of the cases; it covers the windows whose "
    "text can be moved."
)


@dataclass(frozen=True)
class WindowScore:
    """A value of a metric in one window of a case under one text: of a structure, or of the whole picture."""

    case: str
    patient: str
    share: float  # of the rows of the file; 1 for the whole picture
    location: str  # one of PLACES; the column is called `place`
    landmark: str  # "yes" or "no"; empty for an atlas without landmarks
    statement: str  # "T12:L3"; empty for the template, and without text
    stated_by: StatedBy
    structure: str  # empty for a value of the whole picture
    metric: str  # one of METRICS
    value: float

    @property
    def position(self) -> Position:
        """The case, the share, the location and the structure of the score."""
        return self.case, self.share, self.location, self.structure


Position = tuple[str, float, str, str]
_FIELDS = tuple(item.name for item in fields(WindowScore))
COLUMNS = tuple("place" if name == "location" else name for name in _FIELDS)


@dataclass(frozen=True)
class WindowMeans:
    """The means over all windows of one share under one text, with intervals over patients.

    `landmark` is "yes" or "no" for the windows with and without a landmark, and "all" for both.
    """

    share: float
    landmark: str
    stated_by: StatedBy
    windows: int
    dsc: Interval  # mean over structures
    dsc_without_names: Interval
    level_shift_rate: Interval
    obedience: Interval  # of a moved text against the right one
    expected_dsc: Interval  # of the right text, if the person errs as often as PERSON_ERRS says
    expected_windows: int  # the windows of `expected_dsc`: those whose text can be moved


def write_window_scores(path: Path, rows: Iterable[WindowScore]) -> None:
    """Write fields_of_view.csv atomically."""
    write_atomically(path, csv_text(COLUMNS, ([getattr(row, name) for name in _FIELDS] for row in rows)))


def read_window_scores(path: Path) -> list[WindowScore]:
    """Return the rows of fields_of_view.csv; raises RunError for a missing file, or one that is not such a table."""
    again = f"Evaluate the run again: {evaluate(path.parent, '--fields-of-view', '0.7,0.5')}"
    try:
        (_, header), *lines = read_rows(path) or [(1, [""])]
    except DataError as error:
        raise RunError(f"{error} It is a table of scores in windows. {again}") from None
    if tuple(header) != COLUMNS:
        raise RunError(
            f"'{path}' is not a table of scores in windows: its first line must be {','.join(COLUMNS)}, and it is "
            f"{','.join(header)}. {again}"
        )
    rows = []
    for number, line in lines:
        try:
            cells: dict[str, Any] = dict(zip(_FIELDS, line, strict=True))
            rows.append(WindowScore(**{**cells, "share": float(cells["share"]), "value": float(cells["value"])}))
        except ValueError as error:
            raise RunError(f"'{path}', line {number}: {error}. {again}") from None
    return rows


def summarise_windows(rows: Sequence[WindowScore], structures: Sequence[str]) -> list[WindowMeans]:
    """Return the means for each share, with and without a landmark, and each author of the text.

    DSC is the mean over `structures`. Values of the whole picture are averaged over the windows of a patient first.
    """
    scored = [row for row in rows if not row.structure or row.structure in structures]
    means = []
    for share in sorted({row.share for row in scored}, reverse=True):
        of_share = [row for row in scored if row.share == share]
        answers = [answer for answer in ("yes", "no") if any(row.landmark == answer for row in of_share)]
        # With one answer for all windows, its line would only repeat the line of all.
        for landmark in ("all", *(answers if len(answers) > 1 else ())):
            part = [row for row in of_share if landmark in ("all", row.landmark)]
            authors = [author for author in STATED_BY if any(row.stated_by == author for row in part)]
            means += [_means(part, share, landmark, author) for author in authors]
    return means


def _means(rows: Sequence[WindowScore], share: float, landmark: str, author: StatedBy) -> WindowMeans:
    values = {metric: window_values(rows, author, metric) for metric in METRICS}
    # A model without text is not affected by a person's errors.
    expected = {"simulated": expected_values(rows), "none": values["dsc"]}.get(author, {})
    patients = {row.case: row.patient for row in rows}
    shifted = {position: float(value != 0) for position, value in values["level_shift"].items()}
    return WindowMeans(
        share=share,
        landmark=landmark,
        stated_by=author,
        windows=len({position[:3] for position in values["dsc_without_names"]}),
        dsc=interval_over_patients(values["dsc"], patients),
        dsc_without_names=interval_over_patients(values["dsc_without_names"], patients),
        level_shift_rate=interval_over_patients(shifted, patients),
        obedience=interval_over_patients(values["obedience"], patients),
        expected_dsc=interval_over_patients(expected, patients),
        expected_windows=len({position[:3] for position in expected}),
    )


def window_values(rows: Iterable[WindowScore], author: StatedBy, metric: str) -> dict[Position, float]:
    """Return the value of a metric at each position under one author's text; the mean of several runs, without NaN."""
    values: dict[Position, list[float]] = {}
    for row in rows:
        if row.stated_by == author and row.metric == metric and not math.isnan(row.value):
            values.setdefault(row.position, []).append(row.value)
    return {position: math.fsum(numbers) / len(numbers) for position, numbers in values.items()}


def expected_values(rows: Sequence[WindowScore]) -> dict[Position, float]:
    """Return the expected DSC at each position: of the right text, with the moved texts at the rate PERSON_ERRS.

    Positions without any moved text are left out, since no error by one level is possible there.
    """
    right = window_values(rows, "simulated", "dsc")
    moved = [window_values(rows, author, "dsc") for author in MOVED]
    expected = {}
    for position, value in right.items():
        wrong = [values[position] for values in moved if position in values]
        if wrong:
            expected[position] = (1 - PERSON_ERRS) * value + PERSON_ERRS * math.fsum(wrong) / len(wrong)
    return expected


def interval_over_patients(values: Mapping[Position, float], patients: Mapping[str, str]) -> Interval:
    """Return the mean of values with an interval over patients (by case).

    Values of structures give the mean over structures of their means over all windows. Values of whole pictures give
    the mean over patients of their means over the windows of a patient.
    """
    rows = sorted({patients[position[0]] for position in values})
    columns = sorted({position[3] for position in values})
    sums, counts = np.zeros((2, len(rows), len(columns)))
    for position, value in values.items():
        cell = rows.index(patients[position[0]]), columns.index(position[3])
        sums[cell] += value
        counts[cell] += 1
    if columns == [""]:
        sums, counts = sums / counts, np.ones_like(counts)
    return macro_mean_interval(sums, counts)


def means_as_json(means: Iterable[WindowMeans]) -> list[dict[str, Any]]:
    """Return means for run.json; undefined numbers are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return [plain(asdict(row)) for row in means]
