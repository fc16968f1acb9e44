"""Random draws as functions of a key.

Every draw has its own generator. The seed of the generator is a tuple of numbers: the key. No draw depends on an
earlier draw. Therefore the number of workers, devices and processes changes nothing, and a resumed run makes the same
draws as an uninterrupted run.

| stream             | decides                                             | key                           | number |
|--------------------|-----------------------------------------------------|-------------------------------|--------|
| `slice_order`      | the order of slices, or cases; oversampled slices   | seed, epoch                   | none   |
| `distortion`       | geometry, flips and intensities of the augmentation | seed, epoch, slice or case    | none   |
| `image_quality`    | bias field, blur, resolution of the augmentation    | seed, epoch, slice or case    | 2      |
| `prompt_source`    | the source of the prompt of a slice                 | seed, epoch, slice or case    | 1      |
| `field_of_view`    | the window of the augmentation                      | seed, epoch, slice or case    | 3      |
| `statement`        | the end of a statement, and its renumbering         | seed, epoch, slice or case    | 4      |
| `transform`        | an item of a list of transforms                     | as above, and its position    | 5      |
| `simulated_person` | by how many levels a simulated person miscounts     | seed, the case's first slice  | 2      |
| `step_seed`        | dropout and every other draw inside a network       | seed, step, process           | none   |

The seed is that of the recipe. A number at the end of the key, or before the position, separates two streams whose keys
are otherwise equal.
These numbers are part of the results: another number would change the weights of every training.

Other draws have no stream here. Initial weights come from torch's generator, seeded with the recipe's seed. The split
of the patients sorts them by a hash of `split.seed` and patient, so that the seed of a run does not change it. The
wrong texts of a probe are keyed by seed and case (`evaluation.probe_texts`). Phantoms have a seed of their own, and the
bootstrap has a fixed one (`metrics.statistics`).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

DRAWS = 3  # version of the draws; a run that was begun under another one would not end with the same weights
PROMPT_SOURCE = 1
IMAGE_QUALITY = 2
FIELD_OF_VIEW = 3
STATEMENT = 4
TRANSFORM = 5
SIMULATED_PERSON = 2  # its key is shorter than the key of `image_quality`, so they are never equal


def slice_key(case_id: str, slice_index: int) -> int:
    """Return the number of a slice in keys; it is equal in every process and for every order of the data."""
    return zlib.crc32(f"{case_id}/{slice_index}".encode())


def case_key(case_id: str) -> int:
    """Return the number of a case in keys, for draws that cover all slices of the case."""
    return zlib.crc32(case_id.encode())


def slice_order(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator that shuffles an epoch."""
    return np.random.default_rng((seed, epoch))


def distortion(seed: int, epoch: int, key: int) -> np.random.Generator:
    """Return the generator that distorts a slice or a case: geometry, flips, intensities."""
    return np.random.default_rng((seed, epoch, key))


def image_quality(seed: int, epoch: int, key: int) -> np.random.Generator:
    """Return the generator that lowers the quality of a slice or a case; the draws of `distortion` stay."""
    return np.random.default_rng((seed, epoch, key, IMAGE_QUALITY))


def prompt_source(seed: int, epoch: int, key: int) -> np.random.Generator:
    """Return the generator that chooses the prompt source of a slice or a case."""
    return np.random.default_rng((seed, epoch, key, PROMPT_SOURCE))


def field_of_view(seed: int, epoch: int, key: int) -> np.random.Generator:
    """Return the generator that chooses the window of a slice or a case."""
    return np.random.default_rng((seed, epoch, key, FIELD_OF_VIEW))


def statement(seed: int, epoch: int, key: int) -> np.random.Generator:
    """Return the generator that decides how a statement about a slice or a case ends, and its renumbering."""
    return np.random.default_rng((seed, epoch, key, STATEMENT))


def transform(seed: int, epoch: int, key: int, position: int) -> np.random.Generator:
    """Return the generator of the transform at a position of the list, for a slice or a case."""
    return np.random.default_rng((seed, epoch, key, TRANSFORM, position))


def simulated_person(seed: int, case_id: str) -> np.random.Generator:
    """Return the generator that decides whether a simulated person miscounts the levels of a case."""
    return np.random.default_rng((seed, slice_key(case_id, 0), SIMULATED_PERSON))


def for_channels(generator: np.random.Generator, count: int) -> list[np.random.Generator]:
    """Return the generator of each channel: the given one for the first, streams of their own for the others."""
    return [generator, *generator.spawn(count - 1)]


@contextmanager
def forked(generator: np.random.Generator) -> Iterator[int]:
    """Seed the global generators of torch (CPU), numpy and random from a generator, and restore them afterwards.

    A library that draws from a global generator runs in this block, so that its draws have a key. Gives the seed, for a
    library with a generator of its own.
    """
    import torch

    seed = int(generator.integers(2**32))
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every GPU
        yield seed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of torch for a training step; it differs between processes, which see different slices."""
    return (seed * 1_000_003 + step + rank * 2**40) % 2**63
