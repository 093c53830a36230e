"""A vision transformer whose state dict has the names of DINOv2.

Source: DINOv2 (Oquab et al., 2023) and vision transformers need registers (Darcet et al., 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import InvalidInputError
from maquette.nn.attention import SelfAttention
from maquette.nn.vit_params import ViTParams

_NORM_EPS = 1e-6
_MLP_RATIO = 4
_INIT_STD = 0.02


class PatchEmbedding(nn.Module):
    """Pictures `[B, 3, H, W]` to tokens `[B, H/p * W/p, C]`, row by row."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Applies the projection."""
        patches: Tensor = self.proj(images)
        return patches.flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scales tokens `[..., C]`."""
        return tokens * self.gamma


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens `[..., C]`."""
        result: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return result


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled and added to its input."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn = SelfAttention(width, num_heads, qkv_bias=True)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens `[B, N, C]`."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        result: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return result


class VisionTransformer(nn.Module):
    """Pictures to one class token and one token per patch."""

    def __init__(self, params: ViTParams) -> None:
        super().__init__()
        self.params = params
        width = params.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + params.grid_size**2, width))
        if params.num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, params.num_registers, width))
        self.patch_embed = PatchEmbedding(width, params.patch_size)
        self.blocks = nn.ModuleList(Block(width, params.num_heads) for _ in range(params.depth))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.apply(_initialize)
        nn.init.trunc_normal_(self.pos_embed, std=_INIT_STD)
        nn.init.normal_(self.cls_token, std=1e-6)

    def positions(self, rows: int, columns: int) -> Tensor:
        """The learned positions resized bicubically to a grid of patches, class token first, `[1, 1 + P, C]`."""
        side = self.params.grid_size
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        antialias = self.params.grid_antialias
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=antialias)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).mT.to(self.pos_embed.dtype)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised tokens `[B, 1 + P, C]`: the class token, then the patches row by row; no registers.

        Args:
            images: `[B, 3, H, W]`, sides multiples of the patch size; scaled as the weights were trained.

        Raises:
            InvalidInputError: other sizes.
        """
        patch = self.params.patch_size
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % patch or images.shape[3] % patch:
            raise InvalidInputError(
                f"the image encoder needs pictures [B, 3, H, W] with sides that are multiples of {patch}, "
                f"got {list(images.shape)}"
            )
        patches = self.patch_embed(images.to(self.patch_embed.proj.weight.dtype))
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = tokens + self.positions(images.shape[2] // patch, images.shape[3] // patch)
        registers = self.params.num_registers
        if registers:
            inserted = self.register_tokens.expand(len(images), -1, -1)
            tokens = torch.cat([tokens[:, :1], inserted, tokens[:, 1:]], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], dim=1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=_INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
