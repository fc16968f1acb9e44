from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.errors import DataError
from textseg.volumes.dicom_series import find_series, in_order, is_dicom, only_series
from textseg.volumes.files import file_hash, read_volume
from textseg.volumes.integrity import require_whole_dicom

pydicom = pytest.importorskip("pydicom")

Write = Callable[..., list[Path]]


@pytest.fixture
def image() -> sitk.Image:
    """Six oblique sagittal slices of 12 x 10."""
    image = sitk.GetImageFromArray(np.arange(6 * 12 * 10, dtype=np.int16).reshape(6, 12, 10) - 50)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.05)
    base = np.reshape(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation("PIR"), (3, 3))
    image.SetDirection((np.reshape(turn.GetMatrix(), (3, 3)) @ base).ravel().tolist())
    image.SetSpacing((0.7, 0.8, 3.3))
    image.SetOrigin((-31.25, 12.5, 100.75))
    return image


def test_slices_are_put_in_order_by_where_they_lie(image: sitk.Image, write_series: Write, tmp_path: Path) -> None:
    write_series(image, tmp_path / "scan", slope=2.0, shuffle=True)
    sitk.WriteImage(sitk.Cast(image, sitk.sitkInt16) * 2, str(tmp_path / "scan.nrrd"))
    result, expected = read_volume(tmp_path / "scan"), read_volume(tmp_path / "scan.nrrd")
    assert expected.geometry.differences(result.geometry, 1e-6) == []
    np.testing.assert_array_equal(result.array, expected.array)


def test_several_series_in_one_folder_are_told_apart(image: sitk.Image, write_series: Write, tmp_path: Path) -> None:
    write_series(image, tmp_path, number=4, suffix="", shuffle=True)
    write_series(image[:, :, :3], tmp_path, number=7, prefix="x")
    (tmp_path / "notes.txt").write_text("Dear colleague,")
    files = [file for file in tmp_path.iterdir() if is_dicom(file)]
    assert len(files) == 9
    series = find_series(files)
    assert sorted((member.name, len(member.files)) for member in series) == [
        (f"{tmp_path.name}_4", 6),
        (f"{tmp_path.name}_7", 3),
    ]
    with pytest.raises(DataError, match="holds 2 DICOM series .*; give each a folder of its own"):
        only_series(tmp_path)
    assert {read_volume(member).array.shape for member in series} == {(6, 12, 10), (3, 12, 10)}


def test_two_series_of_one_number_have_two_names(image: sitk.Image, write_series: Write, tmp_path: Path) -> None:
    for prefix in ("a", "b"):
        write_series(image, tmp_path, prefix=prefix)
    assert len({series.name for series in find_series(tmp_path.iterdir())}) == 2


def test_values_of_a_header_do_not_become_paths(image: sitk.Image, write_series: Write, tmp_path: Path) -> None:
    write_series(image, tmp_path, prefix="a")
    for file in write_series(image, tmp_path, prefix="b"):
        content = pydicom.dcmread(file)
        content[0x0020, 0x0011] = pydicom.DataElement(0x00200011, "LO", "/../../X/run")
        content.save_as(file)
    names = sorted(series.name for series in find_series(tmp_path.iterdir()))
    assert names[0] == f"{tmp_path.name}_1"
    assert names[1].startswith(f"{tmp_path.name}__.._.._X_run-")


def test_objects_that_are_no_images_are_left_out(image: sitk.Image, write_series: Write, tmp_path: Path) -> None:
    first, *_ = write_series(image, tmp_path)
    report = pydicom.dcmread(first)
    report.file_meta.MediaStorageSOPClassUID = pydicom.uid.ComprehensiveSRStorage
    report.save_as(tmp_path / "report.dcm")
    assert is_dicom(first)
    assert not is_dicom(tmp_path / "report.dcm")
    assert not is_dicom(tmp_path / "nowhere.dcm")


def test_the_same_slices_have_one_hash_in_whatever_files(
    image: sitk.Image, write_series: Write, tmp_path: Path
) -> None:
    for number, file in enumerate(write_series(image, tmp_path / "a")):
        (tmp_path / "b").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "b" / f"{9 - number}")
    assert file_hash(tmp_path / "a") == file_hash(tmp_path / "b")
    (tmp_path / "b" / "9").unlink()
    assert file_hash(tmp_path / "a") != file_hash(tmp_path / "b")


def test_one_slice_has_its_thickness(image: sitk.Image, write_series: Write, tmp_path: Path) -> None:
    write_series(image[:, :, 2:3], tmp_path)
    volume = read_volume(tmp_path)
    assert volume.array.shape == (1, 12, 10)
    assert volume.spacing_mm[0] == pytest.approx(3.3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("SliceThickness", value) for value in ("0", "-6.0", "", None)),
        *(("SpacingBetweenSlices", value) for value in ("-6.0", "")),
    ],
)
def test_positions_decide_where_there_are_several_slices(
    image: sitk.Image, write_series: Write, tmp_path: Path, key: str, value: str | None
) -> None:
    for count in (6, 1):
        folder = tmp_path / str(count)
        for file in write_series(image[:, :, :count], folder):
            dataset = pydicom.dcmread(file)
            for name in ("SliceThickness", "SpacingBetweenSlices"):
                if name in dataset:
                    delattr(dataset, name)
            if value is not None:
                setattr(dataset, key, value)
            dataset.save_as(file)
    assert read_volume(tmp_path / "6").geometry.spacing == pytest.approx((0.7, 0.8, 3.3))
    assert read_volume(tmp_path / "1").geometry.spacing[2] == (6.0 if value == "-6.0" else 1.0)


