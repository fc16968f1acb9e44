"""Geometry of a volume: its position in the patient, and the slices that it is cut into.

In memory a volume is canonical, whatever the file's orientation: [S, H, W], its axes running as its plane says. Which
axis of the file runs which way is read off its direction cosines; an oblique file keeps its grid and is turned by whole
axes to the nearest directions. A file of two dimensions doesn't say how it lies in the patient: it is one slice, its
rows and columns as stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from textseg.contracts import Plane
from textseg.volumes.integrity import numbers

Array = npt.NDArray[Any]
Direction = tuple[float, float, float]

LEFT, RIGHT = (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0)
POSTERIOR, INFERIOR = (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)
APEX = (3**-0.5, -(3**-0.5), -(3**-0.5))  # the heart's long axis runs to the left, to anterior and downwards
LATERAL = (2**-0.5, 2**-0.5, 0.0)  # from the septum to the free wall of the left ventricle
FLOOR = (0.0, 2**-0.5, -(2**-0.5))  # from the heart's anterior wall to its diaphragmatic one

DIRECTIONS: Mapping[Plane, tuple[Direction, Direction, Direction]] = {
    "sagittal": (RIGHT, INFERIOR, POSTERIOR),
    "coronal": (POSTERIOR, INFERIOR, LEFT),
    "axial": (INFERIOR, POSTERIOR, LEFT),
    "short_axis": (APEX, FLOOR, LATERAL),
}
"""Where slices, rows and columns of each plane run, in ITK's frame: x to the left, y to posterior, z to superior."""


ASKEW = 1e-3  # by how much the product of two axes may differ from that of axes at right angles
SKEWED = "has axes that are not at right angles to each other, or not of length 1 (sheared or singular)"
SPACING_MM = (0.01, 100.0)  # what scanners give; beyond it a header has other units, or is damaged
EXTENT_MM = 2500.0  # of a whole body
ORIGIN_MM = 10_000.0  # beyond it, 32 bits do not hold a thousandth of a millimetre
VOXELS = 2**30  # 4 GiB of intensities


def skewed(axes: Array) -> bool:
    """Return True if the columns of a matrix are not of length 1 and at right angles to each other."""
    return not np.allclose(axes.T @ axes, np.eye(3), rtol=0, atol=ASKEW)


@dataclass(frozen=True)
class Geometry:
    """Position of the voxels of a file in the patient, as stored: three file axes, in ITK's order (fastest first).

    `spacing` and `origin` are in mm, in ITK's frame (x to the left, y to posterior, z to superior); `direction` is the
    3 x 3 matrix of cosines row by row, its columns the file axes. The third axis of a `flat` file is not written.
    `plane` says which slices the canonical array has, and is no part of the file. `nifti` has the fields of a NIfTI
    header that place the voxels, both transforms with their codes, so that a mask gets the same ones.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    flat: bool = False
    plane: Plane = "sagittal"
    nifti: Mapping[str, Array] | None = field(default=None, repr=False, compare=False)

    @property
    def fault(self) -> str | None:
        """The reason why no volume is read or written with this geometry, with its remedy; None if it is sound."""
        (low, high), extent = SPACING_MM, tuple(size * step for size, step in zip(self.size, self.spacing, strict=True))
        if not all(map(math.isfinite, (*self.spacing, *self.origin, *self.direction))):
            return "its spacing, origin or direction holds a value that is no finite number. Correct its header."
        if skewed(np.reshape(self.direction, (3, 3))):
            return f"it {SKEWED}. Correct its header, or resample it with the tool that it came from."
        if not (low <= min(self.spacing) and max(self.spacing) <= high):
            unit = f"a distance from {low:g} to {high:g} mm is possible. Correct its header; is its unit another one?"
            return f"its spacing is {numbers(self.spacing)} mm, and {unit}"
        if max(map(abs, self.origin)) > ORIGIN_MM:
            return f"its origin {numbers(self.origin)} mm is over {ORIGIN_MM / 1000:g} m away. Correct its header."
        if min(self.size) < 1:
            return f"its size {numbers(self.size)} holds no voxel. Export it again."
        if math.prod(self.size) > VOXELS:
            return f"it has {numbers(self.size)} voxels, and {VOXELS} are possible. Crop or resample it."
        if max(extent) > EXTENT_MM:
            return (
                f"it extends over {numbers(extent)} mm, and {EXTENT_MM:g} mm are possible. Correct the spacing in its "
                "header, or crop it."
            )
        return None

    def differences(self, second: Geometry, tolerance: float = 1e-3) -> list[str]:
        """Return the differences above `tolerance` as text (mm for spacing and origin, 1 for cosines)."""
        differences = []
        if self.flat != second.flat:
            differences.append(f"{2 if self.flat else 3} dimensions against {2 if second.flat else 3}")
        if self.plane != second.plane:
            differences.append(f"{self.plane} slices against {second.plane} ones")
        if self.size != second.size:
            differences.append(f"size {numbers(self.size)} against {numbers(second.size)}")
        for name in ("spacing", "origin", "direction"):
            ours, theirs = getattr(self, name), getattr(second, name)
            if not np.allclose(ours, theirs, rtol=0.0, atol=tolerance):
                unit = "" if name == "direction" else " mm"
                differences.append(f"{name} {numbers(ours)}{unit} against {numbers(theirs)}{unit}")
        return differences

    def grid_differences(self, second: Geometry) -> list[str]:
        """Return the differences if the voxels lie elsewhere in the patient; files may store their axes otherwise."""
        differences = self.differences(second)
        turned = self.canonical.differences(second.canonical) if differences else []
        return (differences or turned) if turned else []

    @property
    def canonical(self) -> Geometry:
        """The geometry of the canonical array: the same voxels, in columns, rows and slices."""
        cosines, origin = np.reshape(self.direction, (3, 3)), np.array(self.origin)
        columns = []
        for axis, flipped in reversed(self.axes):
            columns.append(cosines[:, axis] * (-1 if flipped else 1))
            if flipped:
                origin = origin + cosines[:, axis] * self.spacing[axis] * (self.size[axis] - 1)
        slices, rows, width = self.shape
        size, spacing = (width, rows, slices), self.spacing_mm[::-1]
        direction = tuple(np.stack(columns, axis=1).ravel().tolist())
        first = tuple(origin.tolist())
        return replace(self, size=size, spacing=spacing, origin=first, direction=direction, nifti=None)

    @property
    def axes(self) -> tuple[tuple[int, bool], ...]:
        """The file axis nearest to slices, rows and columns, and True for each that runs the opposite way.

        A short-axis stack has no anatomical axis that it is sure to be nearest to: its slices follow the axis of the
        widest spacing, and the third one where none is wider.
        """
        if self.flat:
            return (2, False), (1, False), (0, False)
        # [slices, rows, columns; file axes]
        cosines = np.array(DIRECTIONS[self.plane]) @ np.reshape(self.direction, (3, 3))
        # Of all ways to assign file axes, take the one whose axes lie nearest to the plane's directions.
        orders = list(permutations(range(3)))
        if self.plane == "short_axis":
            widest = max(reversed(range(3)), key=lambda axis: round(self.spacing[axis], 3))
            orders = [order for order in orders if order[0] == widest]

        def closeness(order: tuple[int, ...]) -> float:
            # Rounded, so that files that differ by float noise choose alike where two axes are equally near
            return round(float(np.abs(cosines[range(3), order]).sum()), 4)

        order = max(orders, key=closeness)
        return tuple((axis, bool(cosines[position, axis] < 0)) for position, axis in enumerate(order))

    @property
    def shape(self) -> tuple[int, int, int]:
        """S, H, W of the canonical array."""
        slices, rows, columns = (self.size[axis] for axis, _ in self.axes)
        return slices, rows, columns

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Slice, row and column distance of the canonical array."""
        slices, rows, columns = (self.spacing[axis] for axis, _ in self.axes)
        return slices, rows, columns


