"""Attention and transformer blocks of the multi-view U-Net, with the state-dict names of the official networks.

Tokens of all frames of an object stand in one row `[B, F * L, C]`. Then self-attention is the joint attention over the
views, cross-attention reads one context per object, and everything else works on single tokens anyway.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.nn.group_norm import GroupNorm

MLP_RATIO = 4


class Attention(nn.Module):
    """Multi-head attention, with a second set of keys and values for picture tokens where `with_picture` is set.

    The picture's result is added with weight 1 to the text's (decoupled cross-attention).

    Attributes:
        sliced: computes one object and head at a time; slower, needs less memory.
    """

    def __init__(self, channels: int, context_channels: int, head_channels: int, *, with_picture: bool = False) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.sliced = False
        if with_picture:
            self.to_k_ip = nn.Linear(context_channels, channels, bias=False)
            self.to_v_ip = nn.Linear(context_channels, channels, bias=False)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, tokens: Tensor, context: Tensor, picture: Tensor | None = None) -> Tensor:
        """Tokens `[B, N, C]` look at the context `[B, T, D]` and, separately, at picture tokens `[B, P, D]`."""
        query = self._split(self.to_q(tokens))
        mixed = self._attend(query, self.to_k(context), self.to_v(context))
        if picture is not None:
            mixed = mixed + self._attend(query, self.to_k_ip(picture), self.to_v_ip(picture))
        result: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return result

    def _split(self, values: Tensor) -> Tensor:
        batch, count, _ = values.shape
        return values.reshape(batch, count, -1, self.head_channels).transpose(1, 2)  # [B, heads, N, C / heads]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = self._split(key), self._split(value)
        if not self.sliced:
            return F.scaled_dot_product_attention(query, key, value)
        slices = zip(*(part.flatten(0, 1) for part in (query, key, value)), strict=True)
        parts = [F.scaled_dot_product_attention(q[None], k[None], v[None])[0] for q, k, v in slices]
        return torch.stack(parts).reshape(query.shape)


class GatedLinear(nn.Module):
    """First half of the projection times the exact GELU of the second."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, 2 * out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `[..., in_channels]` to `[..., out_channels]`."""
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated


class FeedForward(nn.Module):
    """Gated MLP."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = MLP_RATIO * channels
        self.net = nn.Sequential(GatedLinear(channels, hidden), nn.Identity(), nn.Linear(hidden, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `[..., C]` to `[..., C]`."""
        result: Tensor = self.net(tokens)
        return result


class TransformerBlock(nn.Module):
    """Joint self-attention, cross-attention and MLP, each on normalised tokens and residual."""

    def __init__(self, channels: int, context_channels: int, head_channels: int, *, with_picture: bool) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, head_channels)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context_channels, head_channels, with_picture=with_picture)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, text: Tensor, picture: Tensor | None) -> Tensor:
        """Tokens of all frames `[B, F * L, C]`, text `[B, T, D]`, picture tokens `[B, P, D]` or None."""
        normed = self.norm1(tokens)
        tokens = tokens + self.attn1(normed, normed)
        tokens = tokens + self.attn2(self.norm2(tokens), text, picture)
        result: Tensor = tokens + self.ff(self.norm3(tokens))
        return result


class MultiViewTransformer(nn.Module):
    """A transformer block on the pixels of all frames of an object, residual."""

    def __init__(
        self, channels: int, context_channels: int, head_channels: int, *, with_picture: bool, norm_groups: int
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, context_channels, head_channels, with_picture=with_picture)]
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, features: Tensor, text: Tensor, picture: Tensor | None) -> Tensor:
        """Features `[B * F, C, H, W]`, frames of an object side by side; F follows from the text `[B, T, D]`."""
        rows, channels, height, width = features.shape
        tokens = self.norm(features).flatten(2).mT  # [B * F, L, C]
        tokens = self.proj_in(tokens).reshape(len(text), -1, channels)
        for block in self.transformer_blocks:
            tokens = block(tokens, text, picture)
        tokens = self.proj_out(tokens).reshape(rows, height * width, channels)
        result: Tensor = features + tokens.mT.reshape(rows, channels, height, width)
        return result
