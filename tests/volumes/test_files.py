import gzip
import hashlib
import os
import resource
import subprocess
import sys
import zlib
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.errors import DataError
from textseg.volumes import files as volumes
from textseg.volumes.files import file_hash, read_geometry, read_labels, read_volume, write_labels
from textseg.volumes.geometry import Geometry, canonical, restore
from textseg.volumes.itk import quietly

SPACING = {"slice": 3.3, "row": 0.75, "column": 0.5}
# ITK's letters say where an axis runs to: canonical columns to Posterior, rows to Inferior, slices to Right.
ORIENTATIONS = [
    "".join(letters)
    for order in permutations(("LR", "AP", "SI"))
    for letters in product(*order)
]  # fmt: skip


def phantom() -> np.ndarray:
    """[S, H, W] = [3, 4, 5] without any symmetry."""
    return np.arange(1, 61, dtype=np.uint8).reshape(3, 4, 5)


def save(array: np.ndarray, path: Path, **geometry: tuple[float, ...]) -> Path:
    image = sitk.GetImageFromArray(array)
    for name, value in geometry.items():
        getattr(image, f"Set{name.title()}")(value)
    sitk.WriteImage(image, str(path))
    return path


def spine_image(array: np.ndarray) -> sitk.Image:
    """The canonical array as a file of orientation PIR, which needs no turning."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((SPACING["column"], SPACING["row"], SPACING["slice"]))
    image.SetOrigin((12.5, -7.25, 100.0))
    image.SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation("PIR"))
    return image


def same_geometry(first: Geometry, second: Geometry) -> bool:
    return (
        first.size == second.size
        and np.allclose(first.spacing, second.spacing, rtol=0, atol=1e-6)
        and np.allclose(first.origin, second.origin, rtol=0, atol=1e-5)
        and np.allclose(first.direction, second.direction, rtol=0, atol=1e-6)
    )


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
def test_every_orientation_gives_the_same_canonical_array_and_writes_back(tmp_path: Path, suffix: str) -> None:
    assert len(set(ORIENTATIONS)) == 48
    expected = phantom()
    for orientation in ORIENTATIONS:
        image = sitk.DICOMOrient(spine_image(expected), orientation)
        path, copy = tmp_path / f"{orientation}{suffix}", tmp_path / f"{orientation}_copy{suffix}"
        sitk.WriteImage(image, str(path))

        for read, dtype in ((read_volume, np.float32), (read_labels, np.uint8)):
            volume = read(path)
            assert volume.array.dtype == dtype
            assert volume.array.flags.c_contiguous
            np.testing.assert_array_equal(volume.array, expected, err_msg=orientation)
            assert volume.spacing_mm == pytest.approx((3.3, 0.75, 0.5), abs=1e-6)
            assert volume.geometry.shape == (3, 4, 5)

        write_labels(volume.array, volume.geometry, copy)
        again = sitk.ReadImage(str(copy))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(image))
        assert again.GetPixelID() == sitk.sitkUInt8
        assert same_geometry(read_labels(copy).geometry, volume.geometry), orientation
        if suffix == ".mha":
            assert read_labels(copy).geometry == volume.geometry


def test_itk_agrees_on_what_is_canonical(tmp_path: Path) -> None:
    """Oblique by up to 40 degrees about a random axis: ITK's own reorientation to PIR gives the same array."""
    random = np.random.default_rng(0)
    array = random.integers(0, 9, (3, 4, 5)).astype(np.uint8)
    for index in range(20):
        rotation = sitk.VersorTransform(random.normal(size=3).tolist(), float(random.uniform(0.05, 0.7)))
        turned = np.reshape(rotation.GetMatrix(), (3, 3))
        axes = np.eye(3)[:, random.permutation(3)] * random.choice([-1.0, 1.0], 3)
        direction = tuple((turned @ axes).ravel())
        path = save(
            array, tmp_path / f"{index}.mha", spacing=(0.5, 0.75, 3.3), origin=(1.0, 2.0, 3.0), direction=direction
        )
        volume = read_labels(path)
        reference = sitk.DICOMOrient(sitk.ReadImage(str(path)), "PIR")
        np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(reference))
        assert volume.spacing_mm == pytest.approx(reference.GetSpacing()[::-1])
        write_labels(volume.array, volume.geometry, tmp_path / "back.mha")
        assert read_labels(tmp_path / "back.mha").geometry == volume.geometry
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "back.mha"))), array)


