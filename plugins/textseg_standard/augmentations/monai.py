"""The random transforms of MONAI by their names."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, RandomizableTransform
from monai.transforms.intensity import array as intensity
from monai.transforms.smooth_field import array as smooth_field
from monai.transforms.spatial import array as spatial
from monai.utils import TransformBackends
from torch import Tensor

from textseg.errors import RecipeError
from textseg.registry import cause
from textseg_standard.augmentations.library_transform import LibraryTransform
from textseg_standard.by_name import builds_by_name

MODES = ("mode", "grid_mode")  # settings that name an interpolation
OURS = ("prob", "lazy", "device", "dtype")  # what no recipe may set
MOVING = {*spatial.__all__, "RandSmoothDeform"} - {"RandSimulateLowResolution"}


def known_transforms() -> dict[str, Any]:
    """Return the random transforms of MONAI that change single images in two dimensions."""
    classes = {name: getattr(module, name) for module in (intensity, smooth_field, spatial) for name in module.__all__}
    return {
        name: builder
        for name, builder in classes.items()
        if issubclass(builder, RandomizableTransform)
        and not inspect.isabstract(builder)
        and "prob" in inspect.signature(builder).parameters
        and "3D" not in name
    }


@builds_by_name(known_transforms, without=OURS)
class Monai(LibraryTransform):
    """A random transform of MONAI by its name, such as RandGaussianSmooth or RandAffine, with MONAI's settings.

    Spatial transforms move the mask by nearest neighbour. Transforms for NumPy arrays run in main memory only. Raises
    RecipeError for settings that MONAI refuses.

    Args:
        name: the class in `monai.transforms`, without the "d" of transforms of dictionaries.
        settings: further settings of the class; `probability` of the recipe replaces its `prob`.
    """

    def __init__(self, *, name: str, **settings: Any) -> None:
        builder = known_transforms()[name]
        self.geometric, self.host_only = name in MOVING, TransformBackends.TORCH not in builder.backend
        nearest = {mode: "nearest" for mode in MODES if mode in inspect.signature(builder).parameters}
        try:
            self.of_image, self.of_mask = (builder(prob=1.0, **settings | more) for more in ({}, nearest))
        except Exception as error:
            raise RecipeError(f"augmentation: MONAI refuses the settings of {name}: {cause(error)}.") from error

    def applied(self, planes: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        changed = _drawn(self.of_image, planes, seed)
        if self.geometric:
            mask = _drawn(self.of_mask, mask.float(), seed).round().to(mask.dtype)
        return changed, mask


def _drawn(transform: Any, planes: Tensor, seed: int) -> Tensor:
    """Return planes changed by a transform that draws from a seed."""
    shared, Randomizable.R = Randomizable.R, np.random.RandomState(seed)  # of transforms that a call builds inside it
    try:
        transform.set_random_state(seed=seed)
        changed = transform(planes.clone())  # some change it in place
    finally:
        Randomizable.R = shared
    tensor: Tensor = torch.as_tensor(changed.as_tensor() if hasattr(changed, "as_tensor") else changed)
    return tensor.to(planes.device, planes.dtype)
