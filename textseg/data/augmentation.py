"""Random changes of training slices: in the fixed order of a mapping in the recipe, or in the order of its list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from textseg import contracts, randomness
from textseg.contracts import HasEnlargement, HasWindow
from textseg.data.field_of_view import View, Window, draw_window
from textseg.distortions import (
    add_bias,
    add_noise,
    blur,
    change_contrast,
    change_gamma,
    coarsen,
    draw_affine,
    plain_grid,
    resample,
    sampling_grid,
)
from textseg.errors import PluginError, RecipeError
from textseg.recipe.schema import AugmentationSettings
from textseg.registry.component import Component, cause

Place = Literal["workers", "device"]


class Augmentation(ABC):
    """Random changes of slices; every draw is a function of (seed, epoch, slice or case), so order changes nothing.

    `windows` is True if some slices show a window of the file, and `moves` if structures may leave the picture.
    `places` says where something is computed: by the loader's workers, on the device, or both.
    """

    seed: int
    windows: bool
    moves: bool
    places: frozenset[Place]

    @abstractmethod
    def window(self, native_size: tuple[int, int], *, epoch: int, key: int) -> Window | None:
        """Draw the window of a slice, or a case, in the rows and columns of its file; None for the whole picture."""

    @abstractmethod
    def enlargement(self, size: tuple[int, int], *, epoch: int, key: int) -> float:
        """Return the factor by which the areas of structures grow in slices of H x W; without that of a window."""

    @abstractmethod
    def changed(
        self, image: Tensor, mask: Tensor, *, epoch: int, key: int, view: View | None, on: Place
    ) -> tuple[Tensor, Tensor]:
        """Return image [S, C, H, W] and mask [S, H, W] with what is computed there, for all slices alike.

        With a `view` they show its window, enlarged to the whole slice, before anything else is changed.
        """

    def of_batch(
        self,
        image: Tensor,
        mask: Tensor,
        keys: Sequence[int],
        *,
        epoch: int,
        views: Sequence[View | None] | None = None,
        on: Place = "workers",
    ) -> tuple[Tensor, Tensor]:
        """Change image [B, C, H, W] and mask [B, H, W] in as many equal parts as there are keys, and views if given.

        With a key for each slice, every slice is changed by itself. With one key for a volume, its slices are changed
        as one image, so they stay aligned; only the noise differs between them.
        """
        if on not in self.places:
            return image, mask
        count = len(keys)
        chunks = zip(image.chunk(count), mask.chunk(count), keys, views or [None] * count, strict=True)
        parts = [
            self.changed(planes, labels, epoch=epoch, key=key, view=view, on=on) for planes, labels, key, view in chunks
        ]
        images, masks = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(masks)


class FixedOrder(Augmentation):
    """The changes of a mapping in a recipe: one sampling grid for all geometric changes, then changes of intensity.

    `horizontal` mirrors the columns of the image, `vertical` its rows, which reverses the order of levels.
    """

    def __init__(self, settings: AugmentationSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.windows = settings.field_of_view is not None
        self.moves = self.windows or settings.distortion > 0
        self.places = frozenset({settings.on})

    def window(self, native_size: tuple[int, int], *, epoch: int, key: int) -> Window | None:
        if self.settings.field_of_view is None:
            return None
        return draw_window(self.settings.field_of_view, native_size, randomness.field_of_view(self.seed, epoch, key))

    def enlargement(self, size: tuple[int, int], *, epoch: int, key: int) -> float:
        generator, settings = randomness.distortion(self.seed, epoch, key), self.settings
        if not settings.distortion or generator.random() >= settings.distortion:
            return 1.0
        _, zoom = draw_affine(generator, settings.rotation_degrees, settings.scale)
        return zoom * zoom

    def changed(
        self, image: Tensor, mask: Tensor, *, epoch: int, key: int, view: View | None, on: Place
    ) -> tuple[Tensor, Tensor]:
        flat, channels = image.flatten(0, 1), image.shape[1]
        planes, mask = self(flat, mask, epoch=epoch, slice_id=key, view=view, channels=channels)
        return planes.reshape(image.shape), mask

    def __call__(
        self,
        image: Tensor,
        mask: Tensor,
        *,
        epoch: int,
        slice_id: int,
        view: View | None = None,
        channels: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Change an image [C, H, W] and its mask, [H, W] or [any, H, W], all planes alike.

        The `channels` of a volume, whose planes are [S * C, H, W], keep their grid, but each has draws of its own for
        its intensities.
        """
        generator = randomness.distortion(self.seed, epoch, slice_id)
        settings, size = self.settings, (image.shape[-2], image.shape[-1])
        distorted = settings.distortion and generator.random() < settings.distortion
        if distorted or view is not None:
            grid = self.sampling_grid(generator, *size) if distorted else plain_grid(size)
            # One grid for the window and the distortion: the slice is resampled once.
            image, mask = _through(view, image, mask, grid) if view is not None else resample(image, mask, grid)
        for axis, flips in ((-1, ("horizontal", "both")), (-2, ("vertical", "both"))):
            if settings.flip in flips and generator.random() < 0.5:
                image, mask = image.flip(axis), mask.flip(axis)
        # A separate stream: the settings of the quality do not change the draws of the settings above.
        quality = randomness.image_quality(self.seed, epoch, slice_id)
        planes = image.reshape(-1, channels or len(image), *image.shape[-2:])  # [S, C, H, W]
        streams = (randomness.for_channels(stream, planes.shape[1]) for stream in (generator, quality))
        changed = [
            self.change_quality(second, self.change_intensity(first, channel))
            for channel, first, second in zip(planes.unbind(1), *streams, strict=True)
        ]
        return torch.stack(changed, dim=1).flatten(0, 1), mask

    def sampling_grid(self, generator: np.random.Generator, height: int, width: int) -> Tensor:
        """Return the source of each pixel: see `textseg.distortions.sampling_grid`."""
        settings = self.settings
        return sampling_grid(
            generator,
            (height, width),
            rotation_degrees=settings.rotation_degrees,
            scale=settings.scale,
            translation=settings.translation,
            elastic_pixels=settings.elastic_pixels,
        )

    def change_intensity(self, generator: np.random.Generator, image: Tensor) -> Tensor:
        """Change contrast and gamma and add noise, each by a random amount up to its setting."""
        settings = self.settings
        if settings.contrast:
            image = change_contrast(image, generator, settings.contrast)
        if settings.gamma:
            image = change_gamma(image, generator, settings.gamma)
        if settings.noise:
            image = add_noise(image, generator, settings.noise)
        return image

    def change_quality(self, generator: np.random.Generator, image: Tensor) -> Tensor:
        """Add the shade of a receiver coil, blur and low resolution, each by a random amount up to its setting."""
        settings = self.settings
        if settings.bias:
            image = add_bias(image, generator, settings.bias)
        if settings.blur_pixels:
            image = blur(image, settings.blur_pixels * float(generator.random()))
        if settings.low_resolution:
            image = coarsen(image, float(generator.uniform(1 / settings.low_resolution, 1)))
        return image


