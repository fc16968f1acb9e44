"""The same slices under every method: which cases to show, and what each run predicted there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.drawing.pictures import Panels
from textseg.errors import RunError, suggestion
from textseg.metrics.scores import Score
from textseg.runs.saved_predictions import KeptPredictions
from textseg.volumes.labels import fullest_slice


@dataclass(frozen=True)
class SharedSlice:
    """One slice, its annotation, and what each method predicted in it."""

    case: str
    index: int  # 0-based
    count: int
    image: NDArray[np.floating[Any]]  # [H, W]
    reference: NDArray[np.uint8]  # [H, W]
    predictions: Mapping[str, NDArray[np.uint8]]  # by method, each [H, W]
    names: Mapping[int, str]
    pixel_aspect: float  # row distance / column distance

    def panels(self, title: str) -> Panels:
        """Image, reference and each method, as `textseg.drawing.pictures` draws them."""
        masks = {"image": None, "reference": self.reference, **self.predictions}
        return Panels(title, self.image, masks, self.names, self.pixel_aspect)


def case_means(scores: Sequence[Score], metric: str = "dsc") -> dict[str, float]:
    """Of each case, the mean of a metric over the structures (and slices) that it shows."""
    values: dict[str, list[float]] = {}
    for row in scores:
        if row.metric == metric and row.status in ("ok", "missed"):
            values.setdefault(row.case, []).append(row.value)
    found = {case: np.asarray(some) for case, some in values.items()}
    return {case: float(np.nanmean(some)) for case, some in found.items() if not np.isnan(some).all()}


def best_median_worst(means: Mapping[str, float]) -> dict[str, str]:
    """Three cases with what they are, the best first; fewer where there are fewer: best and worst come first."""
    ranked = sorted(means, key=lambda case: -means[case])
    names = {0: "best"} if ranked else {}
    for place, name in ((len(ranked) - 1, "worst"), (len(ranked) // 2, "median")):
        if ranked:
            names.setdefault(place, name)
    return {ranked[place]: names[place] for place in sorted(names)}


def typical_cases(runs: Mapping[str, Sequence[Score]]) -> dict[str, str]:
    """The best, the median and the worst case by the mean DSC of all methods; the first one where DSC is not scored."""
    by_run = [case_means(scores) for scores in runs.values()]
    shared = set.intersection(*(set(means) for means in by_run)) if by_run else set()
    chosen = best_median_worst({case: float(np.mean([m[case] for m in by_run])) for case in sorted(shared)})
    first = next((row.case for scores in runs.values() for row in scores), None)
    return chosen or ({first: "first"} if first is not None else {})


def shared_slice(kept: Mapping[str, KeptPredictions], case_id: str, slice_number: int | None = None) -> SharedSlice:
    """A slice of a case (0-based; else the one whose annotation shows most) under every method.

    Raises RunError where a method kept no prediction of the case, where they name other structures or lie on other
    grids, and for a slice that the case lacks; DataError where scan or annotation are not at hand.
    """
    first = next(iter(kept.values()))
    for method, predictions in kept.items():
        if case_id not in predictions.cases:
            raise RunError(f"'{method}' has no test case '{case_id}'.{suggestion(case_id, list(predictions.cases))}")
        if predictions.names != first.names:
            raise RunError(
                f"'{method}' names other structures than '{next(iter(kept))}': their pictures can't be compared."
            )
    here = first.cases[case_id]
    read = {method: predictions.cases[case_id].read_prediction() for method, predictions in kept.items()}
    geometry = next(iter(read.values()))[1]
    for method, (_, other) in read.items():
        if differences := other.differences(geometry):
            raise RunError(f"Case '{case_id}' of '{method}' lies on another grid: {'; '.join(differences)}.")
    reference = here.read_reference()
    if slice_number is not None and not 0 <= slice_number < len(reference):
        raise RunError(f"Case '{case_id}' has slices 1 to {len(reference)}, and no {slice_number + 1}.")
    index = fullest_slice(reference) if slice_number is None else slice_number
    _, row_mm, column_mm = geometry.spacing_mm
    return SharedSlice(
        case=case_id,
        index=index,
        count=len(reference),
        image=here.read_image(geometry)[index],
        reference=reference[index],
        predictions={method: array[index] for method, (array, _) in read.items()},
        names=first.names,
        pixel_aspect=row_mm / column_mm,
    )
