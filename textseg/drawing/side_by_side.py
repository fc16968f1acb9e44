"""Choose typical cases, and read the same slice of several methods."""

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
    """A slice with its annotation and the prediction of each method."""

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
    """Return the mean of a metric for each case, over the structures (and slices) that it shows."""
    values: dict[str, list[float]] = {}
    for row in scores:
        if row.metric == metric and row.status in ("ok", "missed"):
            values.setdefault(row.case, []).append(row.value)
    return {case: float(np.nanmean(scores)) for case, scores in values.items() if not np.isnan(scores).all()}


def best_median_worst(means: Mapping[str, float]) -> dict[str, str]:
    """Return three cases with their rank, the best first; of two cases, the best and the worst."""
    ranked = sorted(means, key=lambda case: -means[case])
    # Of equal positions the last name holds, so that one case is the best, and two are the best and the worst.
    names = {len(ranked) // 2: "median", len(ranked) - 1: "worst", 0: "best"} if ranked else {}
    return {ranked[position]: names[position] for position in sorted(names)}


def typical_cases(runs: Mapping[str, Sequence[Score]]) -> dict[str, str]:
    """Return the best, the median and the worst case by the mean DSC of all methods, or the first case without DSC."""
    by_run = [case_means(scores) for scores in runs.values()]
    shared = set.intersection(*(set(means) for means in by_run)) if by_run else set()
    chosen = best_median_worst({case: float(np.mean([m[case] for m in by_run])) for case in sorted(shared)})
    first = next((row.case for scores in runs.values() for row in scores), None)
    return chosen or ({first: "first"} if first is not None else {})


def shared_slice(kept: Mapping[str, KeptPredictions], case_id: str, slice_number: int | None = None) -> SharedSlice:
    """Return a slice of a case (0-based; by default the one whose annotation shows most) under every method.

    Raises RunError where a method saved no prediction of the case, where methods differ in structures or grids, and for
    an unknown slice; DataError where the scan or the annotation is missing.
    """
    first = next(iter(kept.values()))
    for method, predictions in kept.items():
        if case_id not in predictions.cases:
            raise RunError(f"'{method}' has no test case '{case_id}'.{suggestion(case_id, list(predictions.cases))}")
        if predictions.names != first.names:
            among = f"than '{next(iter(kept))}': their pictures can't be compared."
            raise RunError(f"'{method}' names other structures {among}")
    here = first.cases[case_id]
    read = {method: predictions.cases[case_id].read_prediction() for method, predictions in kept.items()}
    geometry = next(iter(read.values()))[1]
    for method, (_, grid) in read.items():
        if differences := grid.grid_differences(geometry):
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