@dataclass(frozen=True)
class Transform:
    """An item of the list in a recipe: a component, with its probability and where it is computed."""

    component: Component
    built: contracts.Augmentation
    probability: float = 1.0
    on: Place = "workers"


class TransformList(Augmentation):
    """The changes of a list in a recipe, in its order; the key of a draw ends with the position in the list.

    Raises RecipeError for components that can't stand where they do.
    """

    def __init__(self, transforms: Sequence[Transform], seed: int) -> None:
        self.transforms, self.seed = tuple(transforms), seed
        for position, transform in enumerate(self.transforms):
            at = f"augmentation.{position}: '{transform.component.name}' of {transform.component.origin}"
            if position and isinstance(transform.built, HasWindow):
                raise RecipeError(
                    f"{at} cuts a window of the file, so it must be the first of the list. Move it there."
                )
            if transform.on == "device" and getattr(transform.built, "host_only", False):
                raise RecipeError(f"{at} can't be computed on a GPU. Remove 'on: device' here and before it.")
            if position and (self.transforms[position - 1].on, transform.on) == ("device", "workers"):
                raise RecipeError(
                    f"{at} stands after a transform that is computed on the device. Give it 'on: device' too, or "
                    "remove that from those before."
                )
        built = [transform.built for transform in self.transforms]
        self.cutting, self.enlarging = (
            [position for position, part in enumerate(built) if isinstance(part, protocol)]
            for protocol in (HasWindow, HasEnlargement)
        )
        self.windows = bool(self.cutting)
        self.moves = any(transform.built.geometric for transform in self.transforms)
        self.places = frozenset(transform.on for transform in self.transforms)

    def window(self, native_size: tuple[int, int], *, epoch: int, key: int) -> Window | None:
        for transform, generator in self._drawn(self.cutting, epoch, key):
            with _named(transform.component, epoch):
                return Window(*cast(HasWindow, transform.built).window(native_size, generator))
        return None

    def enlargement(self, size: tuple[int, int], *, epoch: int, key: int) -> float:
        factor = 1.0
        for transform, generator in self._drawn(self.enlarging, epoch, key):
            with _named(transform.component, epoch):
                factor *= cast(HasEnlargement, transform.built).enlargement(size, generator)
        return factor

    def changed(
        self, image: Tensor, mask: Tensor, *, epoch: int, key: int, view: View | None, on: Place
    ) -> tuple[Tensor, Tensor]:
        if view is not None and self.transforms[0].on == on:
            image, mask = _through(view, image, mask, plain_grid((image.shape[-2], image.shape[-1])))
        here = [position for position, transform in enumerate(self.transforms) if transform.on == on]
        for transform, generator in self._drawn(here, epoch, key):
            with _named(transform.component, epoch):
                image, mask = transform.built(image, mask, generator)
        return image, mask

    def try_out(self, image: Tensor, mask: Tensor) -> None:
        """Apply each transform once to image [S, C, H, W] and mask [S, H, W]. Raises PluginError for what is wrong."""
        for position, transform in enumerate(self.transforms):
            generator, component = randomness.transform(self.seed, 0, 0, position), transform.component
            at = f"augmentation.{position}: '{component.name}' of {component.origin}"
            try:
                moved, classes = transform.built(image, mask, generator)
                problem = _misshapen(image, mask, moved, classes) or _wrong_values(
                    image, mask, moved, classes, geometric=transform.built.geometric
                )
            except Exception as error:
                raise PluginError(f"{at} fails: {cause(error)}{component.line_of(error)}.") from error
            if problem:
                raise PluginError(f"{at} {problem}.")

    def _drawn(self, positions: Iterable[int], epoch: int, key: int) -> Iterator[tuple[Transform, np.random.Generator]]:
        """Yield the transforms at some positions that a draw applies, each with its generator."""
        for position in positions:
            generator = randomness.transform(self.seed, epoch, key, position)
            if generator.random() < self.transforms[position].probability:
                yield self.transforms[position], generator


