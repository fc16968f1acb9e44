from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.contracts import Atlas
from textseg.errors import DataError
from textseg.volumes.colours import structure_colour
from textseg.volumes.files import file_hash, read_labels
from textseg.volumes.geometry import Geometry
from textseg.volumes.label_tables import PRIVATE, has_changed, require_names, value_names
from textseg.volumes.mask import Mask

nibabel = pytest.importorskip("nibabel")

TURNED = (0.0, 0.0, -1.0, 0.8, -0.6, 0.0, -0.6, -0.8, 0.0)


@pytest.fixture
def mask(small_atlas: Atlas) -> Mask:
    """Two of four structures, in an oblique volume; one has a SNOMED code."""
    coded = replace(small_atlas.structures[0], snomed="14293000")
    atlas = replace(small_atlas, structures=(coded, *small_atlas.structures[1:]))
    geometry = Geometry((9, 7, 3), (0.7, 0.8, 4.0), (-3.0, 2.5, 11.25), TURNED)
    array = np.zeros(geometry.shape, np.uint8)
    array[1, 2:5, 3:6] = 1
    array[2, 0, :] = 4
    return Mask(array, geometry, atlas, {}, None)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_carries_the_names(mask: Mask, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    mask.save(path)
    again = read_labels(path)
    assert mask.geometry.differences(again.geometry, 1e-5) == []
    np.testing.assert_array_equal(again.array, mask.array)
    image = nibabel.load(path)
    assert image.get_data_dtype() == np.uint8
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, stored)
    [extension] = image.header.extensions
    assert extension.get_code() == 30
    labels = ElementTree.fromstring(extension.content.rstrip(b"\0")).findall("VolumeInformation/LabelTable/Label")
    assert {int(label.attrib["Key"]): label.text for label in labels} == mask.names
    assert float(labels[0].attrib["Red"]) == pytest.approx(structure_colour(1)[0], abs=1e-5)


def test_slicer_finds_names_colours_codes_and_extents(mask: Mask, tmp_path: Path) -> None:
    path = tmp_path / "mask.seg.nrrd"
    mask.save(path)
    image = sitk.ReadImage(str(path))
    stored = sitk.GetArrayFromImage(image)
    assert mask.geometry.differences(read_labels(path).geometry, 1e-6) == []
    assert image.GetMetaData("Segmentation_SourceRepresentation") == "Binary labelmap"
    for number, structure in enumerate(mask.atlas.structures):
        text = {
            key: image.GetMetaData(f"Segment{number}_{key}")
            for key in ("ID", "Name", "LabelValue", "Layer", "Color", "Extent", "Tags")
        }
        assert (text["Name"], text["LabelValue"], text["Layer"]) == (structure.name, str(structure.index), "0")
        colour = [float(part) for part in text["Color"].split()]
        assert colour == pytest.approx(structure_colour(structure.index), abs=1e-5)
        ends = [int(part) for part in text["Extent"].split()]
        places = np.argwhere(stored == structure.index)[:, ::-1]
        if len(places):
            assert ends == np.stack([places.min(axis=0), places.max(axis=0)], axis=1).ravel().tolist()
        else:
            assert ends == [0, -1] * 3
        code = "SCT^14293000^L2 lumbar vertebra" if structure.index == 1 else f"{PRIVATE}^{structure.name}^"
        assert f"~{code}" in text["Tags"]


def test_slicer_gets_three_dimensions_of_a_flat_file(mask: Mask, tmp_path: Path) -> None:
    flat = Geometry((5, 4, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1), flat=True)
    replace(mask, geometry=flat, array=np.ones((1, 4, 5), np.uint8)).save(tmp_path / "mask.seg.nrrd")
    assert sitk.ReadImage(str(tmp_path / "mask.seg.nrrd")).GetSize() == (5, 4, 1)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".seg.nrrd"])
def test_a_mask_names_its_values_and_another_convention_is_refused(mask: Mask, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    mask.save(path)
    assert value_names(path) == mask.names
    require_names(path, mask.names, [0, 1, 4], "the labels 'a'")
    first, second = mask.names[1], mask.names[2]
    exchanged = {1: second, 2: first}
    with pytest.raises(DataError, match=f"itself names its value 1 '{first}', and the labels 'a' call it '{second}'"):
        require_names(path, exchanged, [0, 1], "the labels 'a'")
    with pytest.raises(DataError, match="do not name it"):
        require_names(path, {7: first}, [0, 1], "the labels 'a'")
    require_names(path, exchanged, [3], "the labels 'a'")  # the mask does not hold these values
    require_names(path, {1: "another spelling"}, [1], "the labels 'a'")


def test_a_mask_may_name_its_values_by_synonyms(mask: Mask, tmp_path: Path) -> None:
    path = tmp_path / "mask.mha"
    mask.save(path)
    sidecar = {"mask": path.name, "mask_sha256": file_hash(path), "labels": {"1": "First lumbar vertebra"}, "made": {}}
    (tmp_path / "mask.json").write_text(json.dumps(sidecar))
    first, second, *others = mask.atlas.structures
    atlas = replace(mask.atlas, structures=(first, replace(second, synonyms=("first lumbar vertebra",)), *others))
    require_names(path, {1: "L1"}, [1], "the labels 'a'", atlas)
    with pytest.raises(DataError, match="names its value 1 'L1', and the labels 'a' call it 'L2'"):
        require_names(path, {1: "L2", 2: "L1"}, [1], "the labels 'a'", atlas)


def test_a_sidecar_names_the_values_of_the_mask_that_it_was_written_for(mask: Mask, tmp_path: Path) -> None:
    path = tmp_path / "mask.mha"
    mask.save(path)
    assert value_names(path) == {}
    (tmp_path / "mask.json").write_text('{"EchoTime": 0.1}')  # of another tool
    assert value_names(path) == {}
    sidecar = {"mask": path.name, "mask_sha256": file_hash(path), "labels": {"7": "L5"}, "made": {}}
    (tmp_path / "mask.json").write_text(json.dumps(sidecar))
    assert value_names(path) == {7: "L5"}
    assert not has_changed(path)
    path.write_bytes(path.read_bytes() + b"0")
    assert has_changed(path)


@pytest.mark.parametrize("content", [b"", b"\x5c\x01\0\0" * 100, b"\x1f\x8b no gzip"])
def test_a_damaged_header_names_no_values(tmp_path: Path, content: bytes) -> None:
    for name in ("a.nii", "a.nii.gz", "a.seg.nrrd"):
        (tmp_path / name).write_bytes(content)
        assert value_names(tmp_path / name) == {}