def test_equally_near_axes_are_chosen_alike_in_spite_of_float_noise() -> None:
    chosen = set()
    for noise in (-1e-8, 0.0, 1e-8):
        c, s = np.cos(np.pi / 4 + noise), np.sin(np.pi / 4 + noise)
        chosen.add(Geometry((2, 3, 4), (1, 1, 1), (0, 0, 0), (c, -s, 0, s, c, 0, 0, 0, 1)).axes)
    assert len(chosen) == 1


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii", ".nii.gz"])
def test_geometry_survives_writing(tmp_path: Path, suffix: str) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    path = save(
        np.zeros((4, 3, 2), np.int16),
        tmp_path / f"image{suffix}",
        spacing=(0.46875 / 3, 0.7123456789, 3.3),
        origin=(-123.456789, 1 / 3, 77.7),
        direction=(c, -s, 0, s, c, 0, 0, 0, 1),
    )
    volume = read_volume(path)
    write_labels(np.ones(volume.geometry.shape, bool), volume.geometry, tmp_path / f"mask{suffix}")
    mask = read_labels(tmp_path / f"mask{suffix}")
    assert same_geometry(mask.geometry, volume.geometry)
    assert mask.geometry.differences(volume.geometry) == []


def test_canonical_and_restore_are_inverse_and_check_the_shape() -> None:
    geometry = Geometry((2, 3, 4), (1, 1, 1), (0, 0, 0), (0, 0, 1, -1, 0, 0, 0, 1, 0))
    array = np.arange(24).reshape(4, 3, 2)
    np.testing.assert_array_equal(restore(canonical(array, geometry), geometry), array)
    with pytest.raises(ValueError, match="shape"):
        restore(np.zeros((1, 2, 3)), geometry)
    with pytest.raises(ValueError, match="shape"):
        canonical(np.zeros((1, 2, 3)), geometry)


