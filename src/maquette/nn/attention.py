"""Multi-head self-attention on `scaled_dot_product_attention`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import InvalidInputError


class SelfAttention(nn.Module):
    """Self-attention with one fused projection for queries, keys and values.

    State-dict names: `qkv.weight [3C, C]` (queries, keys, values; heads inside each), `proj.weight`, `proj.bias`.

    Args:
        channels: token width C.
        num_heads: number of heads; must divide C.
        qkv_bias: whether the fused projection has a bias.
    """

    def __init__(self, channels: int, num_heads: int, *, qkv_bias: bool = False) -> None:
        super().__init__()
        if channels % num_heads != 0:
            raise InvalidInputError(
                f"num_heads must divide the token width, got {num_heads} heads for width {channels}"
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens `[B, N, C]` to `[B, N, C]`; softmax scale is (C / heads)^-0.5."""
        batch, count, channels = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, C / heads]
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, channels))
        return projected
