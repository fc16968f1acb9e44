"""ConvNeXt (Liu 2022, arXiv 2201.03545) from transformers: the image encoder of the networks with guide decoders."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel

from textseg.errors import RecipeError
from textseg.models import spread_channels, spread_sentence, standardise
from textseg.system import HubModel, Progress

STEM_STRIDE = 4


class ConvNeXt(nn.Module):
    """A pyramid with strides 4, 8, 16 and so on, without the classification layers.

    Images of one channel go to weights for colour images three times; for other channels the weights are repeated.
    Pretrained weights read each image with mean 0 and deviation 1, as they have learned to.

    Args:
        image_channels: C.
        widths: C_l, finest first; the tiny one has 96, 192, 384 and 768.
        depths: blocks in each level; the tiny one has 3, 3, 9 and 3.
        weights: source of the weights; random by default.

    Raises RecipeError for weights that are missing or belong to another model.
    """

    def __init__(self, image_channels: int, widths: Sequence[int], depths: Sequence[int], weights: HubModel | None):
        super().__init__()
        self.first_layer: str | None = None
        sizes = {"widths": list(widths), "depths": list(depths)}
        if weights is None:
            config = ConvNextConfig(
                num_channels=image_channels, hidden_sizes=list(widths), depths=list(depths), num_stages=len(widths)
            )
            model = ConvNextModel(config)
        else:
            config = _configuration(weights)
            stated = {"widths": list(config.hidden_sizes or ()), "depths": list(config.depths or ())}
            if stated != sizes:
                lines = ", ".join(f"{name}: {value}" for name, value in stated.items())
                raise RecipeError(f"weights: '{weights.name}' is another ConvNeXt than this network's. Write {lines}.")
            model = weights.load(ConvNextModel, config)
            self.first_layer = spread_sentence(config.num_channels, image_channels)
            if image_channels not in (1, config.num_channels):
                config.num_channels = image_channels
                pretrained, model = model, ConvNextModel(config)
                model.load_state_dict(spread_channels(pretrained.state_dict(), model))
        self.pretrained = weights is not None
        self.repeats = config.num_channels // image_channels
        self.stem, self.stages = model.embeddings, model.encoder.stages
        self.size_multiple = STEM_STRIDE * 2 ** (len(widths) - 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[B, C, H, W] -> L maps [B, C_l, H_l, W_l], finest first."""
        image = standardise(image) if self.pretrained else image
        feature = self.stem(image.repeat_interleave(self.repeats, dim=1))
        maps = []
        for stage in self.stages:
            feature = stage(feature)
            maps.append(feature)
        return maps


def find_weights(name: str | None, revision: str | None, *, pickled: bool) -> HubModel | None:
    """Return the location of the weights of a recipe; None if it names none."""
    if name is None:
        return None
    return HubModel(name, revision, pickled_weights=pickled, what="Image encoder", error=RecipeError)


def fetch_weights(name: str | None, revision: str | None, *, pickled: bool, progress: Progress) -> str:
    """Download the weights, and return a sentence on the result. Raises RecipeError."""
    source = find_weights(name, revision, pickled=pickled)
    return (
        "ConvNeXt with random weights: nothing to fetch"
        if source is None
        else source.fetch((), weights=True, progress=progress)
    )


def _configuration(weights: HubModel) -> ConvNextConfig:
    try:
        stated, _ = ConvNextConfig.get_config_dict(weights.folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RecipeError(f"weights: the configuration of '{weights.name}' can't be read. {weights.remedy}") from error
    if stated.get("model_type") != "convnext":
        raise RecipeError(
            f"weights: '{weights.name}' is of the kind '{stated.get('model_type')}', and this network needs a "
            "ConvNeXt, such as facebook/convnext-tiny-224."
        )
    return ConvNextConfig.from_dict(stated)
