from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textseg.testing import ConformanceError, Subject, check_metric, checks  # type: ignore[attr-defined]


class Centres:
    """Distance between the centres; 0 is best."""

    unit: Any = "length"
    higher_is_better: Any = False
    missed: Any = None

    def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> Any:
        first, second = (np.argwhere(mask).mean(axis=0) * spacing for mask in (prediction, reference))
        return float(np.linalg.norm(first - second))


class Unstated(Centres):
    """Has no direction."""

    higher_is_better = None


class Undefined(Centres):
    """Is not defined for masks apart from each other."""

    def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> Any:
        return super().__call__(prediction, reference, spacing) if (prediction & reference).any() else math.nan


class Upwards(Centres):
    """States the wrong direction."""

    higher_is_better = True


class Forgiving(Centres):
    """A miss is as good as equal masks."""

    missed = 0.0


class Pixels(Centres):
    """A length that ignores the spacing."""

    def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> Any:
        return super().__call__(prediction, reference, (1.0,) * len(spacing))


class Remembering(Centres):
    """Adds up what it has seen."""

    def __init__(self) -> None:
        self.total = 0.0

    def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> Any:
        self.total += super().__call__(prediction, reference, spacing)
        return self.total


class Drawing(Centres):
    """Draws from the module random."""

    def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> Any:
        random.random()
        return super().__call__(prediction, reference, spacing)


class Reading(Centres):
    """Reads a file in each call."""

    def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> Any:
        (Path(__file__).parents[2] / "LICENSE").read_text()
        return super().__call__(prediction, reference, spacing)


class Flat(Centres):
    """Fails for volumes."""

    def __call__(self, prediction: Any, reference: Any, spacing: tuple[float, ...]) -> Any:
        _, _ = prediction.shape
        return super().__call__(prediction, reference, spacing)


def test_a_metric_that_keeps_its_contract_passes() -> None:
    check_metric(Centres)
    check_metric("nsd", settings={"tolerance": 1.0})


@pytest.mark.parametrize(
    ("broken", "name", "came"),
    [
        (Unstated, "construction", "its attribute 'higher_is_better' is None, but must be True or False"),
        (Drawing, "surroundings", "another state of the module random"),
        (Reading, "surroundings", "LICENSE"),
        (Undefined, "numbers", "boxes apart from each other in 3 dimensions.*it gives nan"),
        (Flat, "numbers", "it raises ValueError: too many values to unpack"),
        (Upwards, "best", r"no better score for a moved box than for equal masks \(0; higher is better\)"),
        (Forgiving, "best", r"a worse value of a missed structure than that of equal masks \(0; lower is better\)"),
        (Pixels, "spacing", "with twice the spacing"),
        (Remembering, "function_of_the_masks", "the same score in a second call"),
    ],
)
def test_a_broken_promise_is_named(broken: type, name: str, came: str) -> None:
    (named,) = [check for check in checks("metric") if check.name == name]
    with pytest.raises(ConformanceError, match=f"metric '{broken.__name__}' breaks '{name}': .*{came}"):
        named(Subject.of("metric", broken))
