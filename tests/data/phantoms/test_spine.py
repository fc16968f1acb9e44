from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, center_of_mass

from textseg.contracts import Atlas, Structure
from textseg.data.phantoms.spine import Phantom, render
from textseg.data.phantoms.spine_anatomy import T1, T2, Anatomy, Level, Part
from textseg.errors import DataError

NAMES = ("C7", "C6", "C5", "C4", "C6/C7", "C5/C6", "C4/C5", "canal")
ATLAS = Atlas(
    name="neck",
    structures=tuple(Structure(name, "part of the neck", index) for index, name in enumerate(NAMES, start=1)),
    sequence=("C4", "C4/C5", "C5", "C5/C6", "C6", "C6/C7", "C7"),
)
VALUES = {structure.name: structure.index for structure in ATLAS.structures}
PARTS = (Part(0.6, 28, 0, (4, 12, 3), 0.4), Part(-0.1, 8, 10, (4, 8, 3)))
NECK = Anatomy(
    levels=tuple(
        Level(name, disc, 14, 17, 24, tilt, 5, PARTS)
        for name, disc, tilt in (
            ("C3", "C3/C4", 10),
            ("C4", "C4/C5", 5),
            ("C5", "C5/C6", 0),
            ("C6", "C6/C7", -6),
            ("C7", "C7/T1", -12),
            ("T1", "T1/T2", -18),
        )
    ),
    anchor="C5/C6",
    anchor_row=(0.45, 0.55),
    canal="canal",
    canal_size_mm=(13, 18),
    back_mm=(50, 60),
    front_mm=(40, 60),
)


def neck(seed: int = 0, slices: int = 5, scale: float = 1.0) -> Phantom:
    return render(
        VALUES,
        NECK,
        (T2, T1),
        shape=(slices, 96, 80),
        spacing_mm=1.4,
        slice_distance_mm=4.0,
        seed=seed,
        scale=scale,
    )


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return neck()


def mean_inside(image: NDArray[np.float32], phantom: Phantom, name: str) -> float:
    return float(image[phantom.mask == ATLAS[name].index].mean())


def test_render_gives_one_image_per_contrast_and_legal_classes(phantom: Phantom) -> None:
    assert [image.shape for image in phantom.images] == [(5, 96, 80)] * 2
    assert {image.dtype for image in phantom.images} == {np.dtype(np.float32)}
    assert phantom.mask.dtype == np.uint8
    assert phantom.mask.shape == (5, 96, 80)
    assert phantom.spacing_mm == (4.0, 1.4, 1.4)
    assert set(np.unique(phantom.mask).tolist()) == set(range(ATLAS.class_count))
    assert all(np.isfinite(image).all() and image.min() >= 0 for image in phantom.images)


def test_the_seed_is_all_the_chance_there_is(phantom: Phantom) -> None:
    again, another = neck(seed=0), neck(seed=1)
    assert np.array_equal(phantom.mask, again.mask)
    for first, second in zip(phantom.images, again.images, strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(phantom.mask, another.mask)
    assert not np.array_equal(phantom.images[0], another.images[0])


def test_neighbours_in_the_sequence_touch_and_stand_in_order(phantom: Phantom) -> None:
    middle = phantom.mask[2]
    rows = []
    for upper, lower in zip(ATLAS.sequence, ATLAS.sequence[1:], strict=False):
        first, second = middle == ATLAS[upper].index, middle == ATLAS[lower].index
        assert (binary_dilation(first) & second).any(), f"{upper} does not touch {lower}"
    for name in ATLAS.sequence:
        rows.append(center_of_mass(middle == ATLAS[name].index)[0])
    assert rows == sorted(rows)


def test_the_canal_lies_behind_the_bodies_and_leaves_lateral_slices(phantom: Phantom) -> None:
    canal, body = (center_of_mass(phantom.mask[2] == ATLAS[name].index) for name in ("canal", "C5/C6"))
    assert canal[1] > body[1]
    wide = neck(slices=9)
    present = (wide.mask == ATLAS["canal"].index).any(axis=(1, 2))
    assert present[4]
    assert not present[[0, 8]].any()


def test_contrasts_show_the_same_anatomy_in_another_light(phantom: Phantom) -> None:
    t2, t1 = phantom.images
    assert mean_inside(t2, phantom, "canal") > 1.5 * mean_inside(t2, phantom, "C5")
    assert mean_inside(t1, phantom, "canal") < mean_inside(t1, phantom, "C5")


def test_scale_makes_the_patient_larger(phantom: Phantom) -> None:
    larger = neck(scale=1.2)
    name = ATLAS["C5"].index
    assert (larger.mask == name).sum() > 1.3 * (phantom.mask == name).sum()


def test_structures_without_a_value_are_drawn_and_stay_background(phantom: Phantom) -> None:
    fewer = render(
        {name: value for name, value in VALUES.items() if name != "C5/C6"},
        NECK,
        (T2, T1),
        shape=(5, 96, 80),
        spacing_mm=1.4,
        slice_distance_mm=4.0,
        seed=0,
    )
    np.testing.assert_array_equal(fewer.mask, np.where(phantom.mask == VALUES["C5/C6"], 0, phantom.mask))


def test_a_picture_that_shows_no_spine_is_refused() -> None:
    with pytest.raises(DataError, match="16 rows of 1 mm"):
        render(VALUES, NECK, (T2,), shape=(1, 16, 16), spacing_mm=1, slice_distance_mm=4, seed=0)
