"""ImageDream's adapter: a few learned queries read the tokens of the prompt picture (a perceiver resampler)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.models.mvdream.params import ResamplerParams


class ResamplerAttention(nn.Module):
    """Queries from the latents; keys and values from the picture's tokens followed by the latents themselves."""

    def __init__(self, channels: int, num_heads: int, head_channels: int) -> None:
        super().__init__()
        inner = num_heads * head_channels
        self.head_channels = head_channels
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_kv = nn.Linear(channels, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """Picture tokens `[B, N, C]` and latents `[B, Q, C]` to an update of the latents."""
        tokens, latents = self.norm1(tokens), self.norm2(latents)
        key, value = self.to_kv(torch.cat([tokens, latents], dim=1)).chunk(2, dim=-1)
        query, key, value = (
            part.reshape(len(part), part.shape[1], -1, self.head_channels).transpose(1, 2)
            for part in (self.to_q(latents), key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return result


class Resampler(nn.Module):
    """Tokens of a picture `[B, N, in_channels]` to context tokens `[B, num_queries, channels]`."""

    def __init__(self, params: ResamplerParams, channels: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, params.num_queries, channels) / channels**0.5)
        self.proj_in = nn.Linear(params.in_channels, channels)
        self.proj_out = nn.Linear(channels, channels)
        self.norm_out = nn.LayerNorm(channels)
        self.layers = nn.ModuleList(
            nn.ModuleList([
                ResamplerAttention(channels, params.num_heads, params.head_channels),
                nn.Sequential(
                    nn.LayerNorm(channels),
                    nn.Linear(channels, params.mlp_ratio * channels, bias=False),
                    nn.GELU(),
                    nn.Linear(params.mlp_ratio * channels, channels, bias=False),
                ),
            ])
            for _ in range(params.depth)
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        """Runs the layers, each residual."""
        tokens = self.proj_in(tokens)
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            attention, mlp = layer.children()
            latents = latents + attention(tokens, latents)
            latents = latents + mlp(latents)
        result: Tensor = self.norm_out(self.proj_out(latents))
        return result
