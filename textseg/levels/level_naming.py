"""Level naming: level shifts, swaps, wrong order, duplicates, and DSC without regard to names.

Structures of the reference are matched one to one with structures of the prediction in the same group of the atlas
(vertebrae with vertebrae, discs with discs), so that the sum of DSC is greatest. A match needs a DSC of at least
`SAME_PLACE`. A structure that is matched under another name is misnamed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from textseg.contracts import Atlas
from textseg.system.files import write_atomically
from textseg.volumes.geometry import Array, downward_axis

SAME_PLACE = 0.3  # DSC from which two structures are one thing under two names
SECOND = 0.2  # share of the largest part from which another part is a duplicate, not a crumb

POLICY = (
    f"Names: a predicted structure is matched with the one of its group that lies in the same place (DSC at least "
    f"{SAME_PLACE:g}, one to one). Misnamed: matched under another name. Level shift of a volume: most of its matched "
    "structures are off by the same number of levels. Order violation: of two structures next in the row, the upper "
    f"lies lower. Duplicate: a second part of at least {SECOND:.0%} of the first."
)


@dataclass(frozen=True)
class LevelNaming:
    """The naming errors of the structures of one volume.

    `shift` is the number of levels, downwards positive, by which most matched structures of the row are off.
    `names` holds (reference, prediction) of every match. `dsc` and `dsc_without_names` are means over the structures of
    the reference, by name and by place; NaN where it shows none.
    """

    matched: int
    misnamed: int
    shift: int
    order_violations: int
    duplicates: int
    dsc: float
    dsc_without_names: float
    names: tuple[tuple[str, str], ...] = field(default=(), repr=False)


def compare_names(prediction: Array, reference: Array, atlas: Atlas) -> LevelNaming:
    """Compare the names in two label maps [S, H, W] of class indices, in the plane of the atlas."""
    voxels, dsc = pairwise_dsc(reference, prediction, atlas.class_count)
    shown = [structure.index for structure in atlas.structures if voxels[structure.index]]
    matches = [pair for group in _groups(atlas) for pair in match_by_place(dsc, shown, group)]
    matched = dict(matches)
    # One DSC by name, one by position: their difference is what wrong names cost.
    by_place = [dsc[index, matched.get(index, index)] for index in shown]  # one without a match may bear its name
    names = tuple((atlas.names[expected - 1], atlas.names[predicted - 1]) for expected, predicted in sorted(matches))
    return LevelNaming(
        matched=len(matches),
        misnamed=sum(expected != predicted for expected, predicted in names),
        shift=_shift(names, atlas),
        order_violations=_order_violations(prediction, atlas),
        duplicates=_duplicates(prediction, atlas),
        dsc=float(np.mean([dsc[index, index] for index in shown])) if shown else math.nan,
        dsc_without_names=float(np.mean(by_place)) if shown else math.nan,
        names=names,
    )


def pairwise_dsc(first: Array, second: Array, class_count: int) -> tuple[Array, Array]:
    """Return the voxels [K] of each class in the first label map, and the DSC [K, K] of its classes with the second's.

    Row k of the DSC belongs to class k of the first label map, column k to class k of the second one.
    """
    # Count each pair of classes once over all voxels; every measure follows from that table.
    pairs = np.bincount(first.ravel().astype(np.int64) * class_count + second.ravel(), minlength=class_count**2)
    overlap = pairs.reshape(class_count, class_count).astype(np.float64)
    sizes = overlap.sum(1)[:, None] + overlap.sum(0)[None]
    return overlap.sum(1), np.divide(2 * overlap, sizes, out=np.zeros_like(overlap), where=sizes > 0)


def match_by_place(dsc: Array, shown: Sequence[int], candidates: Sequence[int]) -> list[tuple[int, int]]:
    """Match structures of two label maps one to one by place, whatever their names, with the greatest sum of DSC.

    Both label maps take part with the classes in `candidates`, the first one only with those that are also in `shown`.
    Returns class indices (first, second) of each match; a match needs a DSC of at least `SAME_PLACE`.
    """
    rows = [index for index in shown if index in candidates]
    costs = dsc[np.ix_(rows, candidates)]
    pairs = np.transpose(linear_sum_assignment(costs, maximize=True)).tolist()
    return [(rows[row], candidates[column]) for row, column in pairs if costs[row, column] >= SAME_PLACE]


def _groups(atlas: Atlas) -> list[list[int]]:
    """Return the class indices of each group, and of each structure that is in none."""
    grouped = [[atlas[name].index for name in group] for group in atlas.groups.values()]
    taken = {index for group in grouped for index in group}
    return [*grouped, *([structure.index] for structure in atlas.structures if structure.index not in taken)]


def _shift(names: Sequence[tuple[str, str]], atlas: Atlas) -> int:
    levels = {}  # of a name among those of its group in the row
    for group in atlas.groups.values():
        levels.update({name: level for level, name in enumerate(n for n in atlas.sequence if n in group)})
    both = [(expected, predicted) for expected, predicted in names if expected in levels and predicted in levels]
    shifts = Counter(levels[predicted] - levels[expected] for expected, predicted in both)
    if not shifts:
        return 0
    shift, often = shifts.most_common(1)[0]
    return shift if often > shifts.total() / 2 else 0


def _order_violations(prediction: Array, atlas: Atlas) -> int:
    if not atlas.ordered:
        return 0
    present = [atlas[name].index for name in atlas.sequence]
    voxels = np.bincount(prediction.ravel(), minlength=atlas.class_count)
    rows = np.zeros(atlas.class_count)
    for row, across in enumerate(np.moveaxis(prediction, downward_axis(atlas.plane), 0)):
        rows += row * np.bincount(across.ravel(), minlength=atlas.class_count)
    heights = [rows[index] / voxels[index] for index in present if voxels[index]]
    return sum(bool(lower <= upper) for upper, lower in pairwise(heights))


def _duplicates(prediction: Array, atlas: Atlas) -> int:
    count = 0
    boxes = ndimage.find_objects(prediction, max_label=atlas.class_count - 1)
    for index, box in ((index, box) for index, box in enumerate(boxes, start=1) if box):  # None where it is not found
        parts, _ = ndimage.label(prediction[box] == index, structure=np.ones((3,) * prediction.ndim))
        sizes = np.sort(np.bincount(parts.ravel())[1:])[::-1]
        count += int((sizes[1:] >= SECOND * sizes[0]).sum())
    return count


def totals(namings: Mapping[str, LevelNaming]) -> dict[str, Any]:
    """Return rates and sums over all volumes (by case id), and how often each name was given for another one."""
    values = list(namings.values())
    counts = ("matched", "misnamed", "order_violations", "duplicates")
    sums = {name: sum(getattr(naming, name) for naming in values) for name in counts}
    swaps = Counter(pair for naming in values for pair in naming.names if pair[0] != pair[1])
    return {
        "cases": len(values),
        "level_shift_rate": sum(naming.shift != 0 for naming in values) / len(values) if values else math.nan,
        "misnamed_rate": sums["misnamed"] / sums["matched"] if sums["matched"] else math.nan,
        **sums,
        "dsc": _mean([naming.dsc for naming in values]),
        "dsc_without_names": _mean([naming.dsc_without_names for naming in values]),
        "swaps": [{"reference": pair[0], "prediction": pair[1], "count": count} for pair, count in swaps.most_common()],
    }


def write_level_naming(path: Path, namings: Mapping[str, LevelNaming]) -> dict[str, Any]:
    """Write enumeration.json; return the totals without the swaps, for run.json."""
    content = as_json(namings)
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return {key: value for key, value in content["totals"].items() if key != "swaps"}


def as_json(namings: Mapping[str, LevelNaming]) -> dict[str, Any]:
    """Return the content of enumeration.json: the totals and a row per case; undefined values are null."""
    rows = [
        {"case": case, **{k: v for k, v in asdict(naming).items() if k != "names"}} for case, naming in namings.items()
    ]
    return {"policy": POLICY, "totals": without_nan(totals(namings)), "cases": [without_nan(row) for row in rows]}


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for a JSON file, in which undefined numbers are null."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
