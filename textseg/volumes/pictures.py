"""PNG files: pictures of one slice, and masks whose pixels are labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from textseg.contracts import Plane
from textseg.errors import DataError
from textseg.volumes.geometry import Array, Geometry
from textseg.volumes.itk import UnreadableError

SUFFIX = ".png"
COLOURED = ("RGB", "RGBA")
GREY = {"LA": "L", "RGBA": "RGB"}  # modes of Pillow that lose nothing but transparency


def open_png(path: Path, plane: Plane, *, channels: bool = False) -> tuple[Geometry, Callable[[], Array]]:
    """Return the geometry of a picture, and the function that reads its pixels, [C, 1, H, W].

    The file says nothing of the patient, and what it says of dots per inch is about paper: pixels are 1 mm apart. Those
    of a palette are its indices. Raises UnreadableError or OSError for a damaged file, and DataError for colours
    without `channels`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            (width, height), mode = picture.size, picture.mode
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"it is no PNG file ({next(iter(str(error).splitlines()), 'damaged')})") from error
    if mode in COLOURED and not channels:
        raise DataError(f"{path} is in colour; textseg needs one number per pixel here.")
    axes = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    geometry = Geometry((width, height, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), axes, flat=True, plane=plane)
    return geometry, lambda: _pixels(path)


def _pixels(path: Path) -> Array:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            array = np.asarray(picture.convert(GREY[picture.mode]) if picture.mode in GREY else picture)
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(str(error)) from error
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    return np.moveaxis(array.reshape(1, *array.shape[:2], -1), -1, 0)


def require_picture(array: Array, path: Path) -> None:
    """Raise DataError for labels [S, H, W] that no PNG file can hold."""
    if len(array) != 1:
        raise DataError(f"{path}: a PNG file holds one slice, and this mask has {len(array)}. Choose another --format.")
    if array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: a PNG file holds labels up to 65535. Choose another --format.")


def write_png(array: Array, path: Path) -> None:
    """Write labels [1, H, W] of at most 16 bits."""
    from PIL import Image

    Image.fromarray(array[0]).save(path, "PNG")