def voxel_at(geometry: Geometry, ras: tuple[float, float, float]) -> tuple[int, int, int] | None:
    """Return the voxel of the canonical array [S, H, W] at a point in mm to the right, anterior and superior.

    Returns None for a point outside the volume.
    """
    to_itk = np.array(ras) * (-1, -1, 1)  # from RAS to ITK's frame, which is LPS
    to_mm = np.reshape(geometry.direction, (3, 3)) * geometry.spacing  # its columns are the steps of the file axes
    stored = np.rint(np.linalg.solve(to_mm, to_itk - geometry.origin)).astype(int).tolist()
    if not all(0 <= index < size for index, size in zip(stored, geometry.size, strict=True)):
        return None
    slices, rows, columns = (
        geometry.size[axis] - 1 - stored[axis] if flipped else stored[axis] for axis, flipped in geometry.axes
    )
    return slices, rows, columns


def extent_mm(geometry: Geometry) -> list[tuple[str, tuple[float, float]]]:
    """Return the range of the voxels' centres on each axis of RAS, in mm: "R", "A" and "S"."""
    ends = np.array(list(product(*((0, size - 1) for size in geometry.size))))
    corners = (ends * geometry.spacing) @ np.reshape(geometry.direction, (3, 3)).T + geometry.origin
    corners = corners * (-1, -1, 1) + 0.0  # adding zero turns -0.0 into 0.0
    return [(axis, (float(side.min()), float(side.max()))) for axis, side in zip("RAS", corners.T, strict=True)]


def downward_axis(plane: Plane) -> int:
    """Return the axis of a canonical array that runs from superior to inferior. Raises ValueError where none does."""
    if INFERIOR not in DIRECTIONS[plane]:
        raise ValueError(f"No axis of {plane} slices runs from superior to inferior.")
    return DIRECTIONS[plane].index(INFERIOR)


def canonical(array: Array, geometry: Geometry) -> Array:
    """Return the canonical array [S, H, W] of an array in file order (slowest file axis first, as in SimpleITK).

    It may share the memory of that array.
    """
    _require_shape(array, geometry.size[::-1])
    turned = np.transpose(array, [2 - axis for axis, _ in geometry.axes])
    return np.ascontiguousarray(turned[_flips(geometry)])


def restore(array: Array, geometry: Geometry) -> Array:
    """Return a canonical array [S, H, W] in file order (slowest file axis first)."""
    _require_shape(array, geometry.shape)
    order = [2 - axis for axis, _ in geometry.axes]
    return np.array(np.transpose(array[_flips(geometry)], np.argsort(order)), order="C")


def _require_shape(array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"Array of shape {array.shape} where the geometry has {shape}.")


def _flips(geometry: Geometry) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if flipped else 1) for _, flipped in geometry.axes)
