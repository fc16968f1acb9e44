"""Attention without a stored matrix of weights, and position encodings, for parts that fuse image and text."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoids(length: int, size: int, device: torch.device) -> Tensor:
    """Return the position encoding [length, size] of Vaswani (2017)."""
    position = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, size, 2, device=device) * (-math.log(10_000.0) / size))
    encoding = torch.zeros(length, size, device=device)
    encoding[:, 0::2] = torch.sin(position * frequency)
    encoding[:, 1::2] = torch.cos(position * frequency)[:, : size // 2]
    return encoding


def plane_sinusoids(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """Return the position encoding [size, height, width]; the first half of the channels encodes rows."""
    rows = sinusoids(height, size - size // 2, device).T[:, :, None].expand(-1, height, width)
    columns = sinusoids(width, size // 2, device).T[:, None, :].expand(-1, height, width)
    return torch.cat([rows, columns])


class Attention(nn.Module):
    """Multi-head attention that never stores the matrix of weights (`scaled_dot_product_attention`)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, N, C], [B, M, C], [B, M, C] -> [B, N, C]."""
        split = [
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N or M, C / heads]
            for layer, tokens in ((self.query, query), (self.key, key), (self.value, value))
        ]
        attended = F.scaled_dot_product_attention(*split)
        joined: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return joined


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias by relative position (Liu 2021, arXiv 2103.14030), fused.

    It replaces MONAI's layer of that name, with the same parameters, outputs and gradients. MONAI's own fused form
    works only without gradients.
    """

    relative_position_index: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.num_heads: int = layer.num_heads
        self.relative_position_bias_table = layer.relative_position_bias_table
        self.register_buffer("relative_position_index", layer.relative_position_index)
        self.qkv, self.proj = layer.qkv, layer.proj

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B * windows, N, C] -> the same shape; mask [windows, N, N] is added where a window joins distant regions."""
        count, size, channels = x.shape
        heads = self.num_heads
        bias = self.relative_position_bias_table[self.relative_position_index[:size, :size].flatten()]
        bias = bias.view(size, size, heads).permute(2, 0, 1).contiguous()[None]  # [1, heads, N, N]
        query, key, value = self.qkv(x).view(count, size, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
        if mask is not None:
            bias = bias + mask[:, None]  # [windows, heads, N, N]
            bias = bias.expand(count // len(mask), *bias.shape).flatten(0, 1)  # no copy at B = 1
        if x.device.type == "cpu" and torch.is_grad_enabled():  # the kernel has no gradient of the bias, and is slower
            scores = query * (channels // heads) ** -0.5 @ key.transpose(-2, -1)
            attended = (scores + bias).softmax(-1).to(value.dtype) @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        projected: Tensor = self.proj(attended.transpose(1, 2).reshape(count, size, channels))
        return projected


def fuse_windows(network: nn.Module, replaced: type[nn.Module]) -> None:
    """Replace every layer of the type `replaced` by `WindowAttention`; names and weights stay as they are."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is replaced:
                setattr(parent, name, WindowAttention(child))
