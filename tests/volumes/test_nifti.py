from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.errors import DataError
from textseg.volumes import nifti as module
from textseg.volumes.files import read_geometry, read_labels, read_volume, write_labels
from textseg.volumes.geometry import Geometry, restore

nibabel = pytest.importorskip("nibabel")

SHIFTED, ROTATED = np.eye(4), np.eye(4)
SHIFTED[:3, 3] = 20, -3, 8
ROTATED[:3, :3] = [[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]
AFFINE = np.diag((-0.5, -0.75, 3.0, 1.0))
AFFINE[:3, 3] = 10, -20, 30
SHEARED = AFFINE.copy()
SHEARED[0, 1] = 0.2
# name: qform, its code, sform, its code
TRANSFORMS: dict[str, tuple[Any, int, Any, int]] = {
    "both the same": (AFFINE, 1, AFFINE, 1),
    "sform of a template": (AFFINE, 1, SHIFTED @ ROTATED @ AFFINE, 4),
    "both of the scanner": (SHIFTED @ AFFINE, 1, ROTATED @ AFFINE, 1),
    "aligned": (AFFINE, 2, SHIFTED @ AFFINE, 2),
    "only qform": (ROTATED @ AFFINE, 1, None, 0),
    "only sform": (None, 0, ROTATED @ AFFINE, 2),
    "sheared sform beside a qform": (AFFINE, 1, SHEARED, 1),
    "left-handed": (AFFINE @ np.diag((-1, 1, 1, 1)), 1, None, 0),
    "neither": (None, 0, None, 0),
}


def voxels(*shape: int, kind: str = "u1") -> np.ndarray:
    return np.arange(1, np.prod(shape) + 1).reshape(shape).astype(kind)


def save(path: Path, name: str, array: np.ndarray, kind: type = nibabel.Nifti1Image) -> Any:
    qform, qform_code, sform, sform_code = TRANSFORMS[name]
    image = kind(array, None)
    image.header.set_zooms((0.5, 0.75, 3.0)[: array.ndim])
    image.set_qform(qform, qform_code)
    image.set_sform(sform, sform_code)
    nibabel.save(image, path)
    return nibabel.load(path)


def placement(image: Any) -> list[np.ndarray]:
    header = image.header
    forms = [header.get_qform(coded=True), header.get_sform(coded=True)]
    values = [*(part for form in forms for part in form if part is not None), image.affine, header["pixdim"][:4]]
    return [np.asarray(value) for value in (*values, header["xyzt_units"])]


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), (2, 3, 1)])
def test_a_mask_has_both_transforms_and_codes_of_its_image(
    tmp_path: Path, name: str, kind: type, shape: tuple[int, ...]
) -> None:
    image = save(tmp_path / "image.nii.gz", name, voxels(*shape), kind)
    volume = read_labels(tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(restore(volume.array, volume.geometry).T.reshape(shape), image.dataobj)
    write_labels(volume.array, volume.geometry, tmp_path / "mask.nii")
    mask = nibabel.load(tmp_path / "mask.nii")
    assert type(mask) is type(image)
    for ours, theirs in zip(placement(mask), placement(image), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(mask.dataobj, image.dataobj)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_geometry_is_that_of_itk(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.nii"
    save(path, name, voxels(2, 3, 4))
    ours, theirs = read_geometry(path), sitk.ReadImage(str(path))
    assert ours.spacing == theirs.GetSpacing()
    np.testing.assert_allclose(ours.origin, theirs.GetOrigin(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.direction, theirs.GetDirection(), rtol=0, atol=1e-6)
    flat = save(path, name, voxels(3, 4))
    if flat.header["sform_code"] == 0 or name in ("both the same", "both of the scanner", "only sform"):
        theirs = sitk.ReadImage(str(path))
        np.testing.assert_allclose(read_geometry(path).origin[:2], theirs.GetOrigin(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            np.reshape(read_geometry(path).direction, (3, 3))[:2, :2].ravel(), theirs.GetDirection(), atol=1e-6
        )


@pytest.mark.parametrize("kind", list(module.VOXELS.values()))
@pytest.mark.parametrize("scaling", [(0.0, 0.0), (1.0, 0.0), (2.37, -1024.3), (1.0, -5.0), (3e-4, 0.0), (np.nan, 0.0)])
def test_voxels_are_those_of_itk_bit_by_bit(tmp_path: Path, kind: str, scaling: tuple[float, float]) -> None:
    path = tmp_path / "image.nii"
    array = np.random.default_rng(0).integers(0, 120, (3, 4, 5)).astype(kind)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE, dtype=kind), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<ff", content, 112, *scaling)
    path.write_bytes(content)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    values = module.open_nifti(path, "sagittal").voxels()[0]
    assert values.dtype == expected.dtype
    np.testing.assert_array_equal(values, expected)
    assert sitk.ReadImage(str(path)).GetSpacing() == read_geometry(path).spacing


@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_big_endian_and_version_2(tmp_path: Path, kind: type, suffix: str) -> None:
    path, array = tmp_path / f"image{suffix}", voxels(3, 4, 5, kind="i2") - 30
    header = kind(endianness=">")
    image = (nibabel.Nifti1Image if kind is nibabel.Nifti1Header else nibabel.Nifti2Image)(array, AFFINE, header)
    nibabel.save(image, path)
    volume = read_volume(path)
    np.testing.assert_array_equal(restore(volume.array, volume.geometry).T, array)
    assert volume.geometry.spacing == pytest.approx((0.5, 0.75, 3.0))
    write_labels(volume.array.clip(0).astype(np.uint8), volume.geometry, tmp_path / "mask.nii")
    np.testing.assert_allclose(nibabel.load(tmp_path / "mask.nii").affine, nibabel.load(path).affine)


@pytest.mark.parametrize(("units", "factor"), [("meter", 1000.0), ("mm", 1.0), ("unknown", 1.0), ("micron", 0.001)])
def test_units_of_length(tmp_path: Path, units: str, factor: float) -> None:
    image = nibabel.Nifti1Image(voxels(3, 4, 5), np.diag((-0.5 / factor, -0.75 / factor, 3 / factor, 1)))
    image.header.set_xyzt_units(units)
    nibabel.save(image, tmp_path / "a.nii")
    assert read_geometry(tmp_path / "a.nii").spacing == pytest.approx((0.5, 0.75, 3.0))
    assert sitk.ReadImage(str(tmp_path / "a.nii")).GetSpacing() == pytest.approx((0.5, 0.75, 3.0))
    volume = read_labels(tmp_path / "a.nii")
    write_labels(volume.array, volume.geometry, tmp_path / "b.nii")
    assert nibabel.load(tmp_path / "b.nii").header.get_xyzt_units()[0] == units


def test_a_mask_of_another_format_lies_on_its_image_for_itk_and_nibabel(tmp_path: Path) -> None:
    direction = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    for number, axes in enumerate((direction, direction * (1, 1, -1), np.eye(3)[:, [2, 0, 1]])):
        geometry = Geometry((5, 4, 3), (0.5, 0.75, 3.3), (1.5, -2.25, 30.0), tuple(axes.ravel().tolist()))
        array = voxels(*geometry.shape)
        path = tmp_path / f"{number}.nii.gz"
        write_labels(array, geometry, path)
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), restore(array, geometry))
        np.testing.assert_allclose(image.GetDirection(), geometry.direction, atol=1e-6)
        np.testing.assert_allclose(image.GetOrigin(), geometry.origin, atol=1e-5)
        loaded = nibabel.load(path)
        np.testing.assert_allclose(loaded.get_qform(), loaded.get_sform(), atol=1e-5)
        assert (int(loaded.header["qform_code"]), int(loaded.header["sform_code"])) == (1, 1)


def test_of_a_large_slice_no_dimension_is_lost(tmp_path: Path) -> None:
    """More than 32767 voxels on a side need version 2."""
    geometry = Geometry((40000, 2, 1), (0.05, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    write_labels(np.ones(geometry.shape, np.uint8), geometry, tmp_path / "a.nii.gz")
    assert nibabel.load(tmp_path / "a.nii.gz").shape == (40000, 2, 1)


CHANGES = {
    "sheared": ("<f", 284, 0.2, "its sform has axes that are not at right angles"),
    "singular": ("<f", 280, 0.0, "its sform is singular"),
    "contradicting": ("<f", 80, 0.9, "its sform says spacing 0.5 x 0.75 x 3, and its pixdim 0.9 x 0.75 x 3"),
    "not finite": ("<f", 292, float("nan"), "no finite number"),
    "far": ("<f", 292, 5e4, "is over 10 m away"),
    "empty": ("<h", 42, 0, "its size 0 x 3 x 4 x 1 x 1 x 1 x 1 makes no sense"),
    "negative": ("<h", 44, -3, "makes no sense"),
    "dimensions": ("<h", 40, 9, "makes no sense"),
    "huge": ("<h", 42, 32000, "its header states 384352 bytes, which its 376 bytes can't hold"),
    "strange type": ("<h", 70, 999, "its voxels have the type 999"),
    "colour": ("<h", 70, 128, "in colour or complex"),
    "beginning": ("<f", 108, 12.0, "its voxels begin at byte 12"),
    "nowhere": ("<f", 108, float("nan"), "its voxels begin at byte nan"),
    "pair": ("<4s", 344, b"ni1\0", "voxels in another file"),
    "Analyze": ("<4s", 344, bytes(4), "Analyze"),
    "other": ("<i", 0, 7, "does not begin with the header of a NIfTI file"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_odd_headers_are_refused_in_our_words(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    kind, offset, value, message = CHANGES[name]
    path = tmp_path / "a.nii"
    save(path, "only sform", voxels(2, 3, 4))
    nibabel.save(nibabel.Nifti1Image(voxels(2, 3, 4), AFFINE), path)
    content = bytearray(path.read_bytes())
    struct.pack_into(kind, content, offset, value)
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_volume(path)
    assert capfd.readouterr().err == ""


def test_no_more_is_decompressed_than_the_header_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLACK", 1000)
    image = nibabel.Nifti1Image(voxels(2, 3, 4), AFFINE)
    content = image.to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content + bytes(1000)))
    assert read_labels(path).array.max() == 24
    packed = gzip.compress(content + bytes(1001))
    path.write_bytes(packed[:-8] + b"damaged!")  # what follows isn't read, not even its check sum
    with pytest.raises(DataError, match="goes on behind the 24 bytes of voxels"):
        read_labels(path)
    path.write_bytes(gzip.compress(content)[:-8] + b"damaged!")
    with pytest.raises(DataError, match="CRC"):
        read_labels(path)


def test_a_header_takes_no_memory_for_voxels_that_the_file_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    content = bytearray(nibabel.Nifti1Image(voxels(2, 3, 4), AFFINE).to_bytes())
    struct.pack_into("<3h", content, 42, 1000, 1000, 1000)
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match="its header states 1000000352 bytes"):
        read_labels(path)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_extensions_are_read_back(tmp_path: Path, kind: type) -> None:
    save(tmp_path / "a.nii", "both the same", voxels(2, 3, 4), kind)
    assert list(module.nifti_extensions(tmp_path / "a.nii")) == []
    volume = read_labels(tmp_path / "a.nii")
    extension = struct.pack("<ii", 16, 30) + b"table\0\0\0" + struct.pack("<ii", 16, 6) + b"remark\0\0"
    write_labels(volume.array, volume.geometry, tmp_path / "b.nii.gz", extension=extension)
    assert list(module.nifti_extensions(tmp_path / "b.nii.gz")) == [(30, b"table\0\0\0"), (6, b"remark\0\0")]
    assert [part.get_code() for part in nibabel.load(tmp_path / "b.nii.gz").header.extensions] == [30, 6]
    np.testing.assert_array_equal(read_labels(tmp_path / "b.nii.gz").array, volume.array)
