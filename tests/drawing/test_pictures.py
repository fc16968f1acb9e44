from __future__ import annotations

import io
import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from textseg.contracts import IGNORED
from textseg.drawing.pictures import OverlayPicture, label_place, line_chart, overlay_png
from textseg.volumes.colours import structure_colour


def pixels(picture):
    with Image.open(io.BytesIO(overlay_png(picture))) as png:
        return np.asarray(png.convert("RGB")).astype(float) / 255


def near(array, colour):
    return np.abs(array - np.array(colour)).max(axis=-1) < 0.02


def square(*indices, shape=(60, 48)):
    mask = np.zeros(shape, dtype=np.int64)
    for i, index in enumerate(indices):
        mask[10 + 20 * i : 25 + 20 * i, 10:35] = index
    return mask


def test_each_panel_shows_its_own_structures():
    image = np.zeros((60, 48))
    drawn = pixels(OverlayPicture("t", image, square(3), square(0, 5), {3: "L4", 5: "L5"}))
    # Panels only: the legend below shows both.
    panels = np.array_split(drawn[: int(0.88 * len(drawn))], 3, axis=1)
    seen = [[bool(near(panel, structure_colour(index)).any()) for index in (3, 5)] for panel in panels]
    assert seen == [[False, False], [True, False], [False, True]]
    legend = drawn[int(0.92 * len(drawn)) :]
    assert near(legend, structure_colour(3)).any()
    assert near(legend, structure_colour(5)).any()


def test_ignored_pixels_are_grey_without_a_name_in_the_picture():
    image = np.zeros((60, 48))
    drawn = pixels(OverlayPicture("t", image, square(IGNORED), square(), {}))
    _, reference, _ = np.array_split(drawn[: int(0.88 * len(drawn))], 3, axis=1)
    assert near(reference[40:], (0.6, 0.6, 0.6)).any()  # the border, which is opaque
    assert not near(reference[40:], (1, 1, 1)).any()


def test_the_image_shows_unchanged_beside_the_structures():
    image = np.zeros((60, 48))
    image[:, 38:] = 1
    drawn = pixels(OverlayPicture("t", image, square(3), square(0, 5), {3: "L4", 5: "L5"}))
    white = [int(near(panel, (1, 1, 1)).sum()) for panel in np.array_split(drawn, 3, axis=1)]
    assert min(white) == pytest.approx(max(white), rel=0.02)
    assert min(white) > 10_000


@pytest.mark.parametrize(("pixel_aspect", "expected"), [(1.0, 1.25), (2.0, 2.5)])
def test_the_aspect_ratio_is_right(pixel_aspect, expected):
    mask = np.zeros((60, 48), dtype=np.int64)
    mask[5:55, 4:44] = 1  # 50 x 40
    drawn = pixels(OverlayPicture("t", np.zeros(mask.shape), mask, mask * 0, {1: "a"}, pixel_aspect))
    third = drawn.shape[1] // 3
    border = near(drawn[: int(0.9 * len(drawn)), third : 2 * third], structure_colour(1))
    rows, columns = np.flatnonzero(border.any(axis=1)), np.flatnonzero(border.any(axis=0))
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("image", [np.zeros((60, 48)), np.full((60, 48), np.nan)])
def test_dull_images_and_odd_names_are_drawn(image):
    names = {1: "_hidden $x^", 2: "<b>"}
    assert pixels(OverlayPicture("$ & _", image, square(1, 2), square(7), names)).size
    assert pixels(OverlayPicture("empty", image, square(), square(), {})).size


def test_the_same_picture_gives_the_same_bytes():
    picture = OverlayPicture("t", np.eye(20), np.eye(20, dtype=int), np.eye(20, dtype=int), {1: "a"})
    assert overlay_png(picture) == overlay_png(picture)


def test_colours_of_neighbours_are_far_apart():
    colours = [np.array(structure_colour(i)) for i in range(1, 40)]
    for i, first in enumerate(colours):
        for second in colours[i + 1 : i + 3]:
            assert np.linalg.norm(first - second) > 0.5
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours[:20], 2)) > 0.15


def test_a_name_stands_inside_its_structure():
    ring = np.hypot(*np.mgrid[-20:21, -20:21])
    bent = (ring > 14) & (ring < 18) & (np.mgrid[-20:21, -20:21][1] > 0)
    assert bent[label_place(bent)]
    islands = np.zeros((30, 30), dtype=bool)
    islands[2:4, 2:4], islands[10:21, 10:21] = True, True
    assert label_place(islands) == (15, 15)
    dot = np.zeros((5, 5), dtype=bool)
    dot[4, 0] = True
    assert label_place(dot) == (4, 0)


def points_of(svg):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.split()] for line in re.findall(r'points="([^"]*)"', svg)
    ]


def test_a_chart_is_well_formed_and_keeps_proportions():
    svg = line_chart("a & b", {"x<y": [(0, 0.0), (5, 0.5), (10, 1.0)], "z": [(0, 1.0), (10, 0.0)]})
    ElementTree.fromstring(svg)
    (first, middle, last), _ = points_of(svg)
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2), abs=0.1)
    assert last[1] < first[1]  # up is more
    assert "x&lt;y" in svg


@pytest.mark.parametrize(
    "curve",
    [
        [(0.0, 0.0)],
        [(3.0, 0.7)],
        [(0.0, 5.0), (1.0, 5.0)],
        [(0.0, -1.0), (400.0, 1e-12)],
        [(0.0, 1e6), (7.0, 1e-6)],
        [(0.0, 1e-4), (99.0, 1e-6)],
    ],
)
def test_every_point_lies_inside_the_chart(curve):
    svg = line_chart("t", {"a": curve}, mark=(*curve[-1], "best"))
    ElementTree.fromstring(svg)
    assert all(54 <= x <= 426 and 12 <= y <= 216 for x, y in points_of(svg)[0])
    assert "nan" not in svg


def test_the_axis_of_a_curve_holds_all_epochs_though_few_were_validated():
    svg = line_chart("t", {"a": [(2, 0.5)]}, epochs=[1, 2])
    labels = [float(x) for x in re.findall(r'text-anchor="middle">([\d.]+)<', svg)]
    assert (min(labels), max(labels)) == (1, 2)
