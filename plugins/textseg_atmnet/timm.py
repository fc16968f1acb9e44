"""Any backbone of timm (Wightman, https://github.com/huggingface/pytorch-image-models) by its name."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from textseg.contracts import Task
from textseg.errors import RecipeError
from textseg.models import spread_sentence, standardise
from textseg.system import HubModel, Progress, carried
from textseg_atmnet.backbones import freeze, full_size_level, look_at


class TimmEncoder(nn.Module):
    """A backbone of timm, such as resnet34, convnext_tiny or swin_tiny_patch4_window7_224; each stride gives a level.

    Needs `pip install "textseg[timm]"`. Nothing is downloaded but by `textseg fetch`. Raises RecipeError where timm is
    missing or doesn't know the model, where its weights have not been fetched, and for a model that does not take
    images of every multiple of its strides.

    Args:
        task: gives C.
        model: its name in timm, with the tag of its weights or without: resnet34.a1_in1k.
        pretrained: start from timm's weights, which read each image with mean 0 and deviation 1; the first convolution
            is adapted to C channels.
        revision: branch, tag or commit of the weights on the hub.
        stages: the maps of timm that give a level (`out_indices`); by default the last of each stride.
        full_size_channels: channels of a level at full size (two convolutions of the image); 0 leaves it out.
        pickled_weights: read weights in PyTorch's older format if there are no safetensors.
    """

    def __init__(
        self,
        task: Task,
        *,
        model: str,
        pretrained: bool = False,
        revision: str | None = None,
        stages: tuple[int, ...] | None = None,
        full_size_channels: int = 32,
        pickled_weights: bool = False,
    ) -> None:
        super().__init__()
        timm = _timm()
        options: dict[str, Any] = {"features_only": True, "in_chans": task.image_channels}
        if stages is not None:
            options["out_indices"] = stages
        with torch.device("meta"):
            try:  # attention else knows images of one size alone
                probe = _built(timm, model, options | {"dynamic_img_size": True})
                options["dynamic_img_size"] = True
            except TypeError:  # what convolutions don't know
                probe = _built(timm, model, options)
        name = f"timm: '{model}'"
        pyramid = look_at(probe, _maps, task.image_channels, every_map=stages is not None, name=name)
        options["out_indices"] = [probe.feature_info.out_indices[index] for index in pyramid.maps]
        if pretrained and not carried():
            file = _source(timm, model, revision, pickled_weights=pickled_weights).weights()[0]
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
        self.pretrained, self.backbone = pretrained, _built(timm, model, options)
        own = (getattr(probe, "pretrained_cfg", None) or {}).get("input_size", (3,))[0]
        self.first_layer = spread_sentence(own, task.image_channels) if pretrained else None  # timm spreads so, too
        freeze(self.backbone, pyramid.unused)
        self.size_multiple = pyramid.size_multiple
        self.full_size, self.features = full_size_level(task.image_channels, full_size_channels, pyramid.features)

    @classmethod
    def fetch(
        cls,
        *,
        progress: Progress,
        model: str,
        pretrained: bool = False,
        revision: str | None = None,
        pickled_weights: bool = False,
        **_: Any,
    ) -> str:
        """Download the weights for `pretrained`, and return a sentence on the result. Raises RecipeError."""
        if not pretrained:
            return f"timm: '{model}' begins with random weights: nothing to fetch"
        source = _source(_timm(), model, revision, pickled_weights=pickled_weights)
        return source.fetch((), weights=True, progress=progress)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> L maps, finest first."""
        maps = _maps(self.backbone, standardise(image) if self.pretrained else image)
        return maps if self.full_size is None else (self.full_size(image), *maps)


def _maps(backbone: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    maps = backbone(image)
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        maps = [feature.permute(0, 3, 1, 2) for feature in maps]
    return tuple(maps)


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"timm: the package '{error.name}' is not installed. Run `pip install \"textseg[timm]\"`."
        ) from error


def _built(timm: Any, model: str, options: dict[str, Any]) -> Any:
    """Return the backbone. Raises TypeError for an unknown option."""
    if not timm.is_model(model):
        raise RecipeError(f"timm: there is no model '{model}' in timm {timm.__version__}.{_nearest(timm, model)}")
    try:
        return timm.create_model(model, **options)
    except (RuntimeError, ValueError, IndexError, AssertionError, AttributeError) as error:
        cause = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise RecipeError(f"timm: '{model}' can't be built with {given}: {cause}.") from error


def _nearest(timm: Any, model: str) -> str:
    names = difflib.get_close_matches(model.partition(".")[0], timm.list_models(), n=3)
    return f" Did you mean {' or '.join(repr(name) for name in names)}?" if names else " timm.list_models() names them."


def _source(timm: Any, model: str, revision: str | None, *, pickled_weights: bool) -> HubModel:
    """Return the location of the weights on the hub."""
    known = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if known is None or not known.hf_hub_id:
        raise RecipeError(f"timm: '{model}' has no weights on the Hugging Face hub. Write `pretrained: false`.")
    return HubModel(
        known.hf_hub_id,
        revision,
        pickled_weights=pickled_weights,
        by_folder=False,
        what="Vision encoder",
        error=RecipeError,
    )
