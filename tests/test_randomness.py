"""The first draws of each stream. Another number here means other weights from every recipe."""

from __future__ import annotations

import numpy as np
import pytest

from textseg.randomness import (
    case_key,
    distortion,
    field_of_view,
    image_quality,
    prompt_source,
    simulated_person,
    slice_key,
    slice_order,
    statement,
    step_seed,
)


@pytest.mark.parametrize(
    ("generator", "draws"),
    [
        (slice_order(2025, 3), [253411, 143743, 591313]),
        (distortion(2025, 3, 99), [869626, 149184, 674369]),
        (image_quality(2025, 3, 99), [598248, 32909, 528459]),
        (prompt_source(2025, 3, 99), [577127, 160493, 811511]),
        (simulated_person(2025, "12_t2"), [276663, 478231, 521217]),
        (field_of_view(2025, 3, 99), [745158, 335651, 984050]),
        (statement(2025, 3, 99), [907995, 681678, 1052]),
    ],
    ids=[
        "slice_order",
        "distortion",
        "image_quality",
        "prompt_source",
        "simulated_person",
        "field_of_view",
        "statement",
    ],
)
def test_the_first_draws_of_each_stream(generator: np.random.Generator, draws: list[int]) -> None:
    assert generator.integers(10**6, size=3).tolist() == draws


def test_keys_of_slices_and_cases() -> None:
    assert slice_key("12_t2", 3) == 251121770
    assert case_key("12_t2") == 3827684094


def test_seeds_of_steps_differ_between_steps_and_processes() -> None:
    assert step_seed(2025, 7, 0) == 2025006082
    assert step_seed(2025, 7, 1) == 1101536633858
    assert step_seed(2025, 8, 0) == 2025006083
    assert 0 <= step_seed(2**32 - 1, 10**9, 1000) < 2**63  # what torch takes
