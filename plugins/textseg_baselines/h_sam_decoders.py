"""The two mask decoders of H-SAM (Cheng 2024, arXiv 2403.18271); parts of the first have the names of SAM's weights."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FirstDecoder(nn.Module):
    """SAM's mask decoder with a token for each class."""

    CLASSES_OWN = ("mask_tokens", "class_networks")  # parts that depend on K

    def __init__(self, class_count: int, sizes: dict[str, int]) -> None:
        super().__init__()
        features = sizes["features"]
        self.iou_token = nn.Embedding(1, features)
        self.mask_tokens = nn.Embedding(class_count, features)
        self.transformer = TwoWayTransformer(**sizes, cross_features=sizes["features"] // 2)
        self.upscale_conv1 = nn.ConvTranspose2d(features, features // 4, kernel_size=2, stride=2)
        self.upscale_layer_norm = ChannelNorm(features // 4, eps=1e-6)
        self.upscale_conv2 = nn.ConvTranspose2d(features // 4, features // 8, kernel_size=2, stride=2)
        self.class_networks = _class_networks(class_count, features, features // 8, layers=3)

    def forward(self, image: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, D, h, w], [1, D, h, w] -> logits [B, K, 4h, 4w], a map of each class [B, K, h w], features at 4h x 4w."""
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).repeat(len(image), 1, 1)
        tokens, places = self.transformer(tokens, image, positions)
        tokens = tokens[:, 1:]
        features = places.transpose(1, 2).unflatten(2, image.shape[-2:])
        features = F.gelu(self.upscale_layer_norm(self.upscale_conv1(features)))
        features = F.gelu(self.upscale_conv2(features))
        return _class_logits(self.class_networks, tokens, features), tokens @ places.transpose(1, 2), features


class SecondDecoder(nn.Module):
    """A decoder to full resolution; the output of the first decoder weights its image features and attention."""

    def __init__(
        self, class_count: int, sizes: dict[str, int], positions: int, *, noise: float, dropout: float
    ) -> None:
        super().__init__()
        features = sizes["features"]
        self.mask_tokens = nn.Embedding(class_count, features)
        self.enhance = MaskGuidedSelfAttention(class_count, positions, noise)
        self.transformer = TwoWayTransformer(**sizes, cross_features=features, dropout=dropout)
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(features, features // 4, kernel_size=2, stride=2),
            ChannelNorm(features // 4, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(features // 4, features // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.detail = nn.Sequential(
            nn.ConvTranspose2d(features // 4, features // 8, kernel_size=2, stride=2),
            ChannelNorm(features // 8, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(features // 8, features // 16, kernel_size=2, stride=2),
            ChannelNorm(features // 16, eps=1e-6),
            nn.GELU(),
        )
        self.class_networks = _class_networks(class_count, features, features // 16, layers=5)

    def forward(
        self, image: Tensor, positions: Tensor, class_maps: Tensor, prior: Tensor, fine_features: Tensor
    ) -> Tensor:
        """Features and positions, what the first decoder gave, its masks [B, K, h, w] -> logits [B, K, 16h, 16w]."""
        shares = prior.flatten(2)  # [B, K, h w]
        image = image * (1 + self.enhance(class_maps, shares).unflatten(1, image.shape[-2:])[:, None])
        tokens = self.mask_tokens.weight.repeat(len(image), 1, 1)
        tokens, places = self.transformer(tokens, image, positions, shares)
        features = self.upscale(places.transpose(1, 2).unflatten(2, image.shape[-2:]))
        features = self.detail(torch.cat([features, fine_features], dim=1))
        return _class_logits(self.class_networks, tokens, features)


class MaskGuidedSelfAttention(nn.Module):
    """Attention between the maps of classes, which gives the weight of each image position.

    In training, noise is added where rare classes are, the more the rarer: the class-balanced part.
    """

    def __init__(self, class_count: int, positions: int, noise: float) -> None:
        super().__init__()
        heads = max(count for count in range(1, 9) if positions % count == 0)
        self.noise = noise
        self.attend = nn.ModuleList(Attention(positions, positions, heads) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(positions) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(positions, 2 * positions), nn.ReLU(), nn.Linear(2 * positions, positions)
        )
        self.select = nn.Linear(class_count, 1)

    def forward(self, class_maps: Tensor, shares: Tensor) -> Tensor:
        """Maps [B, K, N], masks [B, K, N] -> the weight of each position [B, N], 1 in the mean."""
        if self.training and self.noise:
            deviation = self.noise * class_maps.detach().std() * self._rarity(shares)
            class_maps = class_maps + deviation[:, None] * torch.randn_like(class_maps)
        maps = self.norms[0](self.attend[0](class_maps, class_maps, class_maps))
        maps = self.attend[1](maps, maps, maps)
        maps = self.norms[1](maps + self.feed_forward(maps))
        weights = cast(Tensor, self.select(maps.transpose(1, 2)))[..., 0].float().softmax(1)
        return weights * weights.shape[1]

    @staticmethod
    def _rarity(shares: Tensor) -> Tensor:
        """Return the rarity of each position's class in this batch, 0 (most frequent) to 1 (rarest), [B, N]."""
        classes = shares.argmax(1)
        counts = (classes[..., None] == torch.arange(shares.shape[1], device=shares.device)).sum((0, 1))  # [K]
        rarer = ((counts < counts[:, None]) & (counts > 0)).sum(1)  # of each class, how many that are there are rarer
        return 1 - rarer[classes] / ((counts > 0).sum() - 1).clamp(min=1)


class TwoWayTransformer(nn.Module):
    """Attention between tokens and image positions in both directions (SAM), with an optional prior as weight."""

    def __init__(
        self,
        *,
        features: int,
        heads: int,
        width: int,
        depth: int,
        cross_features: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(features, heads, width, cross_features, dropout, first=index == 0) for index in range(depth)
        )
        self.final_attn_token_to_image = Attention(features, features // 2, heads)
        self.layer_norm_final_attn = nn.LayerNorm(features)

    def forward(
        self, tokens: Tensor, image: Tensor, positions: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, D], image [B, D, h, w], prior [B, T, h w] -> tokens, and positions of the image [B, h w, D]."""
        places, where = image.flatten(2).transpose(1, 2), positions.flatten(2).transpose(1, 2)
        which = tokens
        for layer in self.layers:
            tokens, places = layer(tokens, places, which, where, prior)
        attended = self.final_attn_token_to_image(tokens + which, places + where, places)
        return self.layer_norm_final_attn(tokens + attended), places


class TwoWayBlock(nn.Module):
    """A block in which tokens attend to each other and to the image, and the image attends to the tokens."""

    def __init__(
        self, features: int, heads: int, width: int, cross_features: int, dropout: float, *, first: bool
    ) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(features, features, heads)
        self.cross_attn_token_to_image = Attention(features, cross_features, heads)
        self.cross_attn_image_to_token = Attention(features, cross_features, heads)
        self.mlp = FeedForward(features, width)
        self.layer_norm1 = nn.LayerNorm(features, eps=1e-6)
        self.layer_norm2 = nn.LayerNorm(features, eps=1e-6)
        self.layer_norm3 = nn.LayerNorm(features, eps=1e-6)
        self.layer_norm4 = nn.LayerNorm(features, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, places: Tensor, which: Tensor, where: Tensor, prior: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return tokens and positions, from both with their encodings, and the prior."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            tokens = tokens + self.self_attn(tokens + which, tokens + which, tokens)
        tokens = self.layer_norm1(tokens)
        attended = self.cross_attn_token_to_image(tokens + which, places + where, places, prior)
        tokens = self.layer_norm2(tokens + self.dropout(attended))
        tokens = self.layer_norm3(tokens + self.mlp(tokens))
        prior = None if prior is None else prior.transpose(1, 2)
        attended = self.cross_attn_image_to_token(places + where, tokens + which, tokens, prior)
        return tokens, self.layer_norm4(places + attended)


class Attention(nn.Module):
    """Attention with several heads and an optional prior that weights keys after the softmax (H-SAM)."""

    def __init__(self, features: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(features, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, features)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, prior: Tensor | None = None) -> Tensor:
        """[B, N, D], [B, M, D], [B, M, D], prior [B, N, M] -> [B, N, D]."""
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in projected)
        if prior is None:
            values = F.scaled_dot_product_attention(query, key, value)
        else:
            similarity = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
            values = (similarity.float().softmax(-1) * prior[:, None]).to(value.dtype) @ value
        attended: Tensor = self.out_proj(values.transpose(1, 2).flatten(2))
        return attended


class FeedForward(nn.Module):
    """A perceptron with two layers."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(features, width), nn.Linear(width, features)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, D] -> the same."""
        return cast(Tensor, self.lin2(F.relu(self.lin1(tokens))))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position."""

    def forward(self, features: Tensor) -> Tensor:
        """[B, C_l, h, w] -> the same."""
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _class_networks(class_count: int, features: int, out_features: int, *, layers: int) -> nn.ModuleList:
    """Return, for each class, a network from its token to the weights of its last convolution."""

    def network() -> nn.Sequential:
        inner = (part for _ in range(layers - 1) for part in (nn.Linear(features, features), nn.ReLU()))
        return nn.Sequential(*inner, nn.Linear(features, out_features))

    return nn.ModuleList(network() for _ in range(class_count))


def _class_logits(networks: nn.ModuleList, tokens: Tensor, features: Tensor) -> Tensor:
    """Tokens [B, K, D], features [B, C_l, h, w] -> logits [B, K, h, w]."""
    weights = torch.stack([network(tokens[:, index]) for index, network in enumerate(networks)], dim=1)
    return (weights @ features.flatten(2)).reshape(*weights.shape[:2], *features.shape[-2:])
