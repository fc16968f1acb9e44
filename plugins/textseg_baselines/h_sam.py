"""H-SAM (Cheng 2024, arXiv 2403.18271): the Segment Anything Model without prompts, decoded twice.

Written from the description, with SAM's image encoder from transformers. The first decoder is SAM's, with a token for
each class; the masks of the first guide the attention of the second. Ours are these choices: in the mask-guided
self-attention, the classes' maps are weighed by a softmax over positions whose mean is 1 (over the one channel that is
left, as published, it is 1 everywhere and teaches nothing); how rare a class is, is counted in the masks of the first
decoder, since a forward pass is never shown the annotation; both decoders attend in SAM's order; and no head predicts
the quality of a mask, which nothing here would train.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Batch, SegmenterOutput, Task, TextFeatures
from textseg.errors import RecipeError
from textseg.models import spread_sentence
from textseg.system import Progress
from textseg_baselines.h_sam_decoders import FirstDecoder, SecondDecoder
from textseg_baselines.sam import (
    DEVIATION,
    MEAN,
    PATCH,
    VIT_B,
    SamEncoder,
    fitting,
    read_weights,
    sam_config,
    sam_source,
)

COLOURS = 3
COARSE = 4  # pixels between two of the first decoder's, along a side


class HSAM(nn.Module):
    """SAM's frozen encoder with low-rank adapters, and two decoders; the first guides the second.

    Images of one channel are repeated to three. For two or more than three channels, the weights of SAM's first layer
    are repeated. Images are normalised as SAM's (which takes intensities from 0 to 1), and resized and padded to its
    square. Evaluated are the mean logits of both decoders, as the method does. With the defaults and 20
    classes it has 115.48 M parameters, of which 28.20 M are trained; published are 116.18 M and 28.90 M, with a 21st
    token, two heads for the quality of masks, and the encoder of the prompts that there are not.

    Args:
        task: gives C and K.
        model: SAM by its name on the hub or its folder; None for random weights.
        revision: branch, tag or commit on the hub.
        configuration: values of the vision transformer's configuration, with random weights.
        image_size: side of the square that SAM sees, in pixels.
        frozen: train only adapters and decoders; checkpoints then contain only these.
        rank: rank of the adapters on queries and values; 0 for none.
        noise: standard deviation of the noise on the rarest class's features in training, relative to theirs; less for
            other classes, none for the most frequent class.
        dropout: probability in the second decoder after the attention to the image.
        second_weight: weight of the second decoder's loss in the first epoch; the first decoder has the rest.
        decay: decay of the rest in each epoch: the weight is second_weight ** (decay ** epoch).
        pickled_weights: read weights in PyTorch's older format if there are no safetensors.

    Raises RecipeError for settings that contradict each other, and if SAM was not downloaded.
    """

    uses_text = False
    size_multiple = 1
    mean: Tensor  # [3, 1, 1], or [C, 1, 1]
    deviation: Tensor  # as `mean`
    frequencies: Tensor  # [2, D / 2], of the positions

    def __init__(
        self,
        task: Task,
        *,
        model: str | None = VIT_B,
        revision: str | None = None,
        configuration: dict[str, Any] | None = None,
        image_size: int = 512,
        frozen: bool = True,
        rank: int = 5,
        noise: float = 0.35,
        dropout: float = 0.2,
        second_weight: float = 0.6,
        decay: float = 0.99,
        pickled_weights: bool = False,
    ) -> None:
        super().__init__()
        _check(model, configuration, frozen, rank, second_weight, decay)
        source = sam_source(model, revision, pickled_weights=pickled_weights)
        config = sam_config(source, configuration or {}, image_size)
        shapes_alone = torch.get_default_device().type == "meta"
        weights = read_weights(source) if source and not shapes_alone else None

        self.image_size = image_size
        self.reads_frozen = frozen
        read = config.vision_config.num_channels = COLOURS if task.image_channels == 1 else task.image_channels
        self.repeats = read // task.image_channels
        self.first_layer = spread_sentence(COLOURS, task.image_channels) if source else None
        self.second_weight, self.decay = second_weight, decay
        self.start_epoch(0, 1)
        self.register_buffer("mean", _for_channels(MEAN, read), persistent=False)
        self.register_buffer("deviation", _for_channels(DEVIATION, read), persistent=False)

        self.encoder = SamEncoder(config.vision_config, weights, frozen=frozen, rank=rank)
        features = config.vision_config.output_channels
        positions = (image_size // PATCH) ** 2
        sizes = _decoder_sizes(config.mask_decoder_config, features)
        self.no_mask = nn.Parameter(torch.zeros(1, features, 1, 1))  # SAM's embedding of a prompt that is not there
        self.register_buffer("frequencies", torch.randn(2, features // 2))
        self.first = FirstDecoder(task.class_count, sizes)
        self.second = SecondDecoder(task.class_count, sizes, positions, noise=noise, dropout=dropout)
        if weights is not None:
            self._begin_with(weights)

    @classmethod
    def fetch(
        cls,
        *,
        progress: Progress,
        model: str | None = VIT_B,
        revision: str | None = None,
        pickled_weights: bool = False,
        **_: Any,
    ) -> str:
        """Download SAM, and return a sentence on the result. Raises RecipeError."""
        source = sam_source(model, revision, pickled_weights=pickled_weights)
        return source.fetch((), weights=True, progress=progress) if source else "SAM is random: nothing to fetch"

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """[B, C, H, W] -> logits [B, K, H, W], and those of the first decoder, a quarter as fine as SAM's square."""
        sides = self._content(image.shape[-2], image.shape[-1])
        embedding = self.encoder(self._square(image, sides)) + self.no_mask
        positions = self._positions(embedding)
        coarse, class_maps, fine_features = self.first(embedding, positions)
        prior = F.interpolate(coarse, embedding.shape[-2:], mode="bilinear", align_corners=False).float().softmax(1)
        logits = self.second(embedding, positions, class_maps, prior, fine_features)
        coarse = coarse[..., : sides[0] // COARSE, : sides[1] // COARSE]
        logits = _resized(logits[..., : sides[0], : sides[1]], image)
        if not self.training:
            logits = (logits + _resized(coarse, image)) / 2
        return SegmenterOutput(logits, deep_logits=(coarse,))

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Reduce the weight of the first decoder's loss."""
        self.share = self.second_weight ** (self.decay**epoch)

    def losses(
        self,
        output: SegmenterOutput,
        batch: Batch,
        segmentation_loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return the terms of the recipe's loss as scalars, each over both decoders."""
        (coarse,) = output.deep_logits
        mask = F.interpolate(batch.mask[:, None].float(), coarse.shape[-2:], mode="nearest-exact")[:, 0].long()
        first, second = segmentation_loss(coarse, mask), segmentation_loss(output.logits, batch.mask)
        return {name: (1 - self.share) * first[name] + self.share * second[name] for name in second}

    def _content(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of an image in SAM's square, multiples of COARSE; the longer side fills it."""
        scale = self.image_size / max(height, width) / COARSE
        return max(1, round(height * scale)) * COARSE, max(1, round(width * scale)) * COARSE

    def _square(self, image: Tensor, sides: tuple[int, int]) -> Tensor:
        """[B, C, H, W] -> [B, 3 or C, S, S], normalised, with zeros below and to the right as SAM has them."""
        if image.shape[-2:] != sides:
            image = F.interpolate(image, sides, mode="bilinear", align_corners=False, antialias=True)
        image = (image.repeat_interleave(self.repeats, dim=1) - self.mean) / self.deviation
        return F.pad(image, (0, self.image_size - sides[1], 0, self.image_size - sides[0]))

    def _positions(self, embedding: Tensor) -> Tensor:
        """Return sines and cosines of each position at SAM's random frequencies, [1, D, h, w]."""
        height, width = embedding.shape[-2:]
        rows = (torch.arange(height, device=embedding.device) + 0.5) / height
        columns = (torch.arange(width, device=embedding.device) + 0.5) / width
        places = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=-1)
        angles = 2 * math.pi * ((2 * places - 1) @ self.frequencies)  # [h, w, D / 2]
        return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)[None]

    def _begin_with(self, weights: dict[str, Tensor]) -> None:
        """Load SAM's decoder into the first decoder, except the parts for its number of masks."""
        own = FirstDecoder.CLASSES_OWN
        shared = nn.ModuleDict({name: part for name, part in self.first.named_children() if name not in own})
        self.first.load_state_dict(fitting(weights, "mask_decoder.", shared), strict=False)
        tied = ("shared_image_embedding", "prompt_encoder.shared_embedding")  # one tensor, saved under either name
        names = [f"{name}.positional_embedding" for name in tied if f"{name}.positional_embedding" in weights]
        absent = weights.get("prompt_encoder.no_mask_embed.weight")
        if not names or absent is None:
            raise RecipeError("The weights of SAM lack its prompt encoder; use those of a whole SAM.")
        self.frequencies.copy_(weights[names[0]])
        self.no_mask.data.copy_(absent[..., None, None])


def _for_channels(values: tuple[float, ...], channels: int) -> Tensor:
    """Return one of the values for each channel, [C, 1, 1], in turn."""
    return torch.tensor([values[channel % len(values)] for channel in range(channels)])[:, None, None]


def _resized(logits: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


def _decoder_sizes(config: Any, features: int) -> dict[str, int]:
    """Sizes of both transformers. SAM has 256 features, and the same heads and depth for each encoder size."""
    heads = config.num_attention_heads
    if features % (2 * heads) or features % 16:
        raise RecipeError(
            f"h_sam: SAM's output_channels is {features}, but must be a multiple of 16 and of {2 * heads}, twice the "
            "heads of its decoder."
        )
    width = config.mlp_dim * features // config.hidden_size
    return {"features": features, "heads": heads, "width": width, "depth": config.num_hidden_layers}


def _check(
    model: str | None,
    configuration: dict[str, Any] | None,
    frozen: bool,
    rank: int,
    second_weight: float,
    decay: float,
) -> None:
    if model is None and frozen:
        raise RecipeError(
            "h_sam: without `model` SAM's weights are random, and frozen ones would stay so. Write `frozen: false`, or "
            f"name a SAM, such as {VIT_B}."
        )
    if model is not None and configuration:
        raise RecipeError("h_sam: a configuration of its own needs random weights. Remove it, or write `model: null`.")
    if rank < 0:
        raise RecipeError(f"h_sam: rank is {rank}, but must not be below 0.")
    if not (0 < second_weight <= 1 and 0 < decay <= 1):
        raise RecipeError(f"h_sam: second_weight and decay are {second_weight} and {decay}, but must lie in (0, 1].")
