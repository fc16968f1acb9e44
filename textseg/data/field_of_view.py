"""Fields of view: windows of a volume, as a scan that shows only a part of the body would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textseg import distortions
from textseg.contracts import Atlas
from textseg.data.preparation import PreparedCase
from textseg.data.slice_geometry import BODY_PIXELS, BODY_SHARE
from textseg.recipe.schema import FieldOfViewSettings
from textseg.text.visibility import NAMED_SHARE

WINDOWS = 3  # places of the windows of an evaluation: upper end, middle, lower end


@dataclass(frozen=True)
class Window:
    """A cut of the rows and columns of a volume, in the pixels of its file; every slice is kept."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The index of the window in an array [S, H, W]."""
        return slice(None), slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def fixed_windows(share: float, native_size: tuple[int, int]) -> tuple[Window, ...]:
    """Return the windows of an evaluation: a share of the rows at its upper end, middle and lower end, all columns.

    `native_size` holds the rows and columns of the file. The whole picture (share 1) has one window.
    """
    rows, columns = native_size
    height = max(1, round(share * rows))
    tops = np.linspace(0, rows - height, WINDOWS).round().astype(int).tolist() if height < rows else [0]
    return tuple(Window(top, 0, height, columns) for top in tops)


def draw_window(
    settings: FieldOfViewSettings, native_size: tuple[int, int], chance: np.random.Generator
) -> Window | None:
    """Draw the window of a training slice, at any position in the picture; None where it shows the whole picture."""
    if chance.random() >= settings.probability:
        return None
    return Window(*distortions.draw_window(chance, native_size, settings.height, settings.width))


@dataclass(frozen=True)
class View:
    """A window of prepared slices, and the box that it fills when it is prepared as a file of its own.

    The box has the shape of a prepared slice, so the aspect of the picture stays; what lies in the box and outside the
    window is background. Everything is in pixels of the prepared slices, which need not be whole.
    """

    window: tuple[float, float, float, float]  # top, left, bottom, right
    box: tuple[float, float, float, float]  # top, left, height, width
    size: tuple[int, int]  # H, W of a prepared slice

    @property
    def scale(self) -> tuple[float, float]:
        """The height and width of the box as a share of the prepared slice."""
        return self.box[2] / self.size[0], self.box[3] / self.size[1]

    @property
    def area_scale(self) -> float:
        """The factor by which the area of a structure grows."""
        return 1 / (self.scale[0] * self.scale[1])


def find_body(image: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Return the pixels [H, W] of prepared slices [S, C, H, W] that show the body in some slice and channel."""
    body = np.zeros(image.shape[2:], bool)
    for channel in np.moveaxis(image, 1, 0):
        highest, floor = channel.max(axis=0).astype(np.float32), float(channel.min())
        body |= highest > floor + BODY_SHARE * (float(highest.max()) - floor)
    return body


def view_of_window(prepared: PreparedCase, window: Window, body: NDArray[np.bool_] | None) -> View:
    """Return the view of a window, with the box that `find_slice_geometry` would choose for the window as a file.

    Args:
        prepared: the case.
        window: in the pixels of its file.
        body: the result of `find_body`; None where the preparation crops nothing.
    """
    geometry, (height, width) = prepared.slice_geometry, prepared.image.shape[2:]
    # 1. The window in prepared pixels.
    row_ratio, column_ratio = height / geometry.height, width / geometry.width
    top, bottom = ((edge - geometry.top) * row_ratio for edge in (window.top, window.top + window.height))
    left, right = ((edge - geometry.left) * column_ratio for edge in (window.left, window.left + window.width))
    # 2. The body inside the window.
    rows, columns = (top, bottom), (left, right)
    if body is not None:
        inside = max(0, round(top)), max(0, round(left))
        part = body[inside[0] : max(0, round(bottom)), inside[1] : max(0, round(right))]
        bounds = [np.flatnonzero(part.mean(axis=axis) > BODY_PIXELS) for axis in (1, 0)] if part.size else []
        if bounds and len(bounds[0]) and len(bounds[1]):
            rows, columns = (
                (float(start + lines[0]), float(start + lines[-1] + 1))
                for start, lines in zip(inside, bounds, strict=True)
            )
    # 3. The smallest box around it with the shape of a prepared slice, in millimetres.
    _, row_mm, column_mm = prepared.spacing_mm
    pixel_mm = max((rows[1] - rows[0]) * row_mm / height, (columns[1] - columns[0]) * column_mm / width)
    box_height, box_width = height * pixel_mm / row_mm, width * pixel_mm / column_mm
    box = (sum(rows) - box_height) / 2, (sum(columns) - box_width) / 2, box_height, box_width
    return View((top, left, bottom, right), box, (height, width))


def named_structures(atlas: Atlas, before: Mapping[int, float], after: Mapping[int, float]) -> tuple[str, ...]:
    """Return the structures that a person names in a window, in class order.

    These are the first and the last structure of the sequence with at least `NAMED_SHARE` of their size in the window,
    everything between them, and each structure outside the sequence with that share.

    Args:
        atlas: The structures.
        before: The size of each structure in the whole volume, by class index, in the pixels of `after`.
        after: The size of each structure in the window.
    """
    shown = {s.name for s in atlas.structures if after.get(s.index, 0) >= NAMED_SHARE * before.get(s.index, 0) > 0}
    stretch = [position for position, name in enumerate(atlas.sequence) if name in shown]
    if stretch:
        shown |= set(atlas.sequence[stretch[0] : stretch[-1] + 1])
    return tuple(name for name in atlas.names if name in shown)
