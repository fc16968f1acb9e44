from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from textseg.errors import DataError
from textseg.volumes.files import read_labels, read_volume, write_labels
from textseg.volumes.geometry import Geometry
from textseg.volumes.scan import read_scan

FLAT = Geometry((5, 3, 1), (0.5, 0.7, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1), flat=True)


def pixels(dtype: type[np.generic] = np.uint8, shape: tuple[int, ...] = (3, 5)) -> NDArray[np.generic]:
    return (np.arange(np.prod(shape)).reshape(shape) * (1000 if dtype == np.uint16 else 10)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_picture_is_one_slice(dtype: type[np.generic], tmp_path: Path) -> None:
    path = tmp_path / "a.PNG"
    Image.fromarray(pixels(dtype)).save(path, "PNG", dpi=(72, 72))
    for volume in (read_volume(path), read_labels(path)):
        assert np.array_equal(volume.array, pixels(dtype)[None])
        assert (volume.spacing_mm, volume.geometry.flat) == ((1.0, 1.0, 1.0), True)


def test_colours_are_channels_and_a_palette_holds_labels(tmp_path: Path) -> None:
    colour = pixels(shape=(3, 5, 3))
    for name, extra in (("rgb", colour), ("rgba", np.concatenate([colour, colour[..., :1]], axis=2))):
        path = tmp_path / f"{name}.png"
        Image.fromarray(extra).save(path)
        assert np.array_equal(read_scan(path).array, np.moveaxis(colour, -1, 0)[:, None])
        with pytest.raises(DataError, match=f"{name}.png is in colour"):
            read_labels(path)
    palette = Image.fromarray((pixels() // 10).astype(np.uint8), "P")
    palette.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_labels(tmp_path / "palette.png").array[0], pixels() // 10)
    Image.fromarray(pixels() > 30).save(tmp_path / "bits.png")
    assert np.array_equal(read_labels(tmp_path / "bits.png").array[0], pixels() > 30)


@pytest.mark.parametrize("highest", [4, 300])
def test_labels_are_written_as_the_values_of_pixels(highest: int, tmp_path: Path) -> None:
    labels = np.minimum(np.arange(15).reshape(1, 3, 5) * 30, highest).astype(np.uint16)
    write_labels(labels, FLAT, tmp_path / "mask.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), labels[0])
    assert np.array_equal(read_labels(tmp_path / "mask.png").array, labels)


def test_what_no_picture_can_hold_is_refused(tmp_path: Path) -> None:
    solid = replace(FLAT, size=(5, 3, 2), flat=False)
    with pytest.raises(DataError, match="a PNG file holds one slice, and this mask has 2"):
        write_labels(np.zeros(solid.shape, np.uint8), solid, tmp_path / "mask.png")
    with pytest.raises(DataError, match="labels up to 65535"):
        write_labels(np.full(FLAT.shape, 70_000, np.uint32), FLAT, tmp_path / "mask.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [0, 20, 60, -60])
def test_a_damaged_picture_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="can't be read as a volume"):
        read_volume(path)
