"""Slices of a volume as networks read them, and the way back to the pixels of the file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from textseg.recipe.schema import PreparationSettings
from textseg.volumes.scan import Scan

PERCENTILES = (0.5, 25, 50, 75, 99.5)  # intensities beyond the lowest and the highest are clipped
BODY_SHARE = 0.1  # of the 99.5th percentile, above which a voxel is body
BODY_PIXELS = 0.02  # share of a row or column that must be body


@dataclass(frozen=True)
class SliceGeometry:
    """The box of a native slice that a prepared slice shows, in native pixels; it may reach beyond the slice."""

    top: int
    left: int
    height: int
    width: int
    native_size: tuple[int, int]  # H, W of the file's slices

    def prepare(self, image: Tensor, size: tuple[int, int], *, labels: bool) -> Tensor:
        """Resample [S, H_native, W_native] to [S, H, W]: images with a filter against aliasing, labels by vote."""
        bottom = self.top + self.height - self.native_size[0]
        right = self.left + self.width - self.native_size[1]
        box = F.pad(image, (-self.left, right, -self.top, bottom))
        return _vote(box, size) if labels else _smooth(box, size)

    def restore(self, logits: Tensor) -> Tensor:
        """Resample logits [B, K, H, W] to class indices, uint8 [B, H_native, W_native]; beyond the box is background.

        Resampling logits instead of labels keeps outlines as smooth as the pixels of the file.
        """
        height, width = self.native_size
        bottom, right = height - self.top - self.height, width - self.left - self.width
        size, slices = (self.height, self.width), []
        # Map by map: K maps of this size fit neither the cache of a CPU nor, for a batch, the memory of a small GPU.
        for maps in logits:
            enlarged = (F.interpolate(plane[None, None], size, mode="bilinear", align_corners=False) for plane in maps)
            slices.append(highest(enlarged)[1])
        return F.pad(torch.cat(slices), (self.left, right, self.top, bottom))[:, 0]


def highest(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the highest of up to 256 maps at each pixel, and its index as uint8; the first of equal ones.

    It takes one map after the other, on a CPU several times as fast as `argmax` over all of them.
    """
    maps = iter(maps)
    values = next(maps).clone()
    indices = torch.zeros_like(values, dtype=torch.uint8)
    for index, plane in enumerate(maps, start=1):
        # The last map that is higher than all before has the greatest index, so the maximum keeps it.
        torch.maximum(indices, (plane > values).to(torch.uint8) * index, out=indices)
        torch.maximum(values, plane, out=values)
    return values, indices


@dataclass(frozen=True)
class PreparedVolume:
    """The slices of one image at the size of the recipe, with the way back to its file."""

    image: Tensor  # [S, C, H, W] float32
    slice_geometry: SliceGeometry
    spacing_mm: tuple[float, float, float]  # slice, row, column distance of the prepared slices
    intensities: tuple[tuple[float, ...], ...]  # `PERCENTILES` of each channel of the file


def prepare_volume(scan: Scan, settings: PreparationSettings) -> PreparedVolume:
    """Crop, normalise and resample an image, each channel by itself, in training and in prediction alike."""
    box = find_slice_geometry(scan, settings)
    channels, intensities = [], []
    for array in scan.array:
        normalised, percentiles = normalise(array, settings)
        floor = float(normalised.min())  # beyond its edges a slice is padded with its darkest value
        channels.append(box.prepare(torch.from_numpy(normalised - floor), settings.size, labels=False) + floor)
        intensities.append(percentiles)
    (slice_mm, row_mm, column_mm), (height, width) = scan.spacing_mm, settings.size
    spacing_mm = slice_mm, row_mm * box.height / height, column_mm * box.width / width
    return PreparedVolume(torch.stack(channels, dim=1), box, spacing_mm, tuple(intensities))


def find_body(array: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of what any channel of an image [C, S, H, W] shows of the body.

    It is the whole slice where nothing stands out.
    """
    body = np.zeros(array.shape[2:], bool)
    for channel in array:
        floor = channel.min()
        body |= channel.max(axis=0) > floor + BODY_SHARE * (np.percentile(channel, PERCENTILES[-1]) - floor)
    bounds = []
    for axis in (1, 0):
        filled = np.flatnonzero(body.mean(axis=axis) > BODY_PIXELS)
        bounds.append((int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, body.shape[1 - axis]))
    (top, bottom), (left, right) = bounds
    return top, left, bottom, right


def find_slice_geometry(scan: Scan, settings: PreparationSettings) -> SliceGeometry:
    """Return the smallest box around the body that has the shape of a prepared slice, in millimetres."""
    native_height, native_width = scan.array.shape[2:]
    box = find_body(scan.array) if settings.crop == "body" else (0, 0, native_height, native_width)
    top, left, bottom, right = box
    (_, row_mm, column_mm), (height, width) = scan.spacing_mm, settings.size
    pixel_mm = max((bottom - top) * row_mm / height, (right - left) * column_mm / width)
    # Rounded first: 448.00000000000006 pixels are 448.
    box_height = math.ceil(round(height * pixel_mm / row_mm, 6))
    box_width = math.ceil(round(width * pixel_mm / column_mm, 6))
    box_top, box_left = (top + bottom - box_height) // 2, (left + right - box_width) // 2
    return SliceGeometry(box_top, box_left, box_height, box_width, (native_height, native_width))


def normalise(
    array: NDArray[np.float32], settings: PreparationSettings
) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """Scale the intensities of a volume to 0..1 (`percentiles`) or to mean 0 and deviation 1 (`zscore`).

    A constant volume becomes 0. The unit of the intensities makes no difference. Also return their `PERCENTILES`.
    """
    intensities = tuple(float(value) for value in np.percentile(array, PERCENTILES))
    low, high = intensities[0], intensities[-1]
    clipped = np.clip(array, low, high)
    zscore = settings.intensity == "zscore"
    centre, spread = (float(clipped.mean()), float(clipped.std())) if zscore else (low, high - low)
    return (clipped - centre) / (spread if high > low and spread else 1.0), intensities


def _smooth(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image[:, None], size, mode="bilinear", antialias=True)[:, 0]


def _vote(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the label with the greatest weight in each pixel, weighed as the image is; background loses a tie.

    The label at the pixel's centre would lie half a native pixel off the image wherever the ratio is even.
    """
    values = torch.unique(labels).tolist()
    values.sort(key=lambda value: value == 0)
    heaviest = torch.full((len(labels), *size), -1.0)
    result = torch.zeros_like(heaviest, dtype=labels.dtype)
    for value in values:
        weight = _smooth((labels == value).float(), size)
        wins = weight > heaviest + 1e-4  # a difference by rounding counts as a tie
        result[wins] = value
        heaviest = torch.where(wins, weight, heaviest)
    return result
