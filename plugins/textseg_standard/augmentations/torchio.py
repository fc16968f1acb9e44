"""The random transforms of torchio (Perez-Garcia et al. 2021, https://torchio.org) by their names."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import Tensor

from textseg.errors import RecipeError
from textseg.registry import cause
from textseg_standard.augmentations.library_transform import LibraryTransform
from textseg_standard.by_name import builds_by_name

UNUSABLE = {"RandomLabelsToImage"}  # it makes an image from the mask


def known_transforms() -> dict[str, Any]:
    """Return the random transforms of torchio. Raises RecipeError where it is missing."""
    return {
        name: builder
        for name, builder in vars(_torchio()).items()
        if inspect.isclass(builder) and name.startswith("Random") and name not in UNUSABLE
    }


@builds_by_name(known_transforms, without=())
class TorchIO(LibraryTransform):
    """A random transform of torchio by its name, such as RandomMotion or RandomAffine, with torchio's settings.

    Needs `pip install "textseg[torchio]"`. A slice is an image of depth 1, and lengths are in pixels. Spatial
    transforms move the mask by nearest neighbour. It runs in main memory. Raises RecipeError where torchio is missing,
    and for settings that it refuses.

    Args:
        name: the class in `torchio`.
        settings: further settings of the class; `probability` of the recipe replaces its `p`.
    """

    host_only = True

    def __init__(self, *, name: str, **settings: Any) -> None:
        self.torchio, builder = _torchio(), known_transforms()[name]
        self.geometric = issubclass(builder, self.torchio.SpatialTransform)
        try:
            self.transform = builder(p=1.0, **settings)
        except Exception as error:
            raise RecipeError(f"augmentation: torchio refuses the settings of {name}: {cause(error)}.") from error

    def applied(self, planes: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        image = self.torchio.ScalarImage(tensor=planes[..., None])
        changed = self.transform(self.torchio.Subject(image=image, mask=self.torchio.LabelMap(tensor=mask[..., None])))
        return changed.image.data[..., 0].to(planes.dtype), changed.mask.data[..., 0].to(mask.dtype)


def _torchio() -> Any:
    try:
        return importlib.import_module("torchio")
    except ImportError as error:
        raise RecipeError(f'torchio is missing ({cause(error)}): pip install "textseg[torchio]".') from error
