"""The first draws of each stream. Another number here means other weights from every recipe."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch

from textseg.randomness import (
    case_key,
    distortion,
    field_of_view,
    forked,
    image_quality,
    prompt_source,
    simulated_person,
    slice_key,
    slice_order,
    statement,
    step_seed,
    transform,
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
        (transform(2025, 3, 99, 0), [966204, 140476, 765515]),
        (transform(2025, 3, 99, 1), [446494, 956963, 195844]),
    ],
    ids=[
        "slice_order",
        "distortion",
        "image_quality",
        "prompt_source",
        "simulated_person",
        "field_of_view",
        "statement",
        "first transform",
        "second transform",
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


def test_a_fork_seeds_the_global_generators_and_leaves_them_as_they_were() -> None:
    def states() -> list[bytes]:
        own = random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()
        return [pickle.dumps(state) for state in own]

    def draws(key: int) -> list[float]:
        with forked(np.random.default_rng(key)):
            return [random.random(), float(np.random.random()), float(torch.rand(()))]

    before = states()
    first = draws(1)
    assert states() == before
    torch.manual_seed(5)
    assert draws(1) == first
    assert not set(draws(2)) & set(first)
    before = states()
    with pytest.raises(KeyError), forked(np.random.default_rng(1)):
        raise KeyError
    assert states() == before
