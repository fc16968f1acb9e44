from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.contracts import Atlas, Plane, Structure
from textseg.volumes.files import read_geometry, read_labels, read_volume, write_labels
from textseg.volumes.geometry import DIRECTIONS, Geometry, canonical, downward_axis, extent_mm, voxel_at

SPACING = (1.5, 2.0, 8.0)  # columns, rows, slices
ITK = {"sagittal": "PIR", "coronal": "LIP", "axial": "LPI"}  # where columns, rows and slices run to
TURNS = list(product(permutations(range(3)), product((False, True), repeat=3)))  # the 48 ways to store a volume

# A short-axis stack, as a scanner tilts it: columns to the free wall, rows to the diaphragm, slices to the apex.
HEART = np.array([[0.70, 0.71, 0.05], [-0.35, 0.40, -0.85], [0.62, -0.57, -0.53]])


def stack(direction: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> tuple[np.ndarray, sitk.Image]:
    """A volume [3, 4, 5] without any symmetry, and the same as a file whose axes run as the rows of `direction`."""
    array = np.arange(1, 61, dtype=np.uint8).reshape(3, 4, 5)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((12.5, -7.25, 100.0))
    orthonormal = np.linalg.svd(direction.T)
    image.SetDirection((orthonormal[0] @ orthonormal[2]).ravel().tolist())
    return array, image


def turned(image: sitk.Image, order: tuple[int, ...], flips: tuple[bool, ...]) -> sitk.Image:
    """Store a volume at the same position with another order of axes."""
    return sitk.Flip(sitk.PermuteAxes(image, order), flips, False)


def require_every_storage_alike(tmp_path: Path, array: np.ndarray, image: sitk.Image, plane: Plane) -> None:
    for number, (order, flips) in enumerate(TURNS):
        stored = turned(image, order, flips)
        path, copy = tmp_path / f"{number}.mha", tmp_path / f"{number}_copy.mha"
        sitk.WriteImage(stored, str(path))
        for read in (read_volume, read_labels):
            volume = read(path, plane)
            np.testing.assert_array_equal(volume.array, array, err_msg=f"{plane} {order} {flips}")
            assert volume.spacing_mm == pytest.approx(image.GetSpacing()[::-1])
        assert read_geometry(path, plane) == volume.geometry
        write_labels(volume.array, volume.geometry, copy)
        again = sitk.ReadImage(str(copy))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(stored))
        assert read_labels(copy, plane).geometry == volume.geometry


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
def test_each_plane_is_the_same_from_every_orientation_and_writes_back(tmp_path: Path, plane: Plane) -> None:
    assert len(TURNS) == 48
    array, image = stack(np.array(DIRECTIONS[plane])[::-1])
    require_every_storage_alike(tmp_path, array, image, plane)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(image, ITK[plane])), array)  # ITK agrees


def test_a_tilted_short_axis_stack_is_the_same_from_every_orientation_and_writes_back(tmp_path: Path) -> None:
    array, image = stack(HEART)
    require_every_storage_alike(tmp_path, array, image, "short_axis")


def test_short_axis_slices_follow_the_widest_spacing_however_the_heart_lies() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        rotation = sitk.VersorTransform(random.normal(size=3).tolist(), float(random.uniform(0, 0.35)))
        _, image = stack(HEART @ np.reshape(rotation.GetMatrix(), (3, 3)))
        geometry = Geometry(image.GetSize(), SPACING, (0, 0, 0), image.GetDirection(), plane="short_axis")
        assert geometry.axes == ((2, False), (1, False), (0, False))
    # By its direction alone, the same stack would be cut across its thick slices
    assert Geometry((5, 4, 3), SPACING, (0, 0, 0), stack(HEART)[1].GetDirection(), plane="axial").axes[0][0] == 1


def test_a_stack_whose_header_tells_nothing_keeps_rows_and_columns() -> None:
    straight = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    for spacing in (SPACING, (1.0, 1.0, 1.0)):
        axes = Geometry((5, 4, 3), spacing, (0, 0, 0), straight, plane="short_axis").axes
        assert axes == (
            (2, True),
            (1, False),
            (0, False),
        )  # its slices run upwards, so the last one is nearest the base


def test_a_flat_file_is_one_slice_in_every_plane(tmp_path: Path) -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sitk.WriteImage(sitk.GetImageFromArray(picture), str(tmp_path / "flat.mha"))
    for plane in DIRECTIONS:
        volume = read_labels(tmp_path / "flat.mha", plane)
        np.testing.assert_array_equal(volume.array, picture[None])
        assert read_geometry(tmp_path / "flat.mha", plane) == volume.geometry


def test_planes_are_compared_and_know_where_down_is() -> None:
    first = Geometry((5, 4, 3), SPACING, (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    second = Geometry((5, 4, 3), SPACING, (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1), plane="axial")
    assert first.differences(second) == ["sagittal slices against axial ones"]
    assert [downward_axis(plane) for plane in ("sagittal", "coronal", "axial")] == [1, 1, 0]
    with pytest.raises(ValueError, match="short_axis"):
        downward_axis("short_axis")


def test_an_atlas_with_a_row_needs_a_plane_that_shows_it() -> None:
    structures = (Structure("a", "part", 1), Structure("b", "part", 2))
    assert Atlas("x", structures, groups={"all": ("a", "b")}, plane="axial").collapsed()[0].plane == "axial"
    with pytest.raises(ValueError, match="no sequence downwards"):
        Atlas("x", structures, sequence=("a", "b"), plane="short_axis")


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_point_in_ras_is_the_voxel_that_itk_finds_there(order: tuple[int, ...]) -> None:
    direction = np.eye(3)[:, order] * (1, -1, 1)
    geometry = Geometry((4, 5, 6), (0.5, 2.0, 3.0), (-7.0, 11.0, 5.0), tuple(direction.ravel().tolist()))
    stored = np.arange(4 * 5 * 6).reshape(6, 5, 4)
    image = sitk.GetImageFromArray(stored)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    for index in ((0, 0, 0), (3, 1, 5), (2, 4, 0)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        voxel = voxel_at(geometry, (-left + 0.1, -posterior, superior - 0.1))
        assert voxel is not None
        assert canonical(stored, geometry)[voxel] == image.GetPixel(index)
    extents = dict(extent_mm(geometry))
    low, high = extents["S"]
    assert voxel_at(geometry, (extents["R"][0], extents["A"][0], high)) is not None
    assert voxel_at(geometry, (extents["R"][0], extents["A"][0], high + 2)) is None
    assert high > low
