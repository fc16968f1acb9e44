"""Attention that never holds its weights, and position encodings: what parts that fuse image and text are made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoids(length: int, size: int, device: torch.device) -> Tensor:
    """Position encoding [length, size] of Vaswani (2017)."""
    position = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, size, 2, device=device) * (-math.log(10_000.0) / size))
    encoding = torch.zeros(length, size, device=device)
    encoding[:, 0::2] = torch.sin(position * frequency)
    encoding[:, 1::2] = torch.cos(position * frequency)[:, : size // 2]
    return encoding


def plane_sinusoids(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """Position encoding [size, height, width]: the first half of the channels tells the row, the rest the column."""
    rows = sinusoids(height, size - size // 2, device).T[:, :, None].expand(-1, height, width)
    columns = sinusoids(width, size // 2, device).T[:, None, :].expand(-1, height, width)
    return torch.cat([rows, columns])


class Attention(nn.Module):
    """Multi-head attention that never holds the matrix of weights (`scaled_dot_product_attention`)."""

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
