"""Metrics of plug-ins: the four forms, units, misses, and what is wrong with them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torchmetrics.classification import BinaryF1Score

from textseg.errors import PluginError, RecipeError
from textseg.metrics.definitions import score
from textseg.metrics.named import DICE, MetricFacts, NamedMetric, build_metrics, metric_named
from textseg.recipe.schema import MetricSpec
from textseg.registry.component import Plugin
from textseg.registry.discovery import Register, Registry


class OfMasks:
    """Dice, from masks; 1 is best."""

    unit, higher_is_better, missed = "", True, 0.0

    def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> float:
        assert prediction.dtype == reference.dtype == bool
        assert len(spacing) == prediction.ndim
        return float(2 * (prediction & reference).sum() / (prediction.sum() + reference.sum()))


class Spacing(OfMasks):
    """The distance of the rows."""

    def __init__(self, *, unit: str = "length", worst: float | None = None) -> None:
        self.unit, self.missed = unit, None
        if worst is not None:
            self.worst = worst

    def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> float:
        return spacing[-2]


def of_torch() -> torchmetrics.Metric:
    """F1, of torchmetrics; 1 is best.

    Raises nothing.
    """
    metric = BinaryF1Score()
    metric.unit, metric.missed = "", 0.0
    return metric


def registry_of(**builders: object) -> Registry:
    register = Register(Plugin("mine", "textseg-mine", "0.2"))
    for name, builder in builders.items():
        register.metric(name, builder)
    return Registry([register.plugin], register.components)


def built(builder: object, *, dimensions: int = 3, **settings: Any) -> NamedMetric:
    spec = MetricSpec.model_validate({"use": "mine", **settings})
    return build_metrics([spec], registry_of(mine=builder), dimensions=dimensions)[0]


def giving(value: Any, **attributes: Any) -> Callable[..., Any]:
    """Return a builder of a metric that is fine until masks have more than 100 rows."""

    def builder() -> Any:
        """A metric."""
        members: dict[str, Any] = {"unit": "", "higher_is_better": True, "missed": 0.0, **attributes}

        def call(self: object, prediction: Any, reference: Any, spacing: Sequence[float]) -> Any:
            return 0.5 if prediction.shape[-2] < 100 else value(prediction) if callable(value) else value

        return type("Given", (), {"__call__": call, **members})()

    return builder


def pair(rows: int = 30) -> np.ndarray:
    maps = np.zeros((2, 6, rows, 24), np.uint8)
    maps[0, 1:5, 3:20, 4:18] = maps[1, 1:5, 5:22, 4:16] = 1
    maps[0, :, :2, :2] = 2
    maps[1, :, -2:, -2:] = 3
    return maps


@pytest.mark.parametrize("shape", [np.s_[:, 2], np.s_[:, 0:6]], ids=["slice", "volume"])
def test_every_form_of_a_metric_gives_the_same_dice(shape: Any) -> None:
    maps = pair()[shape]
    dimensions = maps.ndim - 1
    others = [built(builder, dimensions=dimensions) for builder in (OfMasks, of_torch)]
    assert [metric.form for metric in others] == ["masks", "torch"]
    spacing = (3.0, 0.5, 0.5)[-dimensions:]
    expected = score(*maps, spacing=spacing, structures=[1, 2, 3, 4], metrics=[DICE])
    assert 0 < expected[1].values["dsc"] < 1
    for metric in others:
        scores = score(*maps, spacing=spacing, structures=[1, 2, 3, 4], metrics=[metric])
        assert scores[1].values["mine"] == pytest.approx(expected[1].values["dsc"], rel=1e-6)
        assert [scores[label].values["mine"] for label in (2, 3)] == [0, 0]  # spurious and missed
        assert math.isnan(scores[4].values["mine"])


def test_the_facts_about_a_metric() -> None:
    definition = "F1, of torchmetrics; 1 is best."
    facts = MetricFacts("", higher_is_better=True, missed=0.0, definition=definition)
    assert built(of_torch).facts("mm") == MetricFacts(
        **{**vars(facts), "distribution": "textseg-mine", "version": "0.2"}
    )
    assert metric_named("hd95").facts("pixel").unit == "pixel"
    assert built(Spacing, unit="ml", worst=9.0).facts("pixel").unit == "ml"


def test_lengths_are_in_the_unit_of_the_recipe_and_other_units_in_mm() -> None:
    maps = pair()
    metrics = [
        NamedMetric(name, Spacing(unit=unit, worst=9.0)) for name, unit in (("a", "length"), ("b", "ml"), ("c", ""))
    ]
    ones = (1.0, 1.0, 1.0)
    scores = score(*maps, spacing=ones, spacing_mm=(3.0, 0.7, 0.5), structures=[1, 2], metrics=metrics)
    assert scores[1].values == {"a": 1.0, "b": 0.7, "c": 1.0}
    assert all(math.isnan(value) for value in scores[2].values.values())
    assert [metric.worst((4, 5), (0.5, 2.0)) for metric in metrics] == [pytest.approx((1.5**2 + 8**2) ** 0.5), 9, 9]
    assert NamedMetric("d", OfMasks()).worst((4, 5), (0.5, 2.0)) == 0


def test_a_column_of_its_own_for_each_metric() -> None:
    specs = [{"use": "mine", "unit": "ml", "worst": 1}, {"use": "mine", "unit": "cl", "worst": 1, "column": "small"}]
    registry = registry_of(mine=Spacing)
    metrics = build_metrics(map(MetricSpec.model_validate, specs), registry)
    assert [(metric.name, metric.unit("mm")) for metric in metrics] == [("mine", "ml"), ("small", "cl")]
    specs[1].pop("column")
    with pytest.raises(RecipeError, match=r"two metrics are called 'mine', .* \{use: mine, column: mine_2\}"):
        build_metrics(map(MetricSpec.model_validate, specs), registry)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"unit": None}, "its attribute 'unit' is None, but must be a text"),
        ({"higher_is_better": None}, "its attribute 'higher_is_better' is None, but must be True or False"),
        ({"missed": math.nan}, "its attribute 'missed' is nan, but must be a number"),
        ({"missed": True}, "its attribute 'missed' is True, but must be a number"),
        ({"missed": None, "unit": "ml"}, "its attribute 'missed' is None and its unit is no length, so it needs"),
        ({"missed": None, "unit": "ml", "worst": math.inf}, "its attribute 'missed' is None and its unit is no length"),
        ({"__call__": None}, "it gives neither a callable with (prediction, reference, spacing), nor an object"),
    ],
)
def test_a_metric_without_unit_direction_or_miss_is_refused(attributes: dict[str, Any], reason: str) -> None:
    builder = giving(0.5, **attributes)
    if "__call__" in attributes:
        builder = lambda: object()  # noqa: E731
    with pytest.raises(PluginError) as caught:
        built(builder)
    message = str(caught.value)
    assert message.startswith(f"metric 'mine' of plug-in 'mine' (textseg-mine 0.2) is broken: {reason}")
    assert "\n" not in message
    if "worst" in attributes:
        assert message.endswith("the finite number that a missed structure counts with in penalised means, not inf.")


def test_a_metric_without_attributes_says_which() -> None:
    with pytest.raises(PluginError, match="its attribute 'unit' is missing, but must be a text"):
        built(lambda: lambda prediction, reference, spacing: 0.5)


def fails(prediction: np.ndarray) -> float:
    raise ZeroDivisionError("division\nby zero")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "it gives nan for 'L1' of case 'c', which both masks show. Let it give a finite number there"),
        (math.inf, "it gives inf for 'L1'"),
        (np.ones(3), "it gives ndarray of shape (3,) instead of a number, for 'L1' of case 'c'"),
        (np.ones(1), "it gives ndarray of shape (1,) instead of a number"),
        (torch.ones(2), "it gives Tensor of shape (2,) instead of a number"),
        ("0.5", "it gives str instead of a number"),
        (None, "it gives NoneType instead of a number"),
        ({"dice": 0.5}, "it gives dict instead of a number"),
        (fails, "it raises ZeroDivisionError: division by zero, for 'L1' of case 'c'"),
        (lambda mask: mask.fill(True), "it raises ValueError: assignment destination is read-only"),
    ],
)
def test_what_is_no_score_is_one_line(value: Any, reason: str) -> None:
    metric = built(giving(value))
    with pytest.raises(PluginError) as caught:
        score(*pair(200), spacing=(1, 1, 1), structures=[1], metrics=[metric], where=lambda _: "'L1' of case 'c'")
    message = str(caught.value)
    assert message.startswith(f"metric 'mine' of plug-in 'mine' (textseg-mine 0.2) is broken: {reason}")
    assert "\n" not in message
    for number in (np.float32(0.25), np.array(0.25), torch.tensor(0.25), 0.25):
        metric = built(giving(number))
        assert score(*pair(200), spacing=(1, 1, 1), structures=[1], metrics=[metric])[1].values == {"mine": 0.25}


def test_a_metric_is_tried_in_the_dimensions_that_it_will_get() -> None:
    class Deep(OfMasks):
        """For volumes only."""

        def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> float:
            _, _, _ = prediction.shape
            return super().__call__(prediction, reference, spacing)

    assert built(Deep).name == "mine"
    with pytest.raises(PluginError, match=r"it raises ValueError: not enough values .*, for two boxes in 2 dimensions"):
        built(Deep, dimensions=2)


def test_a_metric_that_changes_its_masks_is_refused_before_a_training() -> None:
    class Writing(OfMasks):
        """Writes into the prediction."""

        def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> float:
            prediction[...] = reference
            return super().__call__(prediction, reference, spacing)

    with pytest.raises(PluginError, match="assignment destination is read-only, for two boxes in 3 dimensions"):
        built(Writing)


def test_processes_that_score_different_cases_do_not_wait_for_each_other() -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the metric talks to other processes")

    def waiting() -> torchmetrics.Metric:
        """F1, which would exchange its state."""
        metric = BinaryF1Score(distributed_available_fn=lambda: True, dist_sync_fn=never)
        metric.unit, metric.missed = "", 0.0
        return metric

    assert score(*pair(), spacing=(1, 1, 1), structures=[1], metrics=[built(waiting)])[1].status == "ok"


def test_border_distances_are_measured_once_for_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from textseg.metrics import surfaces

    calls = []
    nearest = surfaces.nearest
    monkeypatch.setattr(surfaces, "nearest", lambda *points: calls.append(points) or nearest(*points))
    names = ["hd95", "assd", "asd"]
    alone = score(*pair(), spacing=(1, 1, 1), structures=[1], metrics=["hd95"], kernel="numpy")
    first = len(calls)
    several = score(*pair(), spacing=(1, 1, 1), structures=[1], metrics=names, kernel="numpy")
    assert (first, len(calls)) == (2, 4)  # one search in each direction
    assert several[1].values["hd95"] == alone[1].values["hd95"]
    score(*pair(), spacing=(1, 1, 1), structures=[1], metrics=[DICE, built(OfMasks)], kernel="numpy")
    assert len(calls) == 4


def test_an_unknown_metric_is_named_with_the_nearest() -> None:
    with pytest.raises(PluginError, match=re.escape("There is no metric 'hd59'. Did you mean 'hd95'?")):
        metric_named("hd59")
