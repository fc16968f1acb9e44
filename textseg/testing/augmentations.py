"""Checks of augmentations: keyed changes of image and mask."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textseg.contracts import HasEnlargement, HasWindow
from textseg.testing.conformance import Subject, check
from textseg.testing.promises import promise
from textseg.testing.surroundings import undisturbed

KIND = "augmentation"
DRAWS = 6
TOLERANCE = 1.3  # of an enlargement: a grid of pixels and a smooth field change areas a little


def slices(subject: Subject, count: int = 1, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Return image [S, C, H, W] and mask [S, H, W] of equal slices: two bright structures on a dark background."""
    height, width = subject.image_size
    mask = torch.zeros(count, height, width, dtype=torch.uint8)
    mask[:, height // 4 : height // 2, width // 4 : width - width // 4] = 1
    mask[:, height // 2 : height - height // 4, width // 3 : width // 2] = 2
    image = (mask > 0).float() * 0.8 + 0.1
    texture = torch.rand(height, width, generator=torch.Generator().manual_seed(0))
    return (image + 0.05 * texture)[:, None].repeat(1, channels, 1, 1), mask


def draws() -> Iterator[np.random.Generator]:
    """Yield generators as the core makes them."""
    yield from (np.random.default_rng((2025, 0, key)) for key in range(DRAWS))


@check("construction", KIND, fundamental=True)
def _construction(subject: Subject) -> None:
    """Check that the component can be called and says if it moves structures."""
    transform = subject.build()
    promise(
        callable(transform), "an object that can be called with image, mask and generator", type(transform).__name__
    )
    geometric = getattr(transform, "geometric", None)
    promise(isinstance(geometric, bool), "an attribute 'geometric' that is True or False", geometric)


@check("surroundings", KIND, tolerant=True)
def _surroundings(subject: Subject) -> None:
    """Construction and calls touch no file, no network and no global random state."""
    before = torch.get_rng_state()
    with undisturbed("construction", allowed=subject.settings.values()):
        transform = subject.build()
    for generator in draws():
        with undisturbed("a call"):
            transform(*slices(subject), generator)
    promise(torch.equal(before, torch.get_rng_state()), "torch's random state as before", "a change of it")


@check("pictures", KIND, fundamental=True)
def _pictures(subject: Subject) -> None:
    """Check shapes, types and finite values, and that the arguments stay as they are."""
    transform = subject.build()
    for count, channels in ((1, 1), (3, 1), (2, 2)):
        for generator in draws():
            image, mask = slices(subject, count, channels)
            given = image.clone(), mask.clone()
            changed = transform(image, mask, generator)
            whole = isinstance(changed, tuple) and len(changed) == 2
            promise(whole, "a tuple of image and mask", type(changed).__name__)
            for name, tensor, before in zip(("image", "mask"), changed, given, strict=True):
                promise(isinstance(tensor, Tensor), f"a tensor of the {name}", type(tensor).__name__)
                promise(_form(tensor) == _form(before), f"the {name} as {_form(before)}", _form(tensor))
            promise(bool(changed[0].isfinite().all()), "an image with finite values", "NaN or infinity")
            same = torch.equal(image, given[0]) and torch.equal(mask, given[1])
            promise(same, "arguments that stay as they are", "a change in place; work on a copy")


@check("keyed", KIND)
def _keyed(subject: Subject) -> None:
    """Check that equal generators give equal results, whatever was called or drawn before, also in another process."""
    image, mask = slices(subject)
    transform = subject.build()
    earlier = [transform(image, mask, generator) for generator in draws()]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    again = subject.build()
    backwards = [again(image, mask, generator) for generator in reversed(list(draws()))]
    for before, after in zip(earlier, reversed(backwards), strict=True):
        equal = all(torch.equal(first, second) for first, second in zip(before, after, strict=True))
        promise(equal, "equal results for equal generators", "other results; draw everything from the generator")


@check("classes", KIND)
def _classes(subject: Subject) -> None:
    """Check that the mask keeps its classes, that structures move with the image, and that slices move alike."""
    transform = subject.build()
    for generator in draws():
        image, mask = slices(subject, 3)
        moved, classes = transform(image, mask, generator)
        unknown = {*torch.unique(classes).tolist()} - {0, 1, 2}
        promise(not unknown, "a mask of the classes 0, 1 and 2 that it got", sorted(unknown))
        if not transform.geometric:
            promise(torch.equal(classes, mask), "an equal mask, since geometric is False", "a change of it")
            continue
        promise(bool((classes == classes[:1]).all()), "equal masks of equal slices: one draw for all", "different ones")
        shown = classes > 0
        if shown.any() and not shown.all():
            contrast = float(moved[:, 0][shown].mean() - moved[:, 0][~shown].mean())
            promise(contrast > 0.2, "structures that move with the image", f"a contrast of {contrast:.2f} in the mask")


@check("areas", KIND)
def _areas(subject: Subject) -> None:
    """Check that the enlargement is that of the mask, and that a window lies in its file."""
    transform = subject.build()
    image, mask = slices(subject)
    mask = _centre(mask)
    for first, second in zip(draws(), draws(), strict=True):
        _, classes = transform(image, mask, second)
        if isinstance(transform, HasEnlargement):
            factor: Any = transform.enlargement(subject.image_size, first)
            promise(isinstance(factor, float) and factor > 0, "an enlargement above 0", factor)
            area = float((classes > 0).sum() / (mask > 0).sum())
            near = 1 / TOLERANCE < area / factor < TOLERANCE
            promise(near, f"an enlargement like that of the mask, {area:.2f}", f"{factor:.2f}")
        if isinstance(transform, HasWindow):
            top, left, height, width = transform.window((90, 70), first)
            inside = 0 <= top <= top + height <= 90 and 0 <= left <= left + width <= 70 and height * width > 0
            promise(inside, "a window inside a file of 90 x 70", (top, left, height, width))


def _form(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _centre(mask: Tensor) -> Tensor:
    """Return a mask with one structure in the middle, which a distortion hardly moves out of the picture."""
    height, width = mask.shape[-2:]
    result = torch.zeros_like(mask)
    result[:, height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8] = 1
    return result


CHECKS = (_surroundings, _construction, _pictures, _keyed, _classes, _areas)
