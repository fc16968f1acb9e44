"""Pretrained weights for images with other intensities, and another number of channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


def standardise(image: Tensor) -> Tensor:
    """Return [B, C, H, W] in which each channel of each image has mean 0 and deviation 1; a constant one becomes 0.

    Weights from ImageNet have learned from such images. The preparation gives intensities from 0 to 1.
    """
    return F.instance_norm(image)


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
