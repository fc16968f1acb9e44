from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from textseg.contracts import Atlas
from textseg.drawing import volume_pictures as figures
from textseg.drawing.pictures import Panels, panels_png
from textseg.drawing.volume_pictures import MONTAGE, case_png, frequency_png, mask_png
from textseg.errors import DataError
from textseg.registry.discovery import installed_registry
from textseg.volumes.colours import structure_colour
from textseg.volumes.geometry import Geometry
from textseg.volumes.mask import Mask


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def shows(picture: np.ndarray, colour: tuple[float, float, float], tolerance: float = 0.02) -> bool:
    return bool((np.abs(picture - np.array(colour)).max(axis=-1) < tolerance).sum() > 20)


def test_a_case_shows_its_structures_in_their_colours(spider_folder: Path) -> None:
    dataset = installed_registry().build("dataset", "spider", settings={"folder": str(spider_folder)})
    case = dataset.cases()[0]
    labels = dataset.label_map(case)
    three = pixels(case_png(case, labels, dataset.atlas))
    single = pixels(case_png(case, labels, dataset.atlas, [0]))
    assert three.shape[1] > 1.5 * single.shape[1]
    for name in ("L5", "SC"):
        assert shows(three, structure_colour(dataset.atlas[name].index))
    with pytest.raises(DataError, match=r"has slices 1 to \d+, and no 100"):
        case_png(case, labels, dataset.atlas, [99])
    with pytest.raises(DataError, match="has no mask"):
        case_png(replace(case, mask=None), labels, dataset.atlas)


def test_a_mask_is_drawn_where_it_shows_something(small_atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Panels] = []

    def draw(panels: list[Panels]) -> bytes:
        drawn.extend(panels)
        return panels_png(panels)

    monkeypatch.setattr(figures, "panels_png", draw)
    labels = np.zeros((20, 32, 32), dtype=np.uint8)
    image = np.arange(20, dtype=np.float32)[:, None, None] * np.ones((32, 32), np.float32)
    geometry = Geometry((20, 32, 32), (4.0, 0.5, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    mask_png("none", Mask(labels, geometry, small_atlas, {}, None), image)
    assert len(drawn[0].masks) == MONTAGE
    labels[5:9, 4:20, 4:20] = 1
    picture = pixels(mask_png("four", Mask(labels, geometry, small_atlas, {}, None), image))
    assert list(drawn[1].masks) == [f"slice {number} of 20" for number in (6, 7, 8, 9)]
    assert drawn[1].image[:, 0, 0].tolist() == [5, 6, 7, 8]  # each over its own image
    assert drawn[1].pixel_aspect == 2
    assert shows(picture, structure_colour(1))


def test_a_frequency_plot_has_a_bar_for_what_is_seen(small_atlas: Atlas) -> None:
    seen, unseen = small_atlas.names[0], small_atlas.names[1]
    picture = pixels(frequency_png("title with $ and _", small_atlas, [{seen: 3}, {seen: 2}]))
    assert shows(picture, structure_colour(small_atlas[seen].index))
    assert not shows(picture, structure_colour(small_atlas[unseen].index))
