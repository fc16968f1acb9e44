from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from textseg.contracts import ArrayImage, Plane
from textseg.errors import DataError
from textseg.volumes.files import read_labels, read_volume
from textseg.volumes.geometry import DIRECTIONS
from textseg.volumes.scan import read_picture, read_scan, scan_hash, write_picture

SHAPE = (4, 6, 5)


def ramp(axis: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    return np.indices(shape)[axis].astype(np.float32)


def save(array: NDArray[np.float32], path: Path, *, vector: bool = False, **header: tuple[float, ...]) -> Path:
    image = sitk.GetImageFromArray(array, isVector=vector)
    for name, values in header.items():
        getattr(image, f"Set{name}")(values)
    sitk.WriteImage(image, str(path))
    return path


def test_channels_in_several_files_lie_side_by_side_in_the_order_of_their_names(tmp_path: Path) -> None:
    paths = {name: save(ramp(axis), tmp_path / f"{name}.nii.gz") for name, axis in (("T2", 0), ("T1", 2))}
    scan = read_scan(paths, "axial")
    assert scan.channel_names == ("T2", "T1")
    assert scan.array.shape == (2, *read_volume(paths["T2"], "axial").array.shape)
    for array, path in zip(scan.array, paths.values(), strict=True):
        assert np.array_equal(array, read_volume(path, "axial").array)
    assert np.array_equal(read_picture(paths, "axial").array, scan.array[0])
    assert scan_hash(paths["T2"]) != scan_hash(paths) != scan_hash(dict(reversed(paths.items())))


def test_a_file_may_hold_several_channels(tmp_path: Path) -> None:
    parts = [ramp(axis) for axis in range(3)]
    expected = read_scan({str(axis): save(part, tmp_path / f"{axis}.mha") for axis, part in enumerate(parts)}).array
    together = np.stack(parts, axis=-1)
    files = [save(together, tmp_path / f"vector{suffix}", vector=True) for suffix in (".mha", ".nrrd", ".nii")]
    files.append(tmp_path / "four.nii.gz")
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(part) for part in parts]), str(files[-1]))
    for path in files:
        scan = read_scan(path)
        assert scan.channel_names == ("image 0", "image 1", "image 2")
        assert np.array_equal(scan.array, expected)
        for read in (read_volume, read_labels):  # a mask has one value for each voxel
            with pytest.raises(DataError, match=r"colour or complex|has 4 dimensions|has 5 dimensions"):
                read(path)


def test_a_channel_on_another_grid_is_refused_or_resampled(tmp_path: Path) -> None:
    first = save(ramp(2), tmp_path / "first.mha")
    fine = np.repeat(np.arange(10, dtype=np.float32) / 2, 1)[None, None].repeat(4, 0).repeat(6, 1)
    second = save(fine, tmp_path / "second.mha", Spacing=(0.5, 1.0, 1.0))
    images = {"T1": first, "T2": second}
    with pytest.raises(DataError, match=r"Channel 'T2' .* does not lie on channel 'T1' .*resample_channels: true"):
        read_scan(images, "axial")
    scan = read_scan(images, "axial", resample=True)
    np.testing.assert_allclose(scan.array[1], scan.array[0], atol=1e-5)
    away = save(ramp(2) + 3, tmp_path / "away.mha", Origin=(100.0, 0.0, 0.0))
    assert (read_scan({"T1": first, "T2": away}, resample=True).array[1] == 3).all()  # its darkest value


def test_stored_otherwise_a_channel_lies_on_the_same_grid(tmp_path: Path) -> None:
    first = save(ramp(1), tmp_path / "first.mha")
    turned = tmp_path / "turned.mha"
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(first)), "PIR"), str(turned))
    both = read_scan({"T1": first, "T2": turned})
    assert np.array_equal(both.array[0], both.array[1])


@pytest.mark.parametrize("plane", DIRECTIONS)
def test_an_array_is_read_as_it_is_and_written_to_the_same_grid(plane: Plane, tmp_path: Path) -> None:
    image = ArrayImage("a", partial(ramp, 0), (3.0, 0.5, 0.7))
    scan = read_scan(image, plane)
    assert np.array_equal(scan.array, ramp(0)[None])
    assert scan.spacing_mm == (3.0, 0.5, 0.7)
    write_picture(read_picture(image, plane), tmp_path / "a.mha")
    written = read_volume(tmp_path / "a.mha", plane)
    assert np.array_equal(written.array, scan.array[0])
    assert written.geometry.grid_differences(scan.geometry) == []
    flat = read_labels(ArrayImage("b", partial(np.eye, 4, dtype=np.uint8), (1.0, 0.5, 0.7)), plane)
    write_picture(flat, tmp_path / "flat.mha")
    assert np.array_equal(read_volume(tmp_path / "flat.mha", plane).array, flat.array)
    assert (flat.array.shape, flat.geometry.flat, flat.spacing_mm) == ((1, 4, 4), True, (1.0, 0.5, 0.7))
    assert read_scan(ArrayImage("c", partial(ramp, 0, (2, *SHAPE))), plane).channel_names == ("image 0", "image 1")


def broken() -> NDArray[np.float32]:
    raise KeyError("volume")


def test_an_array_that_is_no_image_is_refused_by_name() -> None:
    for load, message in (
        (broken, "case 7: its reader can't load it: KeyError: 'volume'"),
        (partial(np.zeros, 3), r"case 7: its reader gives an array of shape \(3,\); it must be \[S, H, W\]"),
        (partial(np.zeros, (2, 2), complex), "case 7: its reader gives 4 values of type complex128, not real numbers"),
    ):
        with pytest.raises(DataError, match=message):
            read_scan(ArrayImage("case 7", load))
    assert len({scan_hash(ArrayImage("a", partial(np.full, (2, 2), value))) for value in (0, 1, 1)}) == 2