def test_differences_in_words() -> None:
    first = Geometry((5, 4, 3), (0.5, 0.75, 3.3), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert first.differences(first) == []
    second = Geometry((5, 4, 2), (0.5, 0.75, 3.0), (0, 0, 1e-4), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    size, spacing, direction = first.differences(second)
    assert size == "size 5 x 4 x 3 against 5 x 4 x 2"
    assert spacing == "spacing 0.5 x 0.75 x 3.3 mm against 0.5 x 0.75 x 3 mm"
    assert direction.startswith("direction ")
    assert any(text.startswith("origin ") for text in first.differences(second, tolerance=1e-5))


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(0, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32)],
)
def test_labels_are_written_in_the_smallest_type(tmp_path: Path, largest: int, expected: type) -> None:
    geometry = Geometry((2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    array = np.full((2, 2, 2), largest, np.int64)
    for suffix in (".mha", ".nii.gz", ".nrrd"):
        path = tmp_path / "new folder" / f"mask{suffix}"
        write_labels(array, geometry, path)
        assert read_labels(path).array.dtype == expected
        np.testing.assert_array_equal(read_labels(path).array, array)


def test_written_labels_are_compressed(tmp_path: Path) -> None:
    geometry = Geometry((64, 64, 64), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    for suffix in (".mha", ".nii.gz", ".nrrd"):
        write_labels(np.zeros((64, 64, 64), np.uint8), geometry, tmp_path / f"mask{suffix}")
        assert (tmp_path / f"mask{suffix}").stat().st_size < 64**3 / 10


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry((2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    path = tmp_path / "mask.mha"
    write_labels(np.ones((2, 2, 2), np.uint8), geometry, path)
    before = path.read_bytes()

    def half_written(image: sitk.Image, name: str, **options: bool) -> None:
        Path(name).write_bytes(b"half")
        raise RuntimeError("sitk::ERROR: no space left on device")

    monkeypatch.setattr(volumes.sitk, "WriteImage", half_written)
    with pytest.raises(DataError, match="no space left"):
        write_labels(np.zeros((2, 2, 2), np.uint8), geometry, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


CUBE = Geometry((32, 32, 32), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


@pytest.mark.parametrize("suffix", volumes.SUFFIXES)
def test_what_a_library_does_not_write_wholly_is_noticed_before_it_takes_its_name(tmp_path: Path, suffix: str) -> None:
    path, noise = tmp_path / f"mask{suffix}", np.random.default_rng(0).integers(0, 200, (32, 32, 32), np.uint8)
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as on a full disk, ITK writes 4096 bytes
    try:
        with pytest.raises(DataError, match=r"mask\S* can't be written: .*Check the folder, its rights and free space"):
            write_labels(noise, CUBE, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_labels(noise, CUBE, path)
    assert np.array_equal(read_labels(path).array, noise)


def test_labels_that_cannot_be_written(tmp_path: Path) -> None:
    geometry = Geometry((2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    for array in (np.full((2, 2, 2), -1), np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match="non-negative integers"):
            write_labels(array, geometry, tmp_path / "mask.mha")
    with pytest.raises(DataError, match=r"textseg reads \.mha"):
        write_labels(np.zeros((2, 2, 2), np.uint8), geometry, tmp_path / "mask.jpg")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="can't be written"):
        write_labels(np.zeros((2, 2, 2), np.uint8), geometry, tmp_path / "file" / "mask.mha")


def test_missing_wrong_and_foreign_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_volume(tmp_path / "none.mha")
    (tmp_path / "folder.mha").mkdir()
    with pytest.raises(DataError, match="not a file"):
        read_volume(tmp_path / "folder.mha")
    (tmp_path / "slice.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"textseg reads \.mha"):
        read_volume(tmp_path / "slice.jpg")
    for name in ("a.mha", "a.nii", "b.nii.gz", "a.nrrd"):
        for content in (b"", b"hello world" * 50, b"NRRD0004\nblah\n"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match="can't be read as a volume") as caught:
                read_volume(tmp_path / name)
            assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.mha", "packed.mha", "a.nii", "a.nii.gz", "a.nrrd", "packed.nrrd"])
def test_truncated_files_are_refused_without_chatter(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 2000, (6, 40, 50)).astype(np.int16)
    path = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(path), useCompression=name.startswith("packed"))
    whole = path.read_bytes()
    for share in (0.01, 0.3, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match="can't be read as a volume") as caught:
            read_volume(path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    path.write_bytes(whole)
    assert read_volume(path).array.sum() == noise.sum()


def test_damaged_compressed_voxels_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 2000, (6, 40, 50)).astype(np.int16)
    for name in ("a.mha", "a.nii.gz"):
        path = tmp_path / name
        sitk.WriteImage(sitk.GetImageFromArray(noise), str(path), useCompression=True)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 20] = bytes(byte ^ 0x55 for byte in content[middle : middle + 20])
        path.write_bytes(content)
        with pytest.raises(DataError, match="can't be read as a volume"):
            read_volume(path)
    assert capfd.readouterr().err == ""


def test_a_nifti_file_with_an_unpacked_twin(tmp_path: Path) -> None:
    """ITK would read the voxels of x.nii when asked for x.nii.gz."""
    path = save(np.full((2, 3, 4), 1, np.uint8), tmp_path / "x.nii.gz")
    twin = save(np.full((2, 3, 4), 2, np.uint8), tmp_path / "x.nii")
    assert (read_volume(path).array.max(), read_volume(twin).array.max()) == (1, 2)


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nrrd"])
def test_two_dimensions_are_one_slice_as_stored_and_stay_two(tmp_path: Path, suffix: str) -> None:
    plane = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = save(plane, tmp_path / f"flat{suffix}", spacing=(0.5, 0.75), origin=(3.0, -4.0), direction=(0, -1, 1, 0))
    volume = read_labels(path)
    np.testing.assert_array_equal(volume.array, plane[None])
    assert volume.spacing_mm[1:] == pytest.approx((0.75, 0.5))
    write_labels(volume.array, volume.geometry, tmp_path / f"copy{suffix}")
    first, second = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / f"copy{suffix}"))
    assert second.GetDimension() == 2
    np.testing.assert_array_equal(sitk.GetArrayFromImage(second), plane)
    for what in ("Size", "Spacing", "Origin", "Direction"):
        assert getattr(second, f"Get{what}")() == pytest.approx(getattr(first, f"Get{what}")(), abs=1e-5)
    solid = read_volume(save(plane[None].astype(np.float32), tmp_path / "solid.mha"))
    assert "2 dimensions against 3" in volume.geometry.differences(solid.geometry)


def test_only_scalar_volumes_of_two_or_three_dimensions(tmp_path: Path) -> None:
    assert read_volume(save(np.zeros((1, 3, 4), np.float32), tmp_path / "one.mha")).array.size == 12
    four = sitk.JoinSeries([sitk.Image([2, 3, 4], sitk.sitkFloat32)] * 2)
    for suffix in (".mha", ".nii.gz"):
        sitk.WriteImage(four, str(tmp_path / f"four{suffix}"))
        with pytest.raises(DataError, match="4 dimensions"):
            read_volume(tmp_path / f"four{suffix}")
    sitk.WriteImage(sitk.Image([2, 3, 4], sitk.sitkVectorUInt8, 3), str(tmp_path / "colour.mha"))
    sitk.WriteImage(sitk.Image([2, 3, 4], sitk.sitkComplexFloat32), str(tmp_path / "complex.nrrd"))
    for name in ("colour.mha", "complex.nrrd"):
        with pytest.raises(DataError, match="colour or complex"):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_intensities_must_be_finite(tmp_path: Path, bad: float) -> None:
    array = np.zeros((2, 3, 4), np.float32)
    array[1, 1, 1] = bad
    with pytest.raises(DataError, match="1 of 24 intensities"):
        read_volume(save(array, tmp_path / "a.mha"))
    with pytest.raises(DataError, match="no whole numbers"):
        read_labels(tmp_path / "a.mha")


def test_intensities_beyond_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="24 of 24 intensities"):
        read_volume(save(np.full((2, 3, 4), 1e300), tmp_path / "a.mha"))


def test_labels_stored_as_floats(tmp_path: Path) -> None:
    array = phantom().astype(np.float32)
    labels = read_labels(save(array, tmp_path / "whole.nii.gz")).array
    assert labels.dtype == np.int64
    assert sorted(labels.ravel()) == list(range(1, 61))
    array[0, 0, 0] = 1.5
    with pytest.raises(DataError, match=r"1 of 60 values are no whole numbers, 1\.5"):
        read_labels(save(array, tmp_path / "half.nii.gz"))


def test_negative_labels_are_kept(tmp_path: Path) -> None:
    array = phantom().astype(np.int16) - 30
    assert read_labels(save(array, tmp_path / "a.mha")).array.min() == -29


def test_file_hash(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert file_hash(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(DataError, match="does not exist"):
        file_hash(tmp_path / "b")


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii", ".nii.gz"])
def test_suffixes_in_capitals(tmp_path: Path, suffix: str) -> None:
    path = save(phantom(), tmp_path / f"a{suffix}")
    capitals = tmp_path / f"B{suffix.upper()}"
    capitals.write_bytes(path.read_bytes())
    volume = read_labels(capitals)
    np.testing.assert_array_equal(volume.array, read_labels(path).array)
    write_labels(volume.array, volume.geometry, tmp_path / f"C{suffix.upper()}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"C{suffix.upper()}").array, volume.array)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz"])
def test_names_that_are_no_utf_8_do_not_reach_itk(tmp_path: Path, suffix: str) -> None:
    """They would end the process by a signal."""
    path = save(phantom(), tmp_path / f"a{suffix}")
    volume = read_labels(path)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/J\xfcrgen" + suffix.encode()))
    try:
        odd.write_bytes(path.read_bytes())
    except OSError:
        pytest.skip("the file system has only names in UTF-8")
    for call in (
        read_volume,
        read_labels,
        read_geometry,
        lambda name: write_labels(volume.array, volume.geometry, name),
    ):
        with pytest.raises(DataError, match=r"J\\xfcrgen.*: this name is no UTF-8") as caught:
            call(odd)
        str(caught.value).encode()  # can be printed


def test_umlauts_are_read_where_the_locale_has_only_ascii(tmp_path: Path) -> None:
    save(phantom(), tmp_path / "Jürgen.mha")
    code = "import sys; from textseg.volumes import *; volume = read_labels(sys.argv[1]); "
    code += "write_labels(volume.array, volume.geometry, sys.argv[2])"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    names = (str(tmp_path / "Jürgen.mha"), str(tmp_path / "Müller.nrrd"))
    subprocess.run([sys.executable, "-c", code, *names], env=environment, check=True, timeout=100)
    np.testing.assert_array_equal(
        read_labels(tmp_path / "Müller.nrrd").array, read_labels(tmp_path / "Jürgen.mha").array
    )


def meta_image(path: Path, voxels: bytes = bytes(60), **changes: str) -> Path:
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1 1",
        "DimSize": "5 4 3",
        "ElementType": "MET_UCHAR",
    }
    last = {"ElementDataFile": changes.pop("ElementDataFile", "LOCAL")}
    lines = "".join(f"{key} = {value}\n" for key, value in {**header, **changes, **last}.items())
    path.write_bytes(lines.encode() + voxels)
    return path


RIGHT_ANGLES = "not at right angles to each other"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TransformMatrix", "1 0.3 0 0 1 0 0 0 1", RIGHT_ANGLES),
        ("TransformMatrix", "1 0.002 0 0 1 0 0 0 1", RIGHT_ANGLES),
        ("TransformMatrix", "1 0 0 1 0 0 0 0 1", RIGHT_ANGLES),
        ("TransformMatrix", "0 0 0 0 0 0 0 0 0", RIGHT_ANGLES),
        ("TransformMatrix", "2 0 0 0 2 0 0 0 2", "not of length 1"),
        ("ElementSpacing", "100000 1 1", "its spacing is 100000 x 1 x 1 mm, and a distance from 0.01 to 100 mm is pos"),
        ("ElementSpacing", "4294967296 1 1", "its spacing is"),
        ("ElementSpacing", "1e-30 1 1", "its spacing is"),
        ("ElementSpacing", "0 1 1", "its spacing is 0 x 1 x 1"),
        ("ElementSpacing", "nan 1 1", "its spacing is"),
        ("ElementSpacing", "-1 1 1", "its spacing"),
        ("Offset", "1e40 0 0", "its origin"),
        ("DimSize", "0 8 8", "its size 0 x 8 x 8 holds no voxel"),
        ("DimSize", "100000 100000 100000", "it has 100000 x 100000 x 100000 voxels, and 1073741824 are possible"),
        ("DimSize", "4000 1 1", "it extends over 4000 x 1 x 1 mm"),
        ("DimSize", "5 4", "its header is incomplete or contradicts itself"),
        (
            "NDims",
            "99999999999",
            "its header is incomplete or contradicts itself: NDims",
        ),  # ends the process within ITK
        ("TransformMatrix", "1 0 0 0 1 0", "contradicts itself: TransformMatrix"),
        ("ElementNumberOfChannels", "99999999999", "contradicts itself: ElementNumberOfChannels"),
        ("NDims", "9", "its header is incomplete or contradicts itself"),
        ("BinaryData", "False", "its voxels are written as text"),
        ("ElementType", "MET_FOO", "a type that ITK does not know"),
        ("ElementDataFile", "/dev/zero", "refers to voxels in another file"),
    ],
)
def test_odd_headers_are_refused_in_our_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str, value: str, message: str
) -> None:
    path = meta_image(tmp_path / "a.mha", **{key: value})
    with pytest.raises(DataError, match=message):
        read_volume(path)
    assert capfd.readouterr().err == ""


def test_no_more_is_decompressed_than_the_header_states(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = meta_image(tmp_path / "a.mha", zlib.compress(bytes(100_000)), CompressedData="True")
    with pytest.raises(DataError, match="goes on behind the 60 bytes of voxels"):
        read_volume(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [None, "3", "99"])
def test_compressed_voxels_do_not_depend_on_their_stated_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], size: str | None
) -> None:
    """ITK would give the part that it could decompress, and whatever lies in memory."""
    voxels, key = zlib.compress(bytes(range(60))), {} if size is None else {"CompressedDataSize": size}
    path = meta_image(tmp_path / "a.mha", voxels, CompressedData="True", **key)
    assert sorted(read_volume(path).array.ravel()) == list(range(60))
    with pytest.raises(DataError, match="compressed voxels end too early"):
        read_volume(meta_image(path, voxels[:-9], CompressedData="1", **key))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_voxels_of_mha_are_those_of_itk_bit_by_bit(tmp_path: Path, kind: str, compressed: bool) -> None:
    array = np.random.default_rng(0).integers(0, 120, (3, 4, 5)).astype(kind)
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=compressed)
    values, _ = volumes._read(path, "axial")
    assert values.dtype == array.dtype
    np.testing.assert_array_equal(values[::-1], sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    if not compressed:
        content = path.read_bytes().replace(b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = True")
        path.write_bytes(content[: -array.nbytes] + array.byteswap().tobytes())
        np.testing.assert_array_equal(volumes._read(path, "axial")[0][::-1], array)


def test_nrrd_takes_no_memory_for_voxels_that_it_cannot_hold_and_has_them_in_no_other_file(tmp_path: Path) -> None:
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: {}\nencoding: gzip\n{}\n"
    packed = gzip.compress(bytes(60))
    (tmp_path / "a.nrrd").write_bytes(header.format("1000 1000 1000", "").encode() + packed)
    with pytest.raises(DataError, match="its header states 1000000000 bytes"):
        read_volume(tmp_path / "a.nrrd")
    (tmp_path / "a.raw").write_bytes(packed)
    for key in ("data file: a.raw", "DataFile:a.raw", "datafile: LIST"):
        (tmp_path / "a.nrrd").write_bytes(header.format("5 4 3", f"{key}\n").encode() + packed)
        with pytest.raises(DataError, match="a.nrrd"):
            read_volume(tmp_path / "a.nrrd")
    directions = "space: left-posterior-superior\nspace directions: (1,0,0) (0.3,1,0) (0,0,1)\n"
    (tmp_path / "a.nrrd").write_bytes(header.format("5 4 3", directions).encode() + packed)
    with pytest.raises(DataError, match=RIGHT_ANGLES):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii", ".nii.gz"])
def test_what_was_written_is_read_back(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry((4, 3, 2), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    array = np.ones(geometry.shape, np.uint8)
    for result, message in (
        ((array, replace(geometry, origin=(0, 0, 1))), "another geometry: origin"),
        ((2 * array, geometry), "other voxels"),
        (DataError("it is empty"), "can't be read back"),
    ):
        monkeypatch.setattr(volumes, "_read_file", Mock(side_effect=[result]))
        with pytest.raises(DataError, match=f"can't be written: .*{message}"):
            write_labels(array, geometry, tmp_path / f"a{suffix}")
        assert not list(tmp_path.iterdir())


def test_a_long_name_is_written(tmp_path: Path) -> None:
    geometry = Geometry((4, 3, 2), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    for suffix in (".mha", ".nii.gz"):
        path = tmp_path / ("x" * (255 - len(suffix)) + suffix)
        write_labels(np.ones(geometry.shape, np.uint8), geometry, path)
        assert read_labels(path).array.all()


@pytest.mark.skipif("TEXTSEG_DATA" not in os.environ, reason="TEXTSEG_DATA names no folder with real scans")
def test_real_scans_lie_as_patients_do(tmp_path: Path) -> None:
    """SPIDER numbers the vertebrae 1, 2, ... and the discs 201, 202, ... upwards; the canal (100) lies behind them."""
    folder = Path(os.environ["TEXTSEG_DATA"])
    masks = sorted(folder.glob("**/masks/*.mha"))[:2]
    if not masks:
        pytest.skip(f"no SPIDER masks under {folder}")
    for path in masks:
        labels, image = read_labels(path), read_volume(path.parents[1] / "images" / path.name)
        assert labels.geometry.differences(image.geometry) == []
        assert labels.array.shape == image.array.shape
        assert labels.spacing_mm[0] == max(labels.spacing_mm)
        centre = {label: np.argwhere(labels.array == label).mean(axis=0) for label in (1, 2, 3, 4, 5, 100, 201, 205)}
        rows = [centre[label][1] for label in (1, 2, 3, 4, 5)]
        assert rows == sorted(rows, reverse=True)
        assert centre[201][1] > centre[205][1]
        assert centre[100][2] > np.mean([centre[label][2] for label in (1, 2, 3, 4, 5)])
        for suffix in (".mha", ".nii.gz"):
            write_labels(labels.array, labels.geometry, tmp_path / f"copy{suffix}")
            copy = read_labels(tmp_path / f"copy{suffix}")
            np.testing.assert_array_equal(copy.array, labels.array)
            assert copy.geometry.differences(labels.geometry, tolerance=1e-5) == []


def test_output_of_other_threads_is_kept_and_that_of_itk_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    chatter = b"Incomplete file record definition\nNDims required and not defined.\nMetaObject: Read: MET_Read Failed\n"
    quietly(lambda: os.write(2, chatter + b"epoch 1\n" + chatter))
    assert capfd.readouterr().err == "epoch 1\n"
    assert quietly(lambda: os.write(2, b"\r 50 % \r")) == 8
    assert capfd.readouterr().err == "\r 50 % \r"
