"""Turn predicted and reference label maps into rows of scores, in the space and the unit of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.contracts import Atlas, Case
from textseg.data.preparation import PreparedCase
from textseg.inference.slices import CasePrediction
from textseg.metrics.definitions import score
from textseg.metrics.named import NamedMetric
from textseg.metrics.scores import Score
from textseg.recipe.schema import EvaluationSettings
from textseg.runs.experiment import Experiment
from textseg.volumes.labels import without_ignored


def compared_maps(
    experiment: Experiment, prepared: PreparedCase, prediction: CasePrediction, reference: NDArray[np.uint8]
) -> tuple[tuple[NDArray[Any], NDArray[Any]], tuple[float, float, float]]:
    """Return class indices [S, H, W] of prediction and reference in the space of the recipe, and their spacing in mm.

    Both are background where the reference is ignored.
    `reference` is in the size of the file, as `PreparedCase.native_mask` gives it.
    """
    if experiment.recipe.evaluation.space == "prepared":
        expected, predicted = without_ignored(np.asarray(prepared.mask), prediction.prepared)
        return (predicted, expected), prepared.spacing_mm
    assert prediction.native is not None
    expected, predicted = without_ignored(reference, prediction.native)
    return (predicted, expected), prepared.native_spacing_mm


def score_case(
    experiment: Experiment,
    prepared: PreparedCase,
    prediction: CasePrediction,
    reference: NDArray[np.uint8],
    *,
    source: str,
    metrics: Sequence[NamedMetric],
) -> tuple[list[Score], list[Score]]:
    """Return the scores of a case and of its groups, by the protocol of the recipe; see `score_maps`."""
    settings, atlas = experiment.recipe.evaluation, experiment.atlas
    maps, spacing_mm = compared_maps(experiment, prepared, prediction, reference)
    return score_maps(settings, atlas, prepared.case, maps, spacing_mm, source=source, metrics=metrics)


def score_maps(
    settings: EvaluationSettings,
    atlas: Atlas,
    case: Case,
    maps: tuple[NDArray[Any], NDArray[Any]],
    spacing_mm: tuple[float, float, float],
    *,
    source: str,
    metrics: Sequence[NamedMetric],
) -> tuple[list[Score], list[Score]]:
    """Return rows of scores for the structures of two label maps, and for the groups of the atlas.

    Args:
        settings: the space, the unit and the kernel of the metrics.
        atlas: the names of the classes; each of its groups is merged into one structure before it is scored.
        case: the case of the label maps.
        maps: predicted and reference class indices, each [S, H, W].
        spacing_mm: the distances of slices, rows and columns.
        source: the source of the prompts, which each score states.
        metrics: from `textseg.metrics.build_metrics`.

    Raises PluginError for a metric that fails, with the case and the structure.
    """
    spacing = (1.0, 1.0, 1.0) if settings.unit == "pixel" else spacing_mm

    def rows(atlas: Atlas, *maps: NDArray[Any]) -> Iterator[Score]:
        parts: Iterable[tuple[int | None, tuple[NDArray[Any], ...]]]
        parts = [(None, maps)] if settings.per == "volume" else enumerate(zip(*maps, strict=True))
        labels = [structure.index for structure in atlas.structures]
        for index, (prediction, reference) in parts:
            steps, steps_mm = spacing[-prediction.ndim :], spacing_mm[-prediction.ndim :]
            scored = f"case '{case.id}'{'' if index is None else f', slice {index}'}"
            result = score(
                prediction,
                reference,
                spacing=steps,
                structures=labels,
                metrics=metrics,
                spacing_mm=steps_mm,
                kernel="medpy" if settings.kernel == "medpy" else None,
                where=lambda label, scored=scored: f"'{atlas.names[label - 1]}' of {scored}",  # type: ignore[misc]
            )
            worst = {metric.name: metric.worst(prediction.shape, steps) for metric in metrics}
            units = {metric.name: metric.unit(settings.unit) for metric in metrics}
            for structure in atlas.structures:
                for metric, value in result[structure.index].values.items():
                    yield Score(
                        case=case.id,
                        patient=case.patient,
                        slice=index,
                        structure=structure.name,
                        metric=metric,
                        unit=units[metric],
                        space=settings.space,
                        value=value,
                        worst=worst[metric],
                        status=result[structure.index].status,
                        prompt_source=source,
                    )

    groups, classes = atlas.collapsed()
    merge = np.array([classes[index] for index in sorted(classes)], dtype=np.uint8)
    merged = [merge[label_map] for label_map in maps]
    return list(rows(atlas, *maps)), list(rows(groups, *merged)) if groups.structures else []
