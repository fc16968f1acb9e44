from __future__ import annotations

import io

import numpy as np
from PIL import Image

from textseg.drawing.model_pictures import PixelPlaces, ProbabilityMaps, pixel_png, probability_png
from textseg.volumes.colours import structure_colour


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def line(value: float, *, where: int = 5) -> ProbabilityMaps:
    probability = np.zeros((40, 30))
    probability[where : where + 10, 5:25] = value
    return ProbabilityMaps("a $method$", np.full((40, 30), 7.0), {"L4": probability}, {"L4": probability > 0})


def test_probable_places_are_bright_and_others_show_the_image() -> None:
    unlikely, likely = pixels(probability_png("t", [line(0.0)])), pixels(probability_png("t", [line(1.0)]))
    assert unlikely.shape == likely.shape
    changed = np.abs(unlikely - likely).sum(axis=2) > 60
    share = changed.sum() / (changed.any(axis=1).sum() * changed.any(axis=0).sum())
    assert share > 0.9  # one block, where the probability is
    assert likely[changed].mean(axis=0)[0] > 200  # inferno's end: red and green high
    assert (pixels(probability_png("t", [line(0.5)])) != likely).any()


def test_a_line_for_each_method() -> None:
    single, double = (
        pixels(probability_png("t", [line(1.0)])),
        pixels(probability_png("t", [line(1.0), line(1.0, where=20)])),
    )
    assert double.shape[0] > 1.7 * single.shape[0]
    assert double.shape[1] == single.shape[1]


def test_pixels_have_the_colour_of_their_structure() -> None:
    places = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    image = pixels(pixel_png("t", [PixelPlaces("m", "4 logits", places, np.array([0, 3, 3, 5]))], {3: "L4", 5: "SC"}))

    def area(index: int) -> int:
        colour = np.round(255 * np.array(structure_colour(index)))
        return int((np.abs(image - colour).sum(axis=2) < 12).sum())

    assert area(3) > area(5) > 0
    assert area(7) == 0
