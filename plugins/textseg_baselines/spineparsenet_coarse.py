"""The first stage of SpineParseNet: a DeepLabv3+ in three dimensions with a graph of structures in it.

`textseg_baselines.spineparsenet` states which choices are published and which are ours.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import gcd
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from textseg.contracts import Atlas, Task

GROUPS = 8  # of a normalisation, where the channels allow


class CoarseNetwork(nn.Module):
    """DeepLabv3+ (Chen 2018) in three dimensions, with a graph of structures before its last layer.

    Slices are few and thick: their axis is halved once, rows and columns are four times.
    """

    def __init__(self, task: Task, width: int, hidden: int) -> None:
        super().__init__()
        first, low, middle, high = width, 4 * width, 8 * width, 12 * width
        self.stem = nn.Sequential(
            _convolution(task.image_channels, first, stride=(1, 2, 2)), SeparableConvolution(first, 2 * first)
        )
        self.low = XceptionBlock(2 * first, low, stride=(1, 2, 2))  # what the decoder sees of edges
        self.high = nn.Sequential(
            XceptionBlock(low, middle, stride=(1, 2, 2)),
            XceptionBlock(middle, high, stride=(2, 2, 2)),
            *(XceptionBlock(high, high) for _ in range(3)),
        )
        self.pyramid = AtrousPyramid(high, middle)
        self.edges = _convolution(low, width, kernel=1)
        self.decoder = nn.Sequential(_convolution(middle + width, low), SeparableConvolution(low, low))
        self.graph = StructureGraph(task.atlas, low, hidden)
        self.head = nn.Conv3d(low, task.class_count, kernel_size=1)

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """[1, C, *G] -> logits of the voxels [1, K, *G], and of the nodes [K, K]."""
        low = self.low(self.stem(volume))  # rows and columns by 4
        high = self.pyramid(self.high(low))  # by 16, slices by 2
        high = F.interpolate(high, low.shape[2:], mode="trilinear", align_corners=False)
        features = self.decoder(torch.cat([high, self.edges(low)], dim=1))
        features, node_logits = self.graph(features)
        logits = F.interpolate(self.head(features), volume.shape[2:], mode="trilinear", align_corners=False)
        return logits, node_logits


class StructureGraph(nn.Module):
    """A graph with a node for each class: pools features to nodes, exchanges them along edges, adds them to the map.

    A voxel gives to the nodes, and takes from them, by the shares of a softmax over the classes: region pooling and
    unpooling. The background is a node without edges.
    """

    adjacency: Tensor  # [K, K], with a loop at each node, normalised on both sides (Kipf 2017)

    def __init__(self, atlas: Atlas, channels: int, hidden: int, layers: int = 3) -> None:
        super().__init__()
        edges = torch.eye(atlas.class_count)
        for first, second in atlas.adjacent:
            edges[atlas[first].index, atlas[second].index] = edges[atlas[second].index, atlas[first].index] = 1
        degree = edges.sum(1).rsqrt()
        self.register_buffer("adjacency", degree[:, None] * edges * degree, persistent=False)
        self.regions = nn.Conv3d(channels, atlas.class_count, kernel_size=1)
        self.enter = nn.Linear(channels, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.classify = nn.Linear(hidden, atlas.class_count)
        self.leave = nn.Linear(hidden, channels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[1, C_l, *G_l] -> the same with the features of the graph, and logits of the nodes [K, K]."""
        shares = self.regions(features).float().softmax(1)[0].flatten(1)  # [K, N]
        with _full_precision(features.device.type):  # sums over voxels are beyond float16
            pooled = shares @ features[0].flatten(1).float().T / shares.sum(1, keepdim=True).clamp(min=1e-3)
        nodes = self.enter(pooled)  # [K, hidden]
        for layer in self.layers:
            nodes = F.relu(layer(self.adjacency @ nodes))
        known = (self.leave(nodes).T @ shares).unflatten(1, features.shape[2:])[None]  # [1, C_l, *G_l]
        return features + known, self.classify(nodes)


class AtrousPyramid(nn.Module):
    """Parallel convolutions with several rates, and the mean of the whole volume (DeepLabv3)."""

    def __init__(self, channels: int, out_channels: int, rates: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.near = _convolution(channels, out_channels, kernel=1)
        self.far = nn.ModuleList(SeparableConvolution(channels, out_channels, rate=rate) for rate in rates)
        self.whole = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(channels, out_channels, 1), nn.ReLU())
        self.join = _convolution((2 + len(rates)) * out_channels, out_channels, kernel=1)

    def forward(self, features: Tensor) -> Tensor:
        """[1, C_l, *G_l] -> [1, out, *G_l]."""
        whole = self.whole(features).expand(-1, -1, *features.shape[2:])
        joined: Tensor = self.join(torch.cat([self.near(features), *(far(features) for far in self.far), whole], dim=1))
        return joined


class XceptionBlock(nn.Module):
    """Three separable convolutions, the last with the stride, and a shortcut (Chollet 2017)."""

    def __init__(self, channels: int, out_channels: int, stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            SeparableConvolution(channels, out_channels),
            SeparableConvolution(out_channels, out_channels),
            SeparableConvolution(out_channels, out_channels, stride=stride),
        )
        same = channels == out_channels and stride == (1, 1, 1)
        self.shortcut = nn.Identity() if same else nn.Conv3d(channels, out_channels, kernel_size=1, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        """[1, C_l, *G_l] -> [1, out, *G_l / stride]."""
        return cast(Tensor, self.layers(features) + self.shortcut(features))


class SeparableConvolution(nn.Sequential):
    """A depthwise convolution and a convolution across channels; a rate dilates rows and columns."""

    def __init__(
        self, channels: int, out_channels: int, *, stride: tuple[int, int, int] = (1, 1, 1), rate: int = 1
    ) -> None:
        super().__init__(
            nn.Conv3d(
                channels,
                channels,
                kernel_size=3,
                stride=stride,
                padding=(1, rate, rate),
                dilation=(1, rate, rate),
                groups=channels,
                bias=False,
            ),
            nn.Conv3d(channels, out_channels, kernel_size=1, bias=False),
            normalisation(out_channels),
            nn.ReLU(),
        )


def _full_precision(device_type: str) -> AbstractContextManager[object]:
    """Return a context without autocast, if the device has autocast."""
    return torch.autocast(device_type, enabled=False) if is_autocast_available(device_type) else nullcontext()


def _convolution(
    channels: int, out_channels: int, *, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Sequential:
    layer = nn.Conv3d(channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, normalisation(out_channels), nn.ReLU())


def normalisation(channels: int) -> nn.GroupNorm:
    """Return group normalisation, since a step is one volume."""
    return nn.GroupNorm(gcd(GROUPS, channels), channels)
