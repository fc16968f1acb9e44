from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from textseg.contracts import Atlas, Task
from textseg.data.slice_geometry import prepare_volume
from textseg.inference.training_domain import outside_domain
from textseg.recipe.schema import PreparationSettings
from textseg.volumes.geometry import Geometry
from textseg.volumes.scan import Scan, read_scan

SETTINGS = PreparationSettings(size=(160, 128))
GEOMETRY = Geometry((50, 60, 3), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), (0, 0, -1, 1, 0, 0, 0, -1, 0))
LIKE = (0.0, 5.0, 30.0, 60.0, 100.0)  # percentiles of the training's kind: their median at 30 %


def trained_on(atlas: Atlas, volumes: list[Scan], intensities: list[tuple[float, ...]]) -> Task:
    fingerprint = {
        "native_sizes": [volume.array.shape[1:] for volume in volumes],
        "native_spacings_mm": [volume.spacing_mm for volume in volumes],
        "intensities": [(percentiles,) for percentiles in intensities],
    }
    return Task(1, (160, 128), atlas.class_count, atlas, fingerprint=fingerprint)


@pytest.fixture
def volume() -> Scan:
    return Scan(np.zeros((1, 3, 60, 50), np.float32), ("image",), (4.0, 1.0, 1.0), GEOMETRY)


def kinds(lines: list[str]) -> list[str]:
    return [line.partition(" is ")[0] for line in lines]


def test_lengths_beyond_those_of_the_training_are_said(small_atlas: Atlas, volume: Scan) -> None:
    thin = replace(volume, spacing_mm=(3.0, 1.0, 1.0))
    task = trained_on(small_atlas, [volume, thin], [LIKE, LIKE])
    assert outside_domain(task, volume, (LIKE,)) == []
    thick = replace(volume, spacing_mm=(6.1, 1.0, 1.0))
    assert outside_domain(task, thick, (LIKE,)) == [
        "the distance of its slices is 6.1 mm, and the training cases have 3 to 4 mm"
    ]
    assert outside_domain(task, replace(volume, spacing_mm=(5.9, 1.0, 1.0)), (LIKE,)) == []
    small = replace(volume, array=volume.array[:, :, ::4])
    assert kinds(outside_domain(task, small, (LIKE,))) == ["the height of its field of view"]


def test_a_median_far_from_those_of_the_training_is_said(small_atlas: Atlas, volume: Scan) -> None:
    task = trained_on(small_atlas, [volume, volume], [LIKE, (100.0, 0.0, 200.0, 0.0, 600.0)])  # at 30 % and 20 %
    for median, like in ((6.0, True), (4.0, False), (44.0, True), (46.0, False)):
        assert (outside_domain(task, volume, ((0.0, 1.0, median, 99.0, 100.0),)) == []) == like
    assert outside_domain(task, volume, ((-50.0, 0.0, 70.0, 0.0, 100.0),)) == [
        "half of it lies below 80% of its range of intensities, of the training cases below 20% to 30%"
    ]


def test_a_task_that_knows_of_no_case_calls_nothing_outside_domain(small_atlas: Atlas, volume: Scan) -> None:
    assert outside_domain(Task(1, (160, 128), small_atlas.class_count, small_atlas), volume, (LIKE,)) == []


def test_each_real_scan_is_like_the_others_and_inverted_it_is_not(small_atlas: Atlas, spider_folder: Path) -> None:
    volumes = [read_scan(path) for path in sorted((spider_folder / "images").glob("*.mha"))]
    intensities = [prepare_volume(volume, SETTINGS).intensities[0] for volume in volumes]
    for number, volume in enumerate(volumes):
        others = [index for index in range(len(volumes)) if index != number]
        task = trained_on(small_atlas, [volumes[index] for index in others], [intensities[index] for index in others])
        assert outside_domain(task, volume, (intensities[number],)) == []
        inverted = tuple(-value for value in reversed(intensities[number]))
        assert "of its range of intensities" in outside_domain(task, volume, (inverted,))[-1]
