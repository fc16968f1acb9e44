"""Random draws as functions of a key.

Every draw is made by a generator of its own, whose seed is a tuple of numbers: the key. No draw depends on an earlier
one, so the number of workers, devices and processes changes nothing, and a run that resumes draws what an uninterrupted
one would have drawn.

| stream             | decides                                             | key                           | number |
|--------------------|-----------------------------------------------------|-------------------------------|--------|
| `slice_order`      | the order of the training slices, or cases          | seed, epoch                   | none   |
| `distortion`       | geometry, flips and intensities of the augmentation | seed, epoch, slice or case    | none   |
| `image_quality`    | bias field, blur, resolution of the augmentation    | seed, epoch, slice or case    | 2      |
| `prompt_source`    | whose knowledge the prompt of a slice has           | seed, epoch, slice or case    | 1      |
| `simulated_person` | by how many levels a simulated person miscounts     | seed, the case's first slice  | 2      |
| `step_seed`        | dropout and every other draw inside a network       | seed, step, process           | none   |

The seed is that of the recipe. A number at the end of the key separates two streams whose keys are otherwise equal.
These numbers are part of the results: another number would change every weight that textseg trains.

Other draws have no stream here. Initial weights come from torch's generator, seeded with the recipe's seed. The split
of the patients sorts them by a hash of `split.seed` and patient, so that the seed of a run does not change it. The
wrong texts of a probe are keyed by seed and case (`evaluation.probe_texts`). Phantoms have a seed of their own, and the
bootstrap has a fixed one (`metrics.statistics`).
"""

from __future__ import annotations

import zlib

import numpy as np

PROMPT_SOURCE = 1
IMAGE_QUALITY = 2
SIMULATED_PERSON = 2  # its key is shorter than that of `image_quality`, so the two never meet


def slice_key(case_id: str, slice_index: int) -> int:
    """Return the number that stands for a slice in keys: the same in every process and in every order of the data."""
    return zlib.crc32(f"{case_id}/{slice_index}".encode())


def case_key(case_id: str) -> int:
    """Return the number that stands for a case in keys, for a draw that covers all its slices."""
    return zlib.crc32(case_id.encode())


def slice_order(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator that shuffles an epoch."""
    return np.random.default_rng((seed, epoch))


def distortion(seed: int, epoch: int, key: int) -> np.random.Generator:
    """Return the generator that distorts a slice or a case: geometry, flips, intensities."""
    return np.random.default_rng((seed, epoch, key))


def image_quality(seed: int, epoch: int, key: int) -> np.random.Generator:
    """Return the generator that lowers the quality of a slice or a case; it moves no draw of `distortion`."""
    return np.random.default_rng((seed, epoch, key, IMAGE_QUALITY))


def prompt_source(seed: int, epoch: int, key: int) -> np.random.Generator:
    """Return the generator that chooses the prompt source of a slice or a case."""
    return np.random.default_rng((seed, epoch, key, PROMPT_SOURCE))


def simulated_person(seed: int, case_id: str) -> np.random.Generator:
    """Return the generator that decides whether a simulated person miscounts the levels of a case."""
    return np.random.default_rng((seed, slice_key(case_id, 0), SIMULATED_PERSON))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return torch's seed for a training step in one of several processes, which each see a part of the batch."""
    return (seed * 1_000_003 + step + rank * 2**40) % 2**63
