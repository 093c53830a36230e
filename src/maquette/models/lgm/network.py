"""The LGM network: an asymmetric U-Net over four posed pictures that outputs one Gaussian per view and cell.

Source: LGM (Tang et al., ECCV 2024), section 3.2. Module names are those of the official state dicts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.models.lgm.activation import activate_gaussians
from maquette.models.lgm.params import NUM_GROUPS, LGMParams
from maquette.nn.attention import SelfAttention

INPUT_CHANNELS = 9
"""Normalised RGB, ray moment, ray direction."""

HULL_CHANNELS = 2
"""With the parametrisation "hull": alpha, and entry into the hull."""

_SKIP_SCALE = math.sqrt(0.5)


class GroupNorm(nn.GroupNorm):
    """Group norm in the precision of its input: autocast would give float32, at three times the memory traffic."""

    def __init__(self, channels: int) -> None:
        super().__init__(NUM_GROUPS, channels, eps=1e-5)

    def forward(self, input: Tensor) -> Tensor:
        """Normalises `[B, C, H, W]`; sums are in float32 all the same."""
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions with a scaled shortcut: `[B, C_in, H, W]` to `[B, C_out, H, W]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Applies the block."""
        hidden = self.conv1(F.silu(self.norm1(features)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        result: Tensor = (hidden + self.shortcut(features)) * _SKIP_SCALE
        return result


class CrossViewAttention(nn.Module):
    """Self-attention over the tokens of all views of one object, with a scaled shortcut.

    Input and output `[B * views, C, H, W]`; tokens are ordered by view, row, column.
    """

    def __init__(self, channels: int, num_heads: int, num_views: int) -> None:
        super().__init__()
        self.num_views = num_views
        self.norm = GroupNorm(channels)
        self.attn = SelfAttention(channels, num_heads)

    def forward(self, features: Tensor) -> Tensor:
        """Applies the block."""
        count, channels, height, width = features.shape
        tokens = self.norm(features).flatten(2).transpose(1, 2)  # [B * views, HW, C]
        mixed = self.attn(tokens.reshape(count // self.num_views, -1, channels))
        mixed = mixed.reshape(count, height * width, channels).transpose(1, 2).reshape(features.shape)
        result: Tensor = (mixed + features) * _SKIP_SCALE
        return result


def _attention_slot(enabled: bool, channels: int, params: LGMParams) -> nn.Module:
    if not enabled:
        return nn.Identity()
    return CrossViewAttention(channels, params.num_heads, params.num_input_views)


class DownBlock(nn.Module):
    """Residual (and attention) layers, then a stride-2 convolution except in the last block."""

    def __init__(
        self, in_channels: int, out_channels: int, *, attention: bool, downsample: bool, params: LGMParams
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (params.down_layers - 1)
        self.nets = nn.ModuleList(ResidualBlock(width, out_channels) for width in widths)
        self.attns = nn.ModuleList(_attention_slot(attention, out_channels, params) for _ in widths)
        self.downsample = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) if downsample else None

    def forward(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the block's output and the skip features, oldest first."""
        skips = []
        for net, attn in zip(self.nets, self.attns, strict=True):
            features = attn(net(features))
            skips.append(features)
        if self.downsample is not None:
            features = self.downsample(features)
            skips.append(features)
        return features, skips


class MidBlock(nn.Module):
    """Residual layers with attention between them at the coarsest resolution."""

    def __init__(self, channels: int, *, attention: bool, params: LGMParams) -> None:
        super().__init__()
        self.nets = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(params.mid_layers + 1))
        self.attns = nn.ModuleList(_attention_slot(attention, channels, params) for _ in range(params.mid_layers))

    def forward(self, features: Tensor) -> Tensor:
        """Applies the block."""
        features = self.nets[0](features)
        for net, attn in zip(self.nets[1:], self.attns, strict=True):
            features = net(attn(features))
        return features


class UpBlock(nn.Module):
    """Residual (and attention) layers over concatenated skips, then nearest x2 and a convolution except at the end."""

    def __init__(
        self,
        in_channels: int,
        last_skip_channels: int,
        out_channels: int,
        *,
        attention: bool,
        upsample: bool,
        params: LGMParams,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * params.down_layers
        skips = [out_channels] * params.down_layers + [last_skip_channels]
        self.nets = nn.ModuleList(
            ResidualBlock(width + skip, out_channels) for width, skip in zip(inputs, skips, strict=True)
        )
        self.attns = nn.ModuleList(_attention_slot(attention, out_channels, params) for _ in inputs)
        self.upsample = nn.Conv2d(out_channels, out_channels, 3, padding=1) if upsample else None

    def forward(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Applies the block; takes the newest skips off the end of `skips`."""
        for net, attn in zip(self.nets, self.attns, strict=True):
            features = attn(net(torch.cat([features, skips.pop()], dim=1)))
        if self.upsample is not None:
            features = self.upsample(F.interpolate(features, scale_factor=2.0, mode="nearest"))
        return features


class AsymmetricUNet(nn.Module):
    """U-Net whose decoder may stop before full resolution: `[B * views, C_in, H, W]` to `[B * views, C_out, S, S]`."""

    def __init__(self, params: LGMParams) -> None:
        super().__init__()
        down, up = params.down_channels, params.up_channels
        self.patch_size = params.patch_size
        self.conv_in = nn.Conv2d(_stem_channels(params), down[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                down[max(i - 1, 0)],
                down[i],
                attention=params.down_attention[i],
                downsample=i < len(down) - 1,
                params=params,
            )
            for i in range(len(down))
        )
        self.mid_block = MidBlock(down[-1], attention=params.mid_attention, params=params)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                up[i - 1] if i else down[-1],
                down[max(-2 - i, -len(down))],
                up[i],
                attention=params.up_attention[i],
                upsample=i < len(up) - 1,
                params=params,
            )
            for i in range(len(up))
        )
        self.norm_out = GroupNorm(up[-1])
        self.conv_out = nn.Conv2d(up[-1], params.out_channels * params.patch_size**2, 3, padding=1)

    def forward(self, pictures: Tensor, profile: Tensor | None = None) -> Tensor:
        """Applies the network; `profile` `[B * views, P, H / patch_size, W / patch_size]` joins the patches."""
        features = F.pixel_unshuffle(pictures, self.patch_size) if self.patch_size > 1 else pictures
        features = self.conv_in(features if profile is None else torch.cat([features, profile], dim=1))
        skips = [features]
        for block in self.down_blocks:
            features, new = block(features)
            skips += new
        features = self.mid_block(features)
        for block in self.up_blocks:
            features = block(features, skips)
        result: Tensor = self.conv_out(F.silu(self.norm_out(features)))
        return F.pixel_shuffle(result, self.patch_size) if self.patch_size > 1 else result


def _stem_channels(params: LGMParams) -> int:
    """Channels that the first convolution sees."""
    hull = params.parametrization == "hull"
    channels = (INPUT_CHANNELS + HULL_CHANNELS * hull) * params.patch_size**2
    return channels + 3 * params.sweep_planes * hull


class LGM(nn.Module):
    """Large multi-view Gaussian model.

    Weights may be float32, bfloat16 or float16; the activations of the Gaussians always run in float32.
    """

    def __init__(self, params: LGMParams) -> None:
        super().__init__()
        self.params = params
        self.unet = AsymmetricUNet(params)
        self.conv = nn.Conv2d(params.out_channels, params.out_channels, 1)
        if params.parametrization == "hull":
            self._start_from_the_hull()

    def _start_from_the_hull(self) -> None:
        """Makes the first predictions nearly zero: Gaussians on the hull, unrotated, in the input's colours."""
        with torch.no_grad():
            for parameter in self.unet.conv_out.parameters():
                parameter.mul_(0.1)
            channels = self.params.out_channels
            bias = torch.zeros(channels)
            bias[7], bias[14] = 1.0, -2.0  # w of the quaternion; weight of the predicted colour
            self.conv.load_state_dict({"weight": torch.eye(channels)[:, :, None, None], "bias": bias})

    def raw_gaussians(self, pictures: Tensor, profile: Tensor | None = None) -> Tensor:
        """Values before activation, float32, `[B, N, C]`, N ordered by view, row, column.

        Args:
            pictures: `[B, 4, 9, H, W]`, with the parametrisation "hull" `[B, 4, 11, H, W]`; see
                `maquette.models.lgm.inputs.model_inputs`.
            profile: for "hull" only, `[B, 4, 3 * sweep_planes, H / patch_size, W / patch_size]`.

        Raises:
            InvalidInputError: not these shapes.
        """
        params, shape = self.params, tuple(pictures.shape)
        hull = params.parametrization == "hull"
        channels = INPUT_CHANNELS + HULL_CHANNELS * hull
        expected = (params.num_input_views, channels, params.input_size, params.input_size)
        if len(shape) != 5 or shape[1:] != expected:
            raise InvalidInputError(f"{params.name} needs inputs of shape [B, *{list(expected)}], got {list(shape)}")
        if hull != (profile is not None):
            raise InvalidInputError(f"{params.name} {'needs a' if hull else 'takes no'} profile of a plane sweep")
        weight = self.unet.conv_in.weight
        flat = pictures.flatten(0, 1).to(weight.dtype)
        flat_profile = None if profile is None else profile.flatten(0, 1).to(weight.dtype)
        if weight.is_contiguous(memory_format=torch.channels_last):
            flat = flat.contiguous(memory_format=torch.channels_last)
        raw: Tensor = self.conv(self.unet(flat, flat_profile))  # [B * views, C, S, S]
        return raw.permute(0, 2, 3, 1).reshape(shape[0], params.num_gaussians, params.out_channels).float()

    def forward(self, pictures: Tensor, profile: Tensor | None = None) -> Gaussians:
        """Gaussians `[B, N]` of the objects whose views are given as for `raw_gaussians`."""
        return activate_gaussians(self.raw_gaussians(pictures, profile), pictures, self.params)
