"""The multi-view U-Net of MVDream and ImageDream, with the state-dict names of the official networks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import InvalidInputError
from maquette.models.mvdream.attention import Attention, MultiViewTransformer
from maquette.models.mvdream.params import CAMERA_CHANNELS, UNetParams
from maquette.models.mvdream.resampler import Resampler
from maquette.nn.group_norm import GroupNorm

_MAX_PERIOD = 10_000.0
_COORDINATES = 2


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Cosines, then sines of the timesteps `[B]`, `[B, channels]` float32; frequencies from 1 down to 1 / 10000.

    Computed in float32 whatever the network's precision, as in the official code.
    """
    half = channels // 2
    exponents = -math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.to(torch.float32)[:, None] * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _coordinates(features: Tensor) -> Tensor:
    """Column and row of each pixel, -1 to 1, `[B, 1, 2, h, w]`, for features `[B, 1, C, h, w]`."""
    height, width = features.shape[-2:]
    x, y = (torch.linspace(-1, 1, size, dtype=features.dtype, device=features.device) for size in (width, height))
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)]).expand(len(features), 1, -1, -1, -1)


class ResBlock(nn.Module):
    """Two convolutions with the timestep and camera embedding added in between, residual."""

    def __init__(self, in_channels: int, out_channels: int, embedding_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(norm_groups, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(norm_groups, out_channels),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Features `[N, in, H, W]` with embedding `[N, E]` to `[N, out, H, W]`."""
        hidden = self.in_layers(features) + self.emb_layers(embedding)[:, :, None, None]
        result: Tensor = self.skip_connection(features) + self.out_layers(hidden)
        return result


class Downsample(nn.Module):
    """Halves height and width by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, C, H / 2, W / 2]`."""
        result: Tensor = self.op(features)
        return result


class Upsample(nn.Module):
    """Doubles height and width by repetition, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, C, 2 H, 2 W]`."""
        result: Tensor = self.conv(F.interpolate(features, scale_factor=2.0, mode="nearest"))
        return result


class Stage(nn.ModuleList):
    """Layers in a row, each called with what its kind takes."""

    def forward(self, features: Tensor, embedding: Tensor, text: Tensor, picture: Tensor | None) -> Tensor:
        """Features `[N, C, H, W]` through all layers."""
        for layer in self:
            if isinstance(layer, ResBlock):
                features = layer(features, embedding)
            elif isinstance(layer, MultiViewTransformer):
                features = layer(features, text, picture)
            else:
                features = layer(features)
        return features


class MultiViewUNet(nn.Module):
    """Predicts the noise in the latents of all views of an object at once.

    Attributes:
        params: its configuration.
    """

    def __init__(self, params: UNetParams) -> None:
        super().__init__()
        self.params = params
        width = params.embedding_channels
        if params.resampler is not None:
            self.image_embed = Resampler(params.resampler, params.context_channels)
        self.time_embed = nn.Sequential(nn.Linear(params.base_channels, width), nn.SiLU(), nn.Linear(width, width))
        self.camera_embed = nn.Sequential(nn.Linear(CAMERA_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        hints = 2 * params.in_channels + _COORDINATES if params.concat_picture else 0
        first = nn.Conv2d(params.in_channels + hints, params.base_channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([Stage([first])])
        skips = self._build_down()
        deepest = params.level_channels[-1]
        self.middle_block = Stage(
            [self._res_block(deepest, deepest), self._transformer(deepest), self._res_block(deepest, deepest)]
        )
        self.output_blocks = nn.ModuleList()
        self._build_up(skips)
        self.out = nn.Sequential(
            GroupNorm(params.norm_groups, params.base_channels),
            nn.SiLU(),
            nn.Conv2d(params.base_channels, params.out_channels, 3, padding=1),
        )

    def _res_block(self, in_channels: int, out_channels: int) -> ResBlock:
        return ResBlock(in_channels, out_channels, self.params.embedding_channels, self.params.norm_groups)

    def _transformer(self, channels: int) -> MultiViewTransformer:
        params = self.params
        with_picture = params.resampler is not None
        return MultiViewTransformer(
            channels,
            params.context_channels,
            params.head_channels,
            with_picture=with_picture,
            norm_groups=params.norm_groups,
        )

    def _build_down(self) -> list[int]:
        """Appends the way down; returns the widths of its outputs, which the way up takes."""
        params = self.params
        channels = params.base_channels
        widths = [channels]
        for level, level_channels in enumerate(params.level_channels):
            for _ in range(params.num_res_blocks):
                layers: list[nn.Module] = [self._res_block(channels, level_channels)]
                channels = level_channels
                if level in params.attention_levels:
                    layers.append(self._transformer(channels))
                self.input_blocks.append(Stage(layers))
                widths.append(channels)
            if level < len(params.level_channels) - 1:
                self.input_blocks.append(Stage([Downsample(channels)]))
                widths.append(channels)
        return widths

    def _build_up(self, skips: list[int]) -> None:
        params = self.params
        channels = params.level_channels[-1]
        for level in reversed(range(len(params.level_channels))):
            for index in range(params.num_res_blocks + 1):
                level_channels = params.level_channels[level]
                layers: list[nn.Module] = [self._res_block(channels + skips.pop(), level_channels)]
                channels = level_channels
                if level in params.attention_levels:
                    layers.append(self._transformer(channels))
                if level > 0 and index == params.num_res_blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(Stage(layers))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def slice_attention(self, sliced: bool = True) -> None:
        """Computes attention one object and head at a time from now on (or no longer): slower, less memory."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.sliced = sliced

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        cameras: Tensor,
        text: Tensor,
        picture: Tensor | None = None,
        picture_latents: Tensor | None = None,
    ) -> Tensor:
        """Predicted noise `[B, F, out_channels, h, w]`.

        Args:
            latents: noisy latents of all frames, `[B, F, in_channels, h, w]`; h and w multiples of `params.stride`.
            timesteps: `[B]`.
            cameras: `[B, F, 16]`, see `maquette.models.mvdream.cameras`.
            text: text tokens `[B, T, context_channels]`.
            picture: with a resampler, its output `image_embed(picture tokens)`, `[B, P, context_channels]`.
            picture_latents: with a resampler, clean latents of the prompt picture, `[B, in_channels, h, w]`; they
                take the place of the last frame, and are shown to all where `concat_picture` is set.

        Raises:
            InvalidInputError: a picture is missing or given without need, or the size does not fit.
        """
        self._check(latents, picture, picture_latents)
        batch, frames = latents.shape[:2]
        if picture_latents is not None:
            shown = picture_latents[:, None].to(latents.dtype)
            latents = torch.cat([latents[:, :-1], shown], dim=1)
            if self.params.concat_picture:
                hints = torch.cat([shown, shown.flip(-1), _coordinates(shown)], dim=2)
                latents = torch.cat([latents, hints.expand(-1, frames, -1, -1, -1)], dim=2)
        dtype = self.dtype
        sinusoid = timestep_embedding(timesteps, self.params.base_channels).to(dtype)
        embedding = self.time_embed(sinusoid)[:, None] + self.camera_embed(cameras.to(dtype))
        embedding, features = embedding.flatten(0, 1), latents.flatten(0, 1).to(dtype)
        skips = []
        for block in self.input_blocks:
            features = block(features, embedding, text, picture)
            skips.append(features)
        features = self.middle_block(features, embedding, text, picture)
        for block in self.output_blocks:
            features = block(torch.cat([features, skips.pop()], dim=1), embedding, text, picture)
        result: Tensor = self.out(features)
        return result.reshape(batch, frames, *result.shape[1:])

    def _check(self, latents: Tensor, picture: Tensor | None, picture_latents: Tensor | None) -> None:
        wanted = self.params.resampler is not None
        if (picture is not None) != wanted or (picture_latents is not None) != wanted:
            verb = "needs" if wanted else "takes no"
            raise InvalidInputError(f"this U-Net {verb} picture tokens and picture latents")
        stride = self.params.stride
        if latents.ndim != 5 or latents.shape[-1] % stride or latents.shape[-2] % stride:
            raise InvalidInputError(
                f"latents must be [B, F, C, h, w] with h and w multiples of {stride}, got {list(latents.shape)}"
            )
