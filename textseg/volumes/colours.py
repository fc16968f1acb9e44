"""The colours of structures, in pictures and in mask files with colours."""

from __future__ import annotations

import colorsys


def structure_colour(index: int) -> tuple[float, float, float]:
    """Red, green, blue in 0..1 of class `index`; the same in every picture, far from that of its neighbours."""
    # Steps of the golden ratio never come close to an earlier hue, and three brightnesses part what is left.
    hue = (index * 0.61803398875) % 1.0
    saturation, value = ((0.85, 1.0), (0.5, 1.0), (0.95, 0.72))[index % 3]
    return colorsys.hsv_to_rgb(hue, saturation, value)
