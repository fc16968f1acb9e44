"""Metrics by name: how a recipe's metrics are built and tried, and the facts about them that scores need."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from textseg.contracts import ReadsCounts, ReadsDistances
from textseg.errors import PluginError, RecipeError
from textseg.metrics.surfaces import Array, bounding_box, compare_labels
from textseg.recipe.schema import MetricSpec
from textseg.registry.component import cause
from textseg.registry.discovery import Registry, installed_registry
from textseg.registry.requirements import unmet
from textseg.system.commands import pip_install

MEDPY = "textseg[medpy]"
LENGTH = "length"  # the unit of metrics that are in mm or in pixels
Form = Literal["counts", "distances", "torch", "masks"]  # what a metric reads


@dataclass(frozen=True)
class MetricFacts:
    """The facts about a metric without which its scores can't be read; run.json keeps them, since a plug-in may go."""

    unit: str  # "" for a number without a unit; "mm", "pixel", or a unit of its own
    higher_is_better: bool
    missed: float | None = None  # the value of a structure that only one side shows; None if undefined
    definition: str = ""
    distribution: str = ""
    version: str = ""


@dataclass(frozen=True, eq=False)
class Pair:
    """A structure that a prediction and a reference show; a metric asks for what it reads."""

    counts: tuple[int, int, int]  # voxels of the prediction, of the reference, and of both
    distances: tuple[Array, Array] | None  # from the border of the prediction to that of the reference, and back
    masks: Callable[[], tuple[Array, Array]]
    spacing: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    medpy: bool = False  # let medpy compute the metrics that it has


@dataclass(frozen=True, eq=False)
class NamedMetric:
    """A metric with the name of its column."""

    name: str
    metric: Any
    definition: str = ""
    plugin: str = ""  # for messages
    distribution: str = ""
    version: str = ""
    form: Form = field(init=False)

    def __post_init__(self) -> None:
        metric = self.metric
        torch = all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))
        forms: Mapping[Form, bool] = {
            "counts": isinstance(metric, ReadsCounts),
            "distances": isinstance(metric, ReadsDistances),
            "torch": torch,
            "masks": callable(metric),
        }
        form = next((form for form, fits in forms.items() if fits), None)
        if form is None:
            raise self.broken(
                "it gives neither a callable with (prediction, reference, spacing), nor an object with from_counts or "
                "from_distances, nor a torchmetrics.Metric"
            )
        for attribute, possible, wanted in _ATTRIBUTES:
            value = getattr(metric, attribute, _ABSENT)
            if not possible(value):
                given = "is missing" if value is _ABSENT else f"is {value!r}"
                raise self.broken(f"its attribute '{attribute}' {given}, but must be {wanted}")
        worst = getattr(metric, "worst", None)
        if metric.missed is None and metric.unit != LENGTH and not _finite(worst):
            raise self.broken(
                "its attribute 'missed' is None and its unit is no length, so it needs the attribute 'worst', the "
                f"finite number that a missed structure counts with in penalised means, not {worst!r}"
            )
        if form == "torch":
            metric.distributed_available_fn = _never  # the processes of a run score different cases
        object.__setattr__(self, "form", form)

    def facts(self, length: str) -> MetricFacts:
        """Return the facts about the metric, for scores with lengths in this unit."""
        missed = None if self.metric.missed is None else float(self.metric.missed)
        higher = bool(self.metric.higher_is_better)
        return MetricFacts(self.unit(length), higher, missed, self.definition, self.distribution, self.version)

    def unit(self, length: str) -> str:
        """Return the unit of the scores, if lengths are in `length`."""
        return length if self.metric.unit == LENGTH else str(self.metric.unit)

    @property
    def medpy(self) -> str | None:
        """The function of `medpy.metric.binary` that computes the metric; None if the metric's class names none."""
        # Not inherited: a subclass may define the metric otherwise.
        function: str | None = vars(type(self.metric)).get("medpy")
        return function

    @property
    def missed(self) -> float:
        """The value of a structure that only one side shows; NaN if undefined."""
        return math.nan if self.metric.missed is None else float(self.metric.missed)

    def worst(self, shape: Sequence[int], spacing: Sequence[float]) -> float:
        """Return the value of a miss in penalised means: `missed`, or `worst`, or the diagonal of the grid."""
        if self.metric.missed is not None:
            return float(self.metric.missed)
        if self.metric.unit != LENGTH:
            return float(self.metric.worst)
        sides = (np.asarray(shape, dtype=np.float64) - 1) * np.asarray(spacing, dtype=np.float64)
        return float(np.sqrt((sides**2).sum()))

    def value(self, pair: Pair, where: str) -> float:
        """Return the score of a structure; `where` names it. Raises PluginError for anything but a finite number."""
        try:
            given = self._given(pair)
        except Exception as error:
            raise self.broken(f"it raises {cause(error)}, for {where}") from error
        shape = tuple(getattr(given, "shape", ()))
        if shape or isinstance(given, str | bytes) or not hasattr(given, "__float__"):
            what = f"{type(given).__name__} of shape {shape}" if shape else type(given).__name__
            raise self.broken(f"it gives {what} instead of a number, for {where}")
        if not math.isfinite(number := float(given)):
            raise self.broken(
                f"it gives {number} for {where}, which both masks show. Let it give a finite number there; leaving out "
                "hard cases would raise the mean"
            )
        return number

    def _given(self, pair: Pair) -> Any:
        metric = self.metric
        if pair.medpy and self.medpy:
            from medpy.metric import binary

            spacing = {"voxelspacing": pair.spacing} if metric.unit == LENGTH else {}
            masks = pair.masks()
            box = bounding_box(*masks)  # outside of both masks there is nothing to measure, which takes medpy minutes
            return getattr(binary, self.medpy)(*(mask[box] for mask in masks), **spacing)
        if self.form == "counts":
            return metric.from_counts(*pair.counts)
        if self.form == "distances":
            assert pair.distances is not None
            return metric.from_distances(*pair.distances)
        masks = pair.masks()
        if self.form == "masks":
            return metric(*masks, pair.spacing if metric.unit in ("", LENGTH) else pair.spacing_mm)
        import torch

        metric.reset()
        metric.update(*(torch.from_numpy(mask.astype(np.int64))[None] for mask in masks))
        return metric.compute()

    def broken(self, reason: str) -> PluginError:
        """Return the error about this metric."""
        origin = f" of {self.plugin}" if self.plugin else ""
        return PluginError(f"metric '{self.name}'{origin} is broken: {reason}.")


