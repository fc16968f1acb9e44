from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from textseg.contracts import Atlas
from textseg.errors import DataError
from textseg.registry.discovery import installed_registry
from textseg.volumes.files import read_labels
from textseg.volumes.geometry import Geometry
from textseg.volumes.mask import Mask, label_values

GEOMETRY = Geometry((4, 3, 2), (0.5, 2.0, 3.0), (1.0, 2.0, 3.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


@pytest.fixture(scope="module")
def lumbar() -> Atlas:
    atlas: Atlas = installed_registry().build("atlas", "lumbar_spider", settings={})
    return atlas


@pytest.fixture
def mask(lumbar: Atlas) -> Mask:
    array = np.zeros(GEOMETRY.shape, np.uint8)
    array.flat[:3] = 1  # L5
    array.flat[5] = 10  # L5/S
    array.flat[7:9] = 19  # SC
    return Mask(array, GEOMETRY, lumbar, {}, None)


def test_sizes_are_in_millilitres(mask: Mask) -> None:
    assert {name: size for name, size in mask.volumes_ml.items() if size} == pytest.approx(
        {"L5": 3 * 0.003, "L5/S": 0.003, "SC": 2 * 0.003}
    )


def test_values_are_those_of_the_scheme_in_the_geometry_of_the_volume(mask: Mask, tmp_path: Path) -> None:
    mask.save(tmp_path / "m.nii.gz", labels="spider")
    saved = read_labels(tmp_path / "m.nii.gz")
    assert saved.geometry.differences(GEOMETRY, 1e-6) == []
    expected = np.zeros_like(mask.array, dtype=int)
    for index, value in ((1, 1), (10, 201), (19, 100)):
        expected[mask.array == index] = value
    assert np.array_equal(saved.array, expected)
    assert mask.values("spider")["T12"] == 6
    assert np.array_equal(mask.labelled(), mask.array)


def test_labels_that_there_are_not_are_refused(lumbar: Atlas) -> None:
    with pytest.raises(DataError, match="no labels 'spidr'. Did you mean 'spider'\\? Possible: atlas, mrspineseg"):
        label_values(lumbar, "spidr")
    with pytest.raises(DataError, match="'mrspineseg' have no value for SC of atlas 'lumbar_spider'"):
        label_values(lumbar, "mrspineseg")