def _edited(**values: object) -> Callable[[list[Path]], None]:
    def edit(files: list[Path]) -> None:
        dataset = pydicom.dcmread(files[2])
        for key, value in values.items():
            setattr(dataset, key, value)
        dataset.save_as(files[2])

    return edit


def _without(key: str) -> Callable[[list[Path]], None]:
    def edit(files: list[Path]) -> None:
        dataset = pydicom.dcmread(files[2])
        delattr(dataset, key)
        dataset.save_as(files[2])

    return edit


def _cut(files: list[Path]) -> None:
    files[2].write_bytes(files[2].read_bytes()[:-20])


def _sheared(files: list[Path]) -> None:
    for number, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        across = np.array(dataset.ImageOrientationPatient[:3], dtype=float)
        dataset.ImagePositionPatient = [
            f"{part:.9f}" for part in np.array(dataset.ImagePositionPatient, float) + number * across
        ]
        dataset.save_as(file)


DAMAGE = {
    "missing": (lambda files: files[2].unlink(), "it is 6.6 mm, and 3.3 mm between the other slices; a slice is miss"),
    "twice": (lambda files: shutil.copy(files[2], files[2].with_name("y.dcm")), "lie at the same place"),
    "turned": (_edited(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), "differ in their orientation"),
    "zoomed": (_edited(PixelSpacing=[0.9, 0.7]), "differ in their pixel spacing"),
    "unplaced": (_without("ImagePositionPatient"), "its header does not say where the slice lies"),
    "skewed": (_edited(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "makes no sense"),
    "nowhere": (_edited(ImagePositionPatient=["1e400", "0", "0"]), "makes no sense"),
    "frames in words": (_without("Rows"), "003.dcm"),
    "negative": (_edited(PixelSpacing=[-0.8, 0.7]), "makes no sense"),
    "frames": (_edited(NumberOfFrames=2), "holds several frames"),
    "cut": (_cut, "003.dcm can't be read"),
    "text": (lambda files: files[2].write_text("Dear colleague,"), "003.dcm can't be read"),
    "empty": (lambda files: files[2].write_bytes(b""), "003.dcm can't be read"),
    "sheared": (_sheared, "lie beside one another"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_no_volume_is_refused(image: sitk.Image, write_series: Write, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(write_series(image, tmp_path))  # type: ignore[no-untyped-call, operator]
    with pytest.raises(DataError, match=message) as caught:
        read_volume(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_no_memory_is_taken_for_what_a_file_cannot_hold(
    image: sitk.Image, write_series: Write, tmp_path: Path, compressed: bool
) -> None:
    file = write_series(image[:, :, :1], tmp_path, compressed=compressed)[0]
    dataset = pydicom.dcmread(file)
    dataset.ReferencedImageSequence = [pydicom.Dataset()]
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.3.4"
    dataset.add_new((0x0009, 0x0010), "LO", "somebody")
    dataset.add_new((0x0009, 0x1001), "UN", b"12345678")
    dataset.save_as(file)
    require_whole_dicom(file)
    assert read_volume(tmp_path).array.shape == (1, 12, 10)
    whole = file.read_bytes()
    for before, length in (
        (b"\x09\x00\x01\x10UN\0\0", b"\x08\0\0\0"),
        (b"\x08\0\x55\x11UI", b"\x08\0"),
        *([(b"\xfe\xff\x00\xe0", b"")] if compressed else [(b"\xe0\x7f\x10\0OW\0\0", b"\xf0\0\0\0")]),
    ):
        position = whole.rindex(before + length) + len(before)
        count = len(length) or 4
        file.write_bytes(whole[:position] + b"\xfe\xff\xff\xf0"[-count:] + whole[position + count :])
        with pytest.raises(DataError, match="an element of its header states"):
            read_volume(tmp_path)
    syntax = whole.index(b"1.2.840.10008.1.2.")
    file.write_bytes(whole[: syntax + 17] + whole[syntax + 17 :].replace(b".1\0", bytes(3), 1))  # implicit, it says
    if not compressed:
        with pytest.raises(DataError, match="an element of its header states"):
            read_volume(tmp_path)
    dataset.Rows = dataset.Columns = 30000
    dataset.save_as(file)
    with pytest.raises(DataError, match="its header states 900000000 bytes"):
        read_volume(tmp_path)


def test_implausible_geometry_is_refused(image: sitk.Image, write_series: Write, tmp_path: Path) -> None:
    image.SetSpacing((0.7, 0.8, 300))
    write_series(image, tmp_path)
    with pytest.raises(DataError, match=r"its spacing is 0.7 x 0.8 x 300 mm, and a distance from 0.01 to 100 mm"):
        in_order(only_series(tmp_path))


def test_reading_the_order_reads_no_pixel(image: sitk.Image, write_series: Write, tmp_path: Path) -> None:
    files = write_series(image, tmp_path, shuffle=True)
    ordered, geometry = in_order(only_series(tmp_path))
    assert sorted(ordered) == sorted(files)
    assert geometry.size == (10, 12, 6)