_ABSENT = object()


def _never() -> bool:
    return False


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_ATTRIBUTES: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("unit", lambda value: isinstance(value, str), f'a text: "", "{LENGTH}", or a unit such as "ml"'),
    ("higher_is_better", lambda value: isinstance(value, bool), "True or False"),
    (
        "missed",
        lambda value: value is None or _finite(value),
        "a number, the value of a structure that only one of the masks shows, or None if it is undefined",
    ),
)


class Dice:
    """Dice similarity coefficient: twice the common voxels over the sum of both sides' voxels; 1 is best."""

    unit = ""
    higher_is_better = True
    missed = 0.0

    def from_counts(self, predicted: int, expected: int, common: int) -> float:
        """Return the ratio."""
        return 2 * common / (predicted + expected)


def definition_of(builder: object) -> str:
    """Return the docstring of a builder as one line, without its arguments and errors."""
    text = inspect.cleandoc(getattr(builder, "__doc__", None) or "")
    return " ".join(re.split(r"\n\n(?=Args:|Raises)", text)[0].split())


# The core needs this one itself: it selects the best checkpoint, and ranks examples.
DICE = NamedMetric("dsc", Dice(), definition_of(Dice))


def build_metrics(
    specs: Iterable[MetricSpec | str],
    registry: Registry | None = None,
    *,
    dimensions: int = 3,
    kernel: Literal["textseg", "medpy"] = "textseg",
) -> tuple[NamedMetric, ...]:
    """Return metrics, by name or as a recipe has them, each tried on two small masks of 2 or 3 dimensions.

    So a metric that can't work stops a run before the training. Raises RecipeError for settings, for a name that
    stands twice and for a `kernel` that is not installed, and PluginError for a metric that is missing or broken.
    """
    if kernel == "medpy" and unmet(MEDPY):
        raise RecipeError(
            f"evaluation.kernel: 'medpy' needs medpy, which is not installed. Install it with: {pip_install(MEDPY)}, "
            "or write textseg, which gives the same numbers."
        )
    registry = registry or installed_registry()
    metrics: dict[str, NamedMetric] = {}
    for given in specs:
        spec = given if isinstance(given, MetricSpec) else MetricSpec(use=given)
        component = registry.component("metric", spec.use)
        metric = NamedMetric(
            spec.column or spec.name,
            registry.build("metric", spec.use, settings=spec.settings),
            definition_of(component.load()),
            component.origin,
            component.distribution,
            component.version,
        )
        if metric.name in metrics:
            raise RecipeError(
                f"evaluation.metrics: two metrics are called '{metric.name}', and each needs a column of its own. Name "
                f"that of one of them: {{use: {spec.use}, column: {metric.name}_2}}."
            )
        metric.value(replace(_example(dimensions), medpy=kernel == "medpy"), f"two boxes in {dimensions} dimensions")
        metrics[metric.name] = metric
    return tuple(metrics.values())


def metric_named(name: str) -> NamedMetric:
    """Return an installed metric with its default settings. Raises RecipeError for settings without a default."""
    return _installed(name, installed_registry())


@cache
def _installed(name: str, registry: Registry) -> NamedMetric:
    return build_metrics([name], registry)[0]


@cache
def _example(dimensions: int) -> Pair:
    """Return two boxes, one of them moved by a voxel."""
    shape, spacing = (4, 12, 12)[-dimensions:], (3.0, 1.0, 0.5)[-dimensions:]
    prediction, reference = np.zeros((2, *shape), np.uint8)
    prediction[..., 3:9, 3:9] = reference[..., 3:9, 4:10] = 1
    comparison = compare_labels(prediction, reference, structures=[1], spacing=spacing)
    counts = tuple(int(table[1]) for table in (comparison.predicted, comparison.expected, comparison.common))
    pair = (prediction == 1, reference == 1)
    for mask in pair:
        mask.setflags(write=False)  # as in scoring, where all metrics share the masks
    return Pair(counts, comparison.distances[1], partial(tuple, pair), spacing, spacing)  # type: ignore[arg-type]
