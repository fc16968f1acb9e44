"""The image encoder of the Segment Anything Model (Kirillov 2023, arXiv 2304.02643), from transformers, to adapt.

At any image size: the tables of positions that come with the weights are interpolated, as H-SAM does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.errors import RecipeError, suggestion
from textseg.models import spread_channels
from textseg.registry import cause
from textseg.system import HubModel, quiet_transformers

VIT_B = "facebook/sam-vit-base"
VIT_B_REVISION = "70c1a07f894ebb5b307fd9eaaee97b9dfc16068f"
PATCH = 16  # pixels along a side of what becomes a token
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of what SAM was trained on, of intensities from 0 to 1
RANDOM_DEVIATION = (
    0.02  # of random weights; SAM's configuration says 1e-10, which only those that are replaced can bear
)


class SamEncoder(nn.Module):
    """SAM's vision transformer with its neck, and low-rank adapters (Hu 2021, arXiv 2106.09685) on queries and values.

    Args:
        config: configuration of the transformer.
        weights: weights of SAM by name; random by default.
        frozen: train only the adapters.
        rank: rank of the adapters; 0 for none.
    """

    def __init__(self, config: Any, weights: Mapping[str, Tensor] | None, *, frozen: bool, rank: int) -> None:
        super().__init__()
        build = importlib.import_module("transformers.models.sam.modeling_sam").SamVisionEncoder
        if weights is None:
            self.layers = build(config)
        else:
            with torch.device("meta"):  # its random weights would be thrown away
                self.layers = build(config)
            self.layers.load_state_dict(fitting(weights, "vision_encoder.", self.layers), assign=True)
        self.layers.requires_grad_(not frozen)
        if rank:
            for layer in self.layers.layers:
                layer.attn.qkv = LowRankAdapted(layer.attn.qkv, rank)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, S, S], S the configuration's image size, C its channels -> [B, D, S/16, S/16]."""
        # Not through the encoder's own forward, which hangs functions on its modules that can't be copied.
        encoder = self.layers
        hidden = encoder.patch_embed(image)
        if encoder.pos_embed is not None:
            hidden = hidden + encoder.pos_embed
        for layer in encoder.layers:
            hidden = layer(hidden)
        return cast(Tensor, encoder.neck(hidden))


class LowRankAdapted(nn.Module):
    """A joint projection to queries, keys and values, with trained adapters on queries and values."""

    def __init__(self, projection: nn.Linear, rank: int) -> None:
        super().__init__()
        size = projection.in_features
        self.projection = projection
        self.query = nn.Sequential(nn.Linear(size, rank, bias=False), nn.Linear(rank, size, bias=False))
        self.value = nn.Sequential(nn.Linear(size, rank, bias=False), nn.Linear(rank, size, bias=False))
        for adapter in (self.query, self.value):
            nn.init.zeros_(cast(Tensor, adapter[1].weight))  # in the beginning, SAM as it is

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., 3 D]."""
        query, key, value = self.projection(hidden).chunk(3, dim=-1)
        return torch.cat([query + self.query(hidden), key, value + self.value(hidden)], dim=-1)


def sam_source(model: str | None, revision: str | None, *, pickled_weights: bool) -> HubModel | None:
    """Return the source of SAM; None for random weights. Raises RecipeError."""
    if model is None:
        return None
    pinned = revision or (VIT_B_REVISION if model == VIT_B else None)
    return HubModel(model, pinned, pickled_weights=pickled_weights, what="SAM", error=RecipeError)


def sam_config(source: HubModel | None, changes: Mapping[str, Any], image_size: int) -> Any:
    """Return the configuration of SAM for square images. Raises RecipeError.

    Args:
        source: source of SAM; by default the sizes of ViT-B.
        changes: changed values of the vision transformer's configuration.
        image_size: S.
    """
    module: Any = importlib.import_module("transformers")
    shapes_alone = torch.get_default_device().type == "meta" and source is not None and source.name == VIT_B
    if source is None or shapes_alone:
        known = module.SamVisionConfig().to_dict()
        if unknown := [key for key in changes if key not in known]:
            raise RecipeError(f"SAM has no configuration '{unknown[0]}'.{suggestion(unknown[0], known)}")
        read = {"initializer_range": RANDOM_DEVIATION, **changes}
    else:
        read = _read_config(module, source)
    vision = read.get("vision_config", read)
    try:
        config = module.SamConfig(
            vision_config={**vision, "image_size": image_size},
            mask_decoder_config=read.get("mask_decoder_config", {}),
        )
    except Exception as error:
        # Configurations check themselves in several ways, and each means the same to a person.
        raise RecipeError(f"The configuration of SAM can't be used: {cause(error)}.") from error
    size, heads = config.vision_config.hidden_size, config.vision_config.num_attention_heads
    if config.vision_config.patch_size != PATCH:
        raise RecipeError(f"SAM's patch_size is {config.vision_config.patch_size}, but must be {PATCH}.")
    if image_size < 1 or image_size % PATCH:
        raise RecipeError(f"image_size is {image_size}, but must be a multiple of SAM's patches, {PATCH} pixels.")
    if size % heads:
        raise RecipeError(f"SAM's num_attention_heads is {heads}, but must divide its hidden_size, {size}.")
    return config


def _read_config(module: Any, source: HubModel) -> dict[str, Any]:
    try:
        with quiet_transformers():
            config = module.AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(f"The configuration of SAM '{source.name}' can't be read: {cause(error)}.") from error
    if config.model_type != "sam":
        raise RecipeError(
            f"'{source.name}' is of the kind '{config.model_type}', not sam. Name a SAM, such as {VIT_B}."
        )
    return cast("dict[str, Any]", config.to_dict())


def read_weights(source: HubModel) -> dict[str, Tensor]:
    """Return all tensors of SAM by name, from this machine only. Raises RecipeError."""
    module: Any = importlib.import_module("transformers")
    whole: nn.Module = source.load(module.SamModel, module.SamConfig(**_read_config(module, source)))
    return whole.state_dict()


def fitting(weights: Mapping[str, Tensor], prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a SAM module, with position tables interpolated to its image size. Raises RecipeError."""
    fitted = {}
    for name, wanted in module.state_dict().items():
        tensor = weights.get(prefix + name)
        if tensor is None:
            raise RecipeError(
                f"The weights of SAM lack '{prefix}{name}'; it would be random. Use those of a whole SAM."
            )
        if tensor.shape != wanted.shape and name == "patch_embed.projection.weight":
            tensor = spread_channels({name: tensor}, module)[name]
        if tensor.shape != wanted.shape and name.endswith("pos_embed"):
            rows = F.interpolate(tensor.permute(0, 3, 1, 2), wanted.shape[1:3], mode="bilinear")
            tensor = rows.permute(0, 2, 3, 1).contiguous()
        elif tensor.shape != wanted.shape and "rel_pos" in name:
            tensor = F.interpolate(tensor.T[None], len(wanted), mode="linear")[0].T.contiguous()
        if tensor.shape != wanted.shape:
            shapes = tuple(tensor.shape), tuple(wanted.shape)
            raise RecipeError(
                f"The weights of SAM don't fit its configuration: '{prefix}{name}' is {shapes[0]}, not {shapes[1]}."
            )
        fitted[name] = tensor
    return fitted
