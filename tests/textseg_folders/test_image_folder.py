from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from textseg.contracts import ArrayImage
from textseg.data.checking import check_dataset
from textseg.data.preparation import prepare
from textseg.errors import DataError
from textseg.evaluation import masks
from textseg.recipe.schema import PreparationSettings
from textseg.volumes.files import read_labels
from textseg_folders.image_folder import ImageFolder
from textseg_folders.nifti_folder import NiftiFolder

SIZE = (40, 30)


def reader(folder: Path, **settings: Any) -> ImageFolder:
    labels = {0: "background", 50: "L5", 100: "L4", 255: "SC"}
    return ImageFolder(folder=str(folder), **{"atlas": "lumbar_spider", "labels": labels, **settings})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pairs as PNG, one as npz, with L4 above L5 and a canal."""
    mask = np.zeros(SIZE, np.uint8)
    mask[5:15, 5:15], mask[20:30, 5:15], mask[:, 20:25] = 100, 50, 255
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number, name in enumerate(("a_1", "b_1", "c")):
        image = np.random.default_rng(number).integers(0, 255, SIZE, np.uint8)
        if name == "c":
            np.savez(tmp_path / "images/c.npz", image=image, other=mask)
            np.savez_compressed(tmp_path / "masks/c.npz", mask)
        else:
            Image.fromarray(image).save(tmp_path / f"images/{name}.png")
            Image.fromarray(mask).save(tmp_path / f"masks/{name}.png")
    return tmp_path


def test_pairs_are_cases_with_one_slice(folder: Path, tmp_path: Path) -> None:
    dataset = reader(folder, patient_pattern="^(.)", spacing_mm=(0.5, 0.25))
    cases = dataset.cases()
    assert [(case.id, case.patient) for case in cases] == [("a_1", "a"), ("b_1", "b"), ("c", "c")]
    assert pickle.loads(pickle.dumps(list(cases))) == list(cases)
    assert check_dataset(dataset).clean
    settings = PreparationSettings(size=(80, 30), crop="none")
    prepared = prepare(cases, dataset.label_map, settings, tmp_path / "cache")
    for case in prepared:
        assert case.image.shape == (1, 1, 80, 30)
        assert case.native_spacing_mm == (1.0, 0.5, 0.25)
        native, geometry = case.native_mask(dataset.label_map(case.case))
        assert geometry.flat
        assert [int(native[0, row, 10]) for row in (10, 25)] == [dataset.atlas["L4"].index, dataset.atlas["L5"].index]
    plain = reader(folder).cases()
    assert plain[0].image == folder / "images/a_1.png"
    assert isinstance(plain[2].image, ArrayImage)


def test_colours_and_files_are_channels(folder: Path, tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (3, *SIZE), np.uint8)
    np.savez(folder / "images/c.npz", colour)
    Image.fromarray(np.moveaxis(colour, 0, -1)).save(folder / "images/a_1.png")
    (folder / "images/b_1.png").unlink()
    (folder / "masks/b_1.png").unlink()
    for settings in ({}, {"spacing_mm": (0.5, 0.5)}):
        dataset = reader(folder, **settings)
        prepared = prepare(
            dataset.cases(), dataset.label_map, PreparationSettings(size=SIZE, crop="none"), tmp_path / "cache"
        )
        assert np.array_equal(prepared[0].image, prepared[1].image)
        assert prepared[0].channel_names == ("image 0", "image 1", "image 2")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(SIZE), "y": np.zeros(SIZE)}, "has the arrays x, y; one of several must be called 'image'"),
        ({"x": np.zeros((*SIZE, 3))}, r"\(40, 30, 3\) must be \[H, W\] or \[C, H, W\], channels first"),
        ({"x": np.array([{}])}, "its reader can't load it"),
    ],
)
def test_what_is_no_image_is_named(folder: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(folder / "images/c.npz", **arrays)
    dataset = reader(folder)
    with pytest.raises(DataError, match=message):
        prepare(dataset.cases(), dataset.label_map, PreparationSettings(size=SIZE), folder / "cache")


def test_a_folder_of_other_formats_says_which_are_read(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"MHA, NRRD or NIfTI files. It has .npz, .png files. `use: image_folder` reads"
    ):
        NiftiFolder(folder=str(folder), atlas="lumbar_spider").cases()
    with pytest.raises(DataError, match="spacing_mm: .* must be above 0"):
        reader(folder, spacing_mm=(0.0, 1.0))


def test_an_image_in_another_format_is_named_with_its_mask(folder: Path) -> None:
    (folder / "images/a_1.png").rename(folder / "images/a_1.jpg")
    with pytest.raises(DataError, match=r"a_1.png' has no image .*. 'a_1.jpg' is not read: convert it to PNG or npz."):
        reader(folder).cases()


def test_masks_that_are_pictures_are_scored(folder: Path) -> None:
    dataset = reader(folder, spacing_mm=(0.5, 0.25))
    case = next(case for case in dataset.cases() if case.id == "a_1")
    assert case.mask is not None
    reference = read_labels(case.mask)
    read = masks._read(folder / "masks/a_1.png", reference, dataset, case)
    assert np.array_equal(read > 0, reference.array > 0)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "small.png")
    with pytest.raises(DataError, match="does not lie on its reference"):
        masks._read(folder / "small.png", reference, dataset, case)
