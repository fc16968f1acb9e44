"""Reader of two-dimensional images: images/ and masks/ with the same names, PNG files or NumPy's npz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.contracts import ArrayImage, Case, Pixels
from textseg.errors import DataError
from textseg.volumes import read_labels, read_scan
from textseg_folders.nifti_folder import NiftiFolder


class ImageFolder(NiftiFolder):
    """A folder with images/ and masks/ of single slices, PNG or npz, in which each mask has the name of its image.

    A mask holds one label for each pixel; pixels of a palette are its indices. An npz file has one array [H, W], or
    [C, H, W] of an image with channels; of several arrays, the one called `image` or `mask`. `spacing_mm` is the
    distance of rows and columns, else 1 mm. All other settings are those of `nifti_folder`. Raises DataError.
    """

    suffixes = (".png", ".npz")
    formats = "PNG or npz"

    def __init__(
        self,
        *,
        folder: str,
        atlas: str | None = None,
        labels: dict[int, str] | str | None = None,
        images: dict[str, str] | str = "images",
        masks: str = "masks",
        channel_suffixes: dict[str, str] | None = None,
        patient_pattern: str | None = None,
        spacing_mm: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(
            folder=folder,
            atlas=atlas,
            labels=labels,
            images=images,
            masks=masks,
            channel_suffixes=channel_suffixes,
            patient_pattern=patient_pattern,
        )
        if spacing_mm is not None and min(spacing_mm) <= 0:
            raise DataError(f"dataset.spacing_mm: {list(spacing_mm)} must be above 0 (rows, columns).")
        self.spacing_mm = spacing_mm

    def cases(self) -> Sequence[Case]:
        """Return every image, sorted by name; `mask` is None without a mask."""
        return [
            replace(
                case,
                image={name: self._pixels(pixels, "image") for name, pixels in case.channels.items()}
                if isinstance(case.image, dict)
                else self._pixels(case.first, "image"),
                mask=None if case.mask is None else self._pixels(case.mask, "mask"),
            )
            for case in super().cases()
        ]

    def _pixels(self, path: Pixels, kind: str) -> Pixels:
        """Return a PNG file as it is where the spacing is 1 mm, and everything else as an array."""
        if not isinstance(path, Path) or (path.suffix.lower() == ".png" and self.spacing_mm is None):
            return path
        return ArrayImage(str(path), partial(_load, path, kind), (1.0, *(self.spacing_mm or (1.0, 1.0))))


def _load(path: Path, kind: str) -> NDArray[Any]:
    """Return an image [C, 1, H, W] or a mask [H, W]. Raises DataError."""
    if path.suffix.lower() == ".png":
        return read_labels(path).array if kind == "mask" else read_scan(path).array
    with np.load(path) as arrays:
        names = list(arrays)
        if kind not in names and len(names) != 1:
            raise DataError(f"{path} has the arrays {', '.join(names)}; one of several must be called '{kind}'.")
        array: NDArray[Any] = arrays[kind if kind in names else names[0]]
    if kind == "image" and array.ndim == 3 and array.shape[0] > array.shape[2]:
        raise DataError(f"{path}: its shape {array.shape} must be [H, W] or [C, H, W], channels first.")
    return array[:, None] if kind == "image" and array.ndim == 3 else array
