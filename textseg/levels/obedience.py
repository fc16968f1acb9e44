"""Obedience: the share of structures whose names move by n levels when the text moves by n levels.

Two label maps of one picture are compared: one predicted under a text, one under that text moved by whole levels. It is
0 for a model that ignores its text and 1 for a model that follows it. The functions take arrays, so the label maps may
come from anywhere: predictions of whole pictures or of windows, or masks of another tool.

A caller predicts each picture twice, and passes the pairs on:

    picture = obedience(right, moved, atlas, levels=-1)
    compared = ComparedPicture(case_id, patient, shows_landmark(reference, atlas), picture)
    summaries = summarise([compared, ...])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from textseg.contracts import Atlas
from textseg.errors import DataError
from textseg.levels.level_naming import SAME_PLACE, match_by_place, pairwise_dsc, without_nan
from textseg.metrics.statistics import Interval, macro_mean_interval
from textseg.system.files import write_atomically
from textseg.system.messages import counted
from textseg.system.user_files import csv_text
from textseg.volumes.geometry import Array

MINIMUM_VOXELS = 20  # size from which a structure counts; the place of a smaller piece says little
FOLLOWS, IGNORES = 0.8, 0.2  # obedience from which the names follow the text, and up to which they ignore it

POLICY = (
    f"Obedience: a structure of the sequence (at least {MINIMUM_VOXELS} voxels) in the label map of the right text is "
    f"matched by place with a structure under the moved text (DSC at least {SAME_PLACE:g}, one to one, whatever the "
    "names). Its value is 1 if the name differs by as many levels as the text, else 0; a structure without a match has "
    "vanished and counts as 0. A structure at the end of the atlas, without a successor, is left out. Mean over "
    "structures, then over pictures, then over patients; the interval is a bootstrap over patients."
)
TABLE_HEADER = ("text moved", "pictures of", "obedience (95 %)", "patients", "pictures", "structures", "vanished")
COLUMNS = (
    "case",
    "patient",
    "picture",
    "levels",
    "landmark",
    "structures",
    "followed",
    "vanished",
    "at_end",
    "obedience",
)


@dataclass(frozen=True)
class PictureObedience:
    """The obedience in one picture.

    Args:
        levels: The number of levels by which the text was moved, downwards positive.
        structures: The number of structures that count: those of the right text's label map that have a successor.
        followed: The number of these whose name moved by exactly `levels`.
        vanished: The number of these without a structure in their place under the moved text.
        at_end: The number of structures that are left out, because the atlas ends before their successor.
        names: The names under the right and the moved text of each structure that counts; None where it vanished.
    """

    levels: int
    structures: int
    followed: int
    vanished: int
    at_end: int
    names: tuple[tuple[str, str | None], ...] = field(default=(), repr=False)

    @property
    def value(self) -> float:
        """The share of structures that followed; NaN if no structure counts."""
        return self.followed / self.structures if self.structures else math.nan


@dataclass(frozen=True)
class ComparedPicture:
    """The obedience in one picture, with its case, its patient, and whether it shows a landmark of the atlas."""

    case: str
    patient: str
    landmark: bool
    obedience: PictureObedience
    picture: str = "whole"  # or the window, such as "upper 50 %"


@dataclass(frozen=True)
class Summary:
    """The obedience of a group of pictures.

    `levels` and `landmark` describe the group; None stands for pictures of every kind. `structures` and `vanished` are
    sums over its pictures.
    """

    levels: int | None
    landmark: bool | None
    interval: Interval
    pictures: int
    structures: int
    vanished: int


def obedience(right: Array, moved: Array, atlas: Atlas, levels: int) -> PictureObedience:
    """Compare two label maps [S, H, W] of one picture, predicted under texts that differ by some levels.

    Args:
        right: The class indices that were predicted under the right text.
        moved: The class indices under the text moved by `levels`.
        atlas: The structures. Without a sequence, no structure counts.
        levels: The number of levels, downwards positive. Move a text only if each structure that it names has a
            successor (`Atlas.neighbour`).

    Raises DataError for label maps of different shapes.
    """
    if right.shape != moved.shape:
        raise DataError(
            f"The label map of the right text has the shape {right.shape}, that of the moved text {moved.shape}. "
            "Obedience compares two label maps of one picture."
        )
    voxels, dsc = pairwise_dsc(right, moved, atlas.class_count)
    sequence = [atlas[name].index for name in atlas.sequence]
    shown = [index for index in sequence if voxels[index] >= MINIMUM_VOXELS]
    # Match across groups, too: an atlas without groups then needs no special case, and place decides anyway.
    matches = {atlas.names[f - 1]: atlas.names[s - 1] for f, s in match_by_place(dsc, shown, sequence)}
    successors = {name: atlas.neighbour(name, levels) for name in (atlas.names[index - 1] for index in shown)}
    names = tuple((name, matches.get(name)) for name, successor in successors.items() if successor)
    return PictureObedience(
        levels=levels,
        structures=len(names),
        followed=sum(successors[name] == new for name, new in names),
        vanished=sum(new is None for _, new in names),
        at_end=len(shown) - len(names),
        names=names,
    )


def shows_landmark(label_map: Array, atlas: Atlas) -> bool:
    """Return True if a label map shows a landmark of the atlas with at least `MINIMUM_VOXELS` voxels."""
    voxels = np.bincount(label_map.ravel(), minlength=atlas.class_count)
    return any(voxels[atlas[name].index] >= MINIMUM_VOXELS for name in atlas.landmarks)


def summarise(pictures: Sequence[ComparedPicture]) -> list[Summary]:
    """Return the obedience over all pictures, with and without a landmark, and the same for each direction.

    Pictures in which no structure counts are left out. The first summary is that over all pictures.
    """
    known = [picture for picture in pictures if picture.obedience.structures]
    directions = sorted({picture.obedience.levels for picture in known})
    groups = [(levels, landmark) for levels in (None, *directions) for landmark in (None, True, False)]
    summaries = []
    for levels, landmark in groups:
        chosen = [p for p in known if levels in (None, p.obedience.levels) and landmark in (None, p.landmark)]
        if chosen or (levels, landmark) == (None, None):
            summaries.append(_summary(levels, landmark, chosen))
    return summaries


def _summary(levels: int | None, landmark: bool | None, pictures: Sequence[ComparedPicture]) -> Summary:
    return Summary(
        levels=levels,
        landmark=landmark,
        interval=patient_interval(patient_values(pictures)),
        pictures=len(pictures),
        structures=sum(picture.obedience.structures for picture in pictures),
        vanished=sum(picture.obedience.vanished for picture in pictures),
    )


def patient_values(pictures: Sequence[ComparedPicture]) -> dict[str, float]:
    """Return the mean obedience of each patient over its pictures, without pictures in which no structure counts."""
    values: dict[str, list[float]] = {}
    for picture in pictures:
        if picture.obedience.structures:
            values.setdefault(picture.patient, []).append(picture.obedience.value)
    return {patient: math.fsum(values[patient]) / len(values[patient]) for patient in sorted(values)}


def patient_interval(values: Mapping[str, float]) -> Interval:
    """Return the mean of patients' values, each of which counts once, with its interval."""
    means = np.array(list(values.values()), dtype=np.float64).reshape(-1, 1)
    return macro_mean_interval(means, np.ones_like(means))


