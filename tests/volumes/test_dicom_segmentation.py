from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.contracts import Atlas
from textseg.errors import DataError
from textseg.volumes.colours import structure_colour
from textseg.volumes.dicom_series import find_series, in_order, is_dicom, only_series
from textseg.volumes.files import read_volume
from textseg.volumes.label_tables import PRIVATE
from textseg.volumes.mask import Mask

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

Write = Callable[..., list[Path]]


@pytest.fixture
def mask(small_atlas: Atlas, write_series: Write, tmp_path: Path) -> Mask:
    """Two of four structures in a series that lies in tmp_path / "scan"; one has a SNOMED code."""
    image = sitk.GetImageFromArray(np.arange(5 * 8 * 6, dtype=np.int16).reshape(5, 8, 6))
    image.SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation("PIR"))
    image.SetSpacing((0.7, 0.8, 3.3))
    write_series(image, tmp_path / "scan", shuffle=True)
    coded = replace(small_atlas.structures[0], snomed="14293000")
    atlas = replace(small_atlas, structures=(coded, *small_atlas.structures[1:]))
    array = np.zeros((5, 8, 6), np.uint8)
    array[1:3, 2:5, 3:6] = 1
    array[3, 1, :] = 4
    return Mask(array, read_volume(tmp_path / "scan").geometry, atlas, {}, None)


def test_it_is_read_back_on_its_series(mask: Mask, tmp_path: Path) -> None:
    series = only_series(tmp_path / "scan")
    path = tmp_path / "out" / "mask.dcm"
    mask.save_dicom(path, series, model="atmnet")
    result = hd.seg.segread(path)
    sources = [pydicom.dcmread(file) for file in in_order(series)[0]]
    pixels = result.get_pixels_by_source_instance(
        [source.SOPInstanceUID for source in sources],
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(pixels, mask.array)
    volume = result.get_volume(combine_segments=True)
    assert sorted(volume.spacing) == pytest.approx([0.7, 0.8, 3.3], abs=1e-6)
    assert result.StudyInstanceUID == sources[0].StudyInstanceUID
    assert result.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    for structure, segment in zip(mask.atlas.structures, result.SegmentSequence, strict=True):
        assert (segment.SegmentNumber, segment.SegmentLabel) == (structure.index, structure.name)
        code = segment.SegmentedPropertyTypeCodeSequence[0]
        expected = ("SCT", "14293000") if structure.index == 1 else (PRIVATE, structure.name)
        assert (code.CodingSchemeDesignator, code.CodeValue) == expected
        rgb = hd.color.CIELabColor.from_dicom_value(tuple(segment.RecommendedDisplayCIELabValue)).to_rgb()
        assert np.array(rgb) == pytest.approx(255 * np.array(structure_colour(structure.index)), abs=3)
    assert not is_dicom(path)  # and so is no input of the next prediction
    assert len(find_series(file for file in tmp_path.rglob("*.dcm") if is_dicom(file))) == 1


def test_a_mask_without_structures_can_be_written(mask: Mask, tmp_path: Path) -> None:
    empty = replace(mask, array=np.zeros_like(mask.array))
    empty.save_dicom(tmp_path / "mask.dcm", only_series(tmp_path / "scan"))
    assert not hd.seg.segread(tmp_path / "mask.dcm").pixel_array.any()


def test_without_highdicom_it_is_said_what_to_install(
    mask: Mask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(DataError, match=r"pip install 'textseg\[dicom\]'"):
        mask.save_dicom(tmp_path / "mask.dcm", only_series(tmp_path / "scan"))
