"""Images with one or several channels, such as T1 and T2 of one examination, on one grid."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from textseg.contracts import Plane
from textseg.errors import DataError
from textseg.volumes.files import Readable, Volume, file_hash, read_channels, write_image
from textseg.volumes.geometry import Array, Geometry
from textseg.volumes.itk import sitk

ONE = "image"  # the name of the only channel of an image without named channels


@dataclass(frozen=True)
class Scan:
    """A canonical image: `array` [C, S, H, W], `spacing_mm` (slice, row and column distance), geometry of its grid."""

    array: Array = field(repr=False)
    channel_names: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    geometry: Geometry


def channels_of(image: Readable | Mapping[str, Readable]) -> Mapping[str, Readable]:
    """Return each channel by its name."""
    return image if isinstance(image, Mapping) else {ONE: image}


def read_scan(
    image: Readable | Volume | Mapping[str, Readable], plane: Plane = "sagittal", *, resample: bool = False
) -> Scan:
    """Read an image, or all channels of one, cut into slices of that plane.

    Channels on other grids than the first are refused, or resampled onto its grid with `resample`: linearly, and as
    dark as their darkest voxel where they show nothing. Raises DataError as `read_volume` does.
    """
    if isinstance(image, Volume):
        return Scan(image.array[None], (ONE,), image.spacing_mm, image.geometry)
    arrays: list[Array] = []
    names: list[str] = []
    first: tuple[str, Geometry] | None = None
    for name, path in channels_of(image).items():
        volume = read_channels(path, plane)
        array = volume.array
        if first is None:
            first = f"'{name}' ('{path}')", volume.geometry
        elif differences := first[1].grid_differences(volume.geometry):
            if not resample:
                raise DataError(
                    f"Channel '{name}' ('{path}') does not lie on channel {first[0]}: {'; '.join(differences)}. "
                    "Resample it, or write preparation.resample_channels: true."
                )
            array = np.stack([_resampled(part, volume.geometry, first[1]) for part in array])
        arrays.append(array)
        numbered = len(array) > 1
        names += [f"{name} {index}" if numbered else name for index in range(len(array))]
    assert first is not None  # a mapping without channels is no image
    together = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return Scan(together, tuple(names), first[1].spacing_mm, first[1])


def read_picture(image: Readable | Mapping[str, Readable], plane: Plane = "sagittal") -> Volume:
    """Read the first channel of an image, which pictures show, as `read_volume` does."""
    volume = read_channels(next(iter(channels_of(image).values())), plane)
    return replace(volume, array=volume.array[0])


def scan_hash(image: Readable | Mapping[str, Readable]) -> str:
    """Return the SHA-256 of the content of an image: that of its file, or of those of its channels in their order."""
    hashes = [file_hash(path) for path in channels_of(image).values()]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def write_picture(volume: Volume, path: Path) -> None:
    """Write an image [S, H, W] to a file, on the same grid. Raises DataError."""
    image = _itk_image(volume.array, volume.geometry.canonical)
    write_image(image[:, :, 0] if volume.geometry.flat else image, path)


def _resampled(array: Array, geometry: Geometry, target: Geometry) -> Array:
    """Return a channel [S, H, W] on another grid."""
    image = _itk_image(array, geometry.canonical)
    grid = _itk_image(np.zeros(target.shape, np.uint8), target.canonical)
    onto = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, float(array.min()), sitk.sitkFloat32)
    resampled: Array = sitk.GetArrayFromImage(onto)
    return resampled


def _itk_image(array: Array, canonical: Geometry) -> Any:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(canonical.spacing)
    image.SetOrigin(canonical.origin)
    image.SetDirection(canonical.direction)
    return image
