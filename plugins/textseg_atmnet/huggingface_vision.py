"""Any vision backbone of the transformers library: Swin, ConvNeXt, DINOv2, ResNet, PVT and others."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from textseg.contracts import Task
from textseg.errors import RecipeError, TextsegError, suggestion
from textseg.models import spread_channels, spread_sentence, standardise
from textseg.system import HubModel, Progress, quiet_transformers
from textseg_atmnet.backbones import freeze, full_size_level, look_at

BACKBONES = "transformers.models.auto.modeling_auto"  # the module that lists them
HOOKED = "_output_capturing_hooks_installed"
DERIVED = ("out_features", "out_indices", "stage_names")  # from the depth, which `configuration` may change


class HuggingFaceVision(nn.Module):
    """A backbone by its kind, by its name on the Hugging Face hub, or from a folder; each stride gives a level.

    Images of one channel go to a backbone of three, as pretrained ones are, three times. Nothing is downloaded but by
    `textseg fetch`. Raises RecipeError where a model has not been fetched, is no backbone, or does not take images of
    every multiple of its strides.

    Args:
        task: gives C.
        model: a kind that transformers knows, such as swin, convnext or dinov2, with random weights; a name on the
            hub; or a folder.
        pretrained: start from the weights of the hub or the folder, which read each image with mean 0 and deviation 1;
            without it only the configuration is used.
        revision: branch, tag or commit on the hub.
        configuration: values of the model's configuration, such as {embed_dim: 48, depths: [2, 2, 2, 2]}.
        stages: the stages that give a level, 0 is the stem; by default the last of each stride. A vision transformer
            has one stride, so several stages give as many levels of one size.
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
        configuration: dict[str, Any] | None = None,
        stages: tuple[int, ...] | None = None,
        full_size_channels: int = 32,
        pickled_weights: bool = False,
    ) -> None:
        super().__init__()
        transformers: Any = importlib.import_module("transformers")
        source = _source(model, revision, pickled_weights=pickled_weights)
        name = f"huggingface_vision: '{model}'"
        if source is None and pretrained:
            raise RecipeError(
                f"{name} is a kind of model, and no weights belong to it. Write `pretrained: false`, or name a model "
                "of the hub, such as microsoft/swin-tiny-patch4-window7-224."
            )
        config = _configured(transformers, model, source, configuration or {})
        given = read = getattr(config, "num_channels", 3)  # of the weights, and of the backbone
        if hasattr(config, "num_channels") and (not pretrained or task.image_channels != 1):
            read = config.num_channels = task.image_channels
        if read != task.image_channels and task.image_channels != 1:
            raise RecipeError(
                f"{name} takes images of {read} channels, and these have {task.image_channels}. Use another encoder."
            )
        self.pretrained = pretrained
        self.repeats = read // task.image_channels
        self.first_layer = spread_sentence(given, task.image_channels) if pretrained else None
        try:
            config.out_indices = list(range(len(config.stage_names)) if stages is None else stages)
        except ValueError as error:
            raise RecipeError(f"{name} has the stages 0 to {len(config.stage_names) - 1}, not {stages}.") from error

        with torch.device("meta"):
            probe = _random(transformers, config, name)
        pyramid = look_at(probe, self._maps, task.image_channels, every_map=stages is not None, name=name)
        config.out_indices = [config.out_indices[index] for index in pyramid.maps]
        self.backbone = (
            _pretrained(config, source, given) if pretrained and source else _random(transformers, config, name)
        )
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
        """Download configuration and, for `pretrained`, weights; return a message. Raises RecipeError."""
        source = _source(model, revision, pickled_weights=pickled_weights)
        if source is None:
            return f"Vision encoder '{model}' is a kind of model with random weights: nothing to fetch"
        return source.fetch((), weights=pretrained, progress=progress)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> L maps, finest first."""
        maps = self._maps(self.backbone, standardise(image) if self.pretrained else image)
        return maps if self.full_size is None else (self.full_size(image), *maps)

    def __getstate__(self) -> object:
        """Return the state to copy and pickle, without the local functions that transformers adds at the first call.

        transformers adds them again at the next call.
        """
        for module in self.backbone.modules():
            for key, hook in list(module._forward_hooks.items()):
                if getattr(hook, "__module__", None) == "transformers.utils.output_capturing":
                    del module._forward_hooks[key]
            if hasattr(module, HOOKED):
                setattr(module, HOOKED, False)
        return dict(self.__dict__)

    def _maps(self, backbone: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(backbone(image.repeat_interleave(self.repeats, dim=1)).feature_maps)


def _source(model: str, revision: str | None, *, pickled_weights: bool) -> HubModel | None:
    """Return the source of the model; None for a kind of model, which has no slash."""
    if "/" not in model and not model.startswith((".", "~")):
        return None
    return HubModel(model, revision, pickled_weights=pickled_weights, what="Vision encoder", error=RecipeError)


def _configured(transformers: Any, model: str, source: HubModel | None, changes: dict[str, Any]) -> Any:
    """Return the model's configuration with the changes of the recipe."""
    table: Any = importlib.import_module(BACKBONES).MODEL_FOR_BACKBONE_MAPPING_NAMES
    known = [kind for kind in table if kind != "timm_backbone"]
    if source is None and model not in known:
        raise RecipeError(
            f"huggingface_vision: '{model}' is no kind of backbone.{suggestion(model, known)} Or name a model of the "
            "hub, owner/name, or a folder."
        )
    read = transformers.AutoConfig
    try:
        with quiet_transformers():
            plain = (
                read.for_model(model)
                if source is None
                else read.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
            )
            if unknown := [key for key in changes if not hasattr(plain, key)]:
                possible = suggestion(unknown[0], plain.to_dict())
                raise RecipeError(f"huggingface_vision: '{model}' has no configuration '{unknown[0]}'.{possible}")
            stated = {key: value for key, value in plain.to_dict().items() if key not in DERIVED}
            config = type(plain).from_dict(stated | changes)
    except TextsegError:
        raise
    except Exception as error:
        # Configurations check themselves in several ways, and each means the same to a person.
        cause = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(f"huggingface_vision: the configuration of '{model}' can't be used: {cause}.") from error
    if config.model_type not in known:
        raise RecipeError(
            f"huggingface_vision: '{model}' is of the kind '{config.model_type}', which is no backbone."
            f"{suggestion(config.model_type, known)}"
        )
    return config


def _random(transformers: Any, config: Any, name: str) -> nn.Module:
    try:
        built: nn.Module = transformers.AutoBackbone.from_config(config, dtype=torch.float32)
    except Exception as error:
        # Whatever a configuration makes impossible shows here, as any kind of error.
        raise RecipeError(f"{name} can't be built with this configuration: {' '.join(str(error).split())}.") from error
    return built


def _pretrained(config: Any, source: HubModel, channels: int) -> nn.Module:
    """Return the backbone with its weights, which are searched on this machine only and read `channels` channels."""
    # Not through AutoBackbone, which asks the hub first.
    backbone = importlib.import_module(BACKBONES).MODEL_FOR_BACKBONE_MAPPING[type(config)]
    # The norms of its maps are the backbone's own: weights for classification don't have them.
    if getattr(config, "num_channels", channels) == channels:
        built: nn.Module = source.load(backbone, config, own="norms.")
        return built
    stated = copy.deepcopy(config)
    stated.num_channels = channels
    spread: nn.Module = backbone(config)
    spread.load_state_dict(spread_channels(source.load(backbone, stated, own="norms.").state_dict(), spread))
    return spread
