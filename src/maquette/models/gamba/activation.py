"""From the outputs of Gamba's heads to Gaussians, in float32.

Source of the official formulas: Gamba (Shen et al., 2024) as released: positions are weights of unit length over
equidistant values (the paper has a softmax), sizes 0.1 softplus, rotations constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.gaussians import Gaussians
from maquette.models.gamba.params import NUM_SCANS, GambaParams
from maquette.models.gamba.scans import scan_pixels
from maquette.nn.posed_images import IMAGENET_MEAN, IMAGENET_STD

SCALE_FACTOR = 0.1
"""Size in world units where softplus is 1."""

_HIDDEN_OUTSIDE = 4.0
"""Taken from the logit of the opacity where the picture shows no object; little enough to be learned away."""

_OFFSET_GAIN = 0.1
"""Keeps Gaussians near their rays early in training."""


@dataclass(frozen=True)
class RawGaussians:
    """Outputs of the heads, float32.

    Attributes:
        xyz: `[B, N, params.position_channels]`.
        opacity: `[B, N, 1]`.
        scale: `[B, N, 3]`.
        rgb: `[B, N, 3]`.
        rotation: quaternion (w, x, y, z), `[B, N, 4]`, or None.
        blend: logit of the share of `rgb` in the colour, `[B, N, 1]`, or None.
    """

    xyz: Tensor
    opacity: Tensor
    scale: Tensor
    rgb: Tensor
    rotation: Tensor | None = None
    blend: Tensor | None = None


def activate_gaussians(raw: RawGaussians, images_and_rays: Tensor, params: GambaParams) -> Gaussians:
    """Gaussians `[B, N]`.

    Args:
        raw: outputs of the heads.
        images_and_rays: the network's input `[B, 9 or 10, S, S]`; used by the options "ray", "blend" and `mask_input`.
        params: chooses the parametrisation.
    """
    if params.position_mode == "ray":
        means = _positions_on_rays(raw.xyz, images_and_rays[:, 3:9].float(), params)
    else:
        means = _positions_from_bins(raw.xyz, params)
    colors = torch.sigmoid(raw.rgb)
    if raw.blend is not None:
        observed = _cells(images_and_rays[:, :3].float(), params)  # [B, N, 3]
        scaled = zip(observed.unbind(-1), IMAGENET_STD, IMAGENET_MEAN, strict=True)
        observed = torch.stack([channel * std + mean for channel, std, mean in scaled], dim=-1)
        colors = torch.lerp(observed.clamp(0.0, 1.0), colors, torch.sigmoid(raw.blend))
    opacity = raw.opacity
    if params.mask_input:
        opacity = opacity - _HIDDEN_OUTSIDE * (1 - _cells(images_and_rays[:, 9:].float(), params))
    unrotated = torch.eye(4, device=means.device)[0]
    rotation = unrotated.expand(*means.shape[:-1], 4) if raw.rotation is None else raw.rotation
    return Gaussians(
        means=means,
        quats=rotation if raw.rotation is None else F.normalize(rotation, dim=-1, eps=1e-12),
        scales=SCALE_FACTOR * F.softplus(raw.scale),
        opacities=torch.sigmoid(opacity[..., 0]),
        colors=colors,
    )


def _positions_from_bins(xyz: Tensor, params: GambaParams) -> Tensor:
    """Positions `[B, N, 3]`: equidistant values of each axis, weighted by a vector of unit length."""
    weights = F.normalize(xyz.reshape(*xyz.shape[:-1], 3, params.num_bins), dim=-1)
    values = torch.linspace(-params.bin_limit, params.bin_limit, params.num_bins, device=xyz.device)
    return weights @ values


def _cells(maps: Tensor, params: GambaParams) -> Tensor:
    """Means of `[B, C, S, S]` over the cells of the Gaussians, in their order, `[B, N, C]`."""
    pooled = F.avg_pool2d(maps, params.patch_size // params.cells_per_token)
    return scan_pixels(pooled, params.cells_per_token)


def _positions_on_rays(raw: Tensor, rays: Tensor, params: GambaParams) -> Tensor:
    """Positions `[B, N, 3]` from (distance along the ray, offset right, offset down) and ray maps `[B, 6, S, S]`.

    The moment m = o x d is linear in d, so the mean ray of a cell is (mean m, mean d) over the length of the mean d.
    The point of the ray closest to the origin is d x m; distances count from there, in each scan from another start.
    """
    pooled = _cells(rays, params)
    length = pooled[..., 3:].norm(dim=-1, keepdim=True).clamp_min(1e-10)
    moment, direction = (pooled / length).split(3, dim=-1)
    closest = torch.linalg.cross(direction, moment, dim=-1)
    starts = torch.linspace(-params.depth_spread, params.depth_spread, NUM_SCANS, device=raw.device)
    starts = torch.atanh(starts / params.depth_limit).repeat_interleave(raw.shape[1] // NUM_SCANS)[:, None]
    depth = params.depth_limit * torch.tanh(raw[..., :1] / params.depth_limit + starts)
    # Image axes: how the direction changes from the first to the last column (row).
    right = F.normalize((rays[:, 3:, :, -1] - rays[:, 3:, :, 0]).mean(dim=-1), dim=-1)  # [B, 3]
    down = F.normalize((rays[:, 3:, -1, :] - rays[:, 3:, 0, :]).mean(dim=-1), dim=-1)
    offset = params.offset_limit * torch.tanh(raw[..., 1:] * (_OFFSET_GAIN / params.offset_limit))  # [B, N, 2]
    positions: Tensor = closest + depth * direction + offset @ torch.stack([right, down], dim=1)
    return positions