@contextmanager
def _named(component: Component, epoch: int) -> Iterator[None]:
    """Name the component in an error that it raises in a draw."""
    try:
        yield
    except Exception as error:
        raise component.failed(error, f"in a draw of epoch {epoch + 1}") from error


def _misshapen(image: Tensor, mask: Tensor, moved: object, classes: object) -> str | None:
    """Return what is wrong with the types and shapes of an augmented image and mask; None if nothing is."""
    for name, tensor, given in (("image", moved, image), ("mask", classes, mask)):
        if not isinstance(tensor, Tensor):
            return f"gives {type(tensor).__name__} instead of the tensor of the {name}"
        if (tensor.shape, tensor.dtype, tensor.device) != (given.shape, given.dtype, given.device):
            forms = (f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')} on {t.device}" for t in (given, tensor))
            return f"turns the {name} {' into '.join(forms)}; it may change values, not shape, type and device"
    return None


def _wrong_values(image: Tensor, mask: Tensor, moved: Tensor, classes: Tensor, *, geometric: bool) -> str | None:
    """Return what is wrong with the values of an augmented image and mask; None if nothing is."""
    if not moved.isfinite().all():
        return "gives an image with NaN or infinity"
    if unknown := sorted({*torch.unique(classes).tolist()} - {0, *torch.unique(mask).tolist()}):
        return f"gives a mask with class {unknown[0]}, which was not in it; a mask is moved by nearest neighbour"
    if not geometric and not torch.equal(classes, mask):
        return "changes the mask, and its `geometric` is False"
    return None


def _through(view: View, image: Tensor, mask: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return image and mask at the positions of a sampling grid over the box of a view, as the window shows them."""
    (top, left, box_height, box_width), (height, width) = view.box, view.size
    centre = torch.tensor([(2 * left + box_width) / width - 1, (2 * top + box_height) / height - 1])
    top, left, bottom, right = view.window
    rows = slice(max(0, round(top)), min(height, max(0, round(bottom))))
    columns = slice(max(0, round(left)), min(width, max(0, round(right))))
    return resample(image, mask, grid * torch.tensor(view.scale[::-1]) + centre, (rows, columns))
