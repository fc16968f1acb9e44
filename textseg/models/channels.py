"""Pretrained weights for images of another number of channels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def spread_channels(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return weights for a module that reads images of another number of channels.

    The weights of the convolution that reads the image are repeated over its channels in their order, and scaled by the
    ratio of both numbers, so that its results keep their size. All other weights stay.
    """
    spread = dict(weights)
    for name, wanted in module.state_dict().items():
        tensor = spread.get(name)
        if tensor is not None and tensor.ndim == 4 and tensor.shape[1] != wanted.shape[1]:
            own, channels = tensor.shape[1], wanted.shape[1]
            spread[name] = tensor.repeat(1, -(-channels // own), 1, 1)[:, :channels] * (own / channels)
    return spread


def spread_sentence(own: int, channels: int) -> str | None:
    """Return a sentence for run.json on pretrained weights whose images have other channels; None where they agree."""
    if own == channels:
        return None
    if channels == 1:
        return f"the channel of the image is read as each of the {own} channels of the pretrained weights"
    return f"pretrained weights for {own} channels are repeated over {channels} channels, times {own}/{channels}"
