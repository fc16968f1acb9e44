"""Fields of view: windows of a volume, as a scan that shows only a part of the body would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from textseg.contracts import Atlas

WINDOWS = 3  # places of the windows of an evaluation: upper end, middle, lower end
NAMED_SHARE = 0.3  # share of its voxels that a structure needs inside a window to be named and scored


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