def conclusion(summaries: Sequence[Summary]) -> str:
    """Return one sentence with the number: the names follow the text, or they do not.

    Pictures without a landmark come first where there are any: a landmark may rightly overrule a wrong text.
    """
    parts = {summary.landmark: summary for summary in summaries if summary.levels is None}
    if True not in parts or False not in parts:
        return _sentence(parts[None])
    return f"without a landmark, {_sentence(parts[False])}; with a landmark, {_sentence(parts[True])}"


def _sentence(summary: Summary) -> str:
    value, low, high = summary.interval.value, summary.interval.low, summary.interval.high
    if math.isnan(value):
        return "obedience is not known: in no picture could the text be moved and a structure be compared"
    patients = counted(summary.interval.patients, "patient")
    bounds = f"({patients})" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"
    if value >= FOLLOWS:
        meaning = "the names follow the text"
    elif value > IGNORES:
        meaning = "the names follow the text in part"
    else:
        meaning = "the names do not follow the text"
    return f"obedience {value:.2f} {bounds}: {meaning}"


def write_obedience(path: Path, pictures: Sequence[ComparedPicture]) -> None:
    """Write obedience.csv atomically: a row for each picture and direction."""
    rows = [
        (
            picture.case,
            picture.patient,
            picture.picture,
            picture.obedience.levels,
            "yes" if picture.landmark else "no",
            picture.obedience.structures,
            picture.obedience.followed,
            picture.obedience.vanished,
            picture.obedience.at_end,
            "" if math.isnan(picture.obedience.value) else picture.obedience.value,
        )
        for picture in pictures
    ]
    write_atomically(path, csv_text(COLUMNS, rows))


def as_json(pictures: Sequence[ComparedPicture]) -> dict[str, Any]:
    """Return the content of `obedience` in run.json; undefined values are null.

    `by_patient` holds the mean of each patient, so that a leaderboard can put several runs together.
    """
    summaries = summarise(pictures)
    rows = [
        {
            "levels": summary.levels,
            "landmark": summary.landmark,
            "obedience": summary.interval.value,
            "low": summary.interval.low,
            "high": summary.interval.high,
            "patients": summary.interval.patients,
            "pictures": summary.pictures,
            "structures": summary.structures,
            "vanished": summary.vanished,
        }
        for summary in summaries
    ]
    return {
        "conclusion": conclusion(summaries),
        "summaries": [without_nan(row) for row in rows],
        "by_patient": patient_values(pictures),
    }


def table_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells below `TABLE_HEADER` for each summary of an `as_json`."""
    rows = []
    for row in record["summaries"]:
        value, low, high = row["obedience"], row["low"], row["high"]
        number = "–" if value is None else f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"
        landmark = {None: "with and without a landmark", True: "with a landmark", False: "without a landmark"}
        counts = (str(row[key]) for key in ("patients", "pictures", "structures", "vanished"))
        rows.append([direction(row["levels"]), landmark[row["landmark"]], number, *counts])
    return rows


def direction(levels: int | None) -> str:
    """Return the direction of a moved text in words, such as "one level up"; every direction for None."""
    if levels is None:
        return "all directions"
    count = "one level" if abs(levels) == 1 else f"{abs(levels)} levels"
    return f"{count} {'down' if levels > 0 else 'up'}"
