"""From the raw outputs of LGM to Gaussians."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.gaussians import Gaussians
from maquette.models.lgm.params import LGMParams
from maquette.nn.posed_images import IMAGENET_MEAN, IMAGENET_STD

_DEPTH_LIMIT = 0.9
_OFFSET_LIMIT = 0.3
"""How far "hull" moves a Gaussian at most, along its ray and along each image axis, world units."""
_RIM = 0.016
"""Pixels off the object count as its rim up to this share of the picture's side; only they may carry Gaussians."""


def activate_gaussians(raw: Tensor, pictures: Tensor, params: LGMParams) -> Gaussians:
    """Applies the activations of LGM (section 3.2 of the paper), or those of "hull", in float32.

    Args:
        raw: `[B, N, C]`: position 3, opacity 1, scale 3, quaternion (w, x, y, z) 4, colour 3 and, with "hull", the
            weight of that colour against the input's. Positions of "hull" are distances from the hull along the ray,
            to the right and down.
        pictures: the network's input `[B, 4, C_in, H, W]`; used by "hull" only.
        params: chooses the parametrisation.
    """
    raw = raw.float()
    quats = F.normalize(raw[..., 7:11], dim=-1 if params.rotation_axis == "last" else 1, eps=1e-12)
    colors = 0.5 * torch.tanh(raw[..., 11:14]) + 0.5
    if params.parametrization == "world":
        return Gaussians(
            means=raw[..., :3].clamp(-1.0, 1.0),
            quats=quats,
            scales=0.1 * F.softplus(raw[..., 4:7]),
            opacities=torch.sigmoid(raw[..., 3]),
            colors=colors,
        )
    pictures = pictures.float()
    alpha = pictures[:, :, 9:10]
    pixel = 2 * math.tan(math.radians(params.fov_deg / 2)) * params.camera_radius / params.input_size
    rim = 2 * round(_RIM * params.input_size) + 1
    near = F.max_pool2d(alpha.flatten(0, 1), rim, stride=1, padding=rim // 2).reshape(alpha.shape) > 0.05
    opacities = torch.sigmoid(raw[..., 3] + 6.0 * _per_pixel(alpha)[..., 0] - 3.5)
    observed = _observed_colors(pictures[:, :, :3], alpha)
    return Gaussians(
        means=_positions_from_hull(raw[..., :3], pictures[:, :, 3:9], pictures[:, :, 10:11]),
        quats=quats,
        scales=0.6 * pixel * torch.exp(raw[..., 4:7].clamp(-6.0, 4.0)),
        opacities=torch.where(_per_pixel(near)[..., 0], opacities, 0.0),
        colors=torch.lerp(_per_pixel(observed), colors, torch.sigmoid(raw[..., 14:15])),
    )


def _per_pixel(maps: Tensor) -> Tensor:
    """`[B, V, C, H, W]` to `[B, V * H * W, C]`."""
    return maps.permute(0, 1, 3, 4, 2).flatten(1, 3)


def _observed_colors(normalized: Tensor, alpha: Tensor) -> Tensor:
    """The object's own colours `[B, V, 3, H, W]`, 0..1, of normalised pictures on white."""
    mean = normalized.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = normalized.new_tensor(IMAGENET_STD)[:, None, None]
    on_white = normalized * std + mean
    return ((on_white - (1 - alpha)) / alpha.clamp_min(0.1)).clamp(0.0, 1.0)


def _positions_from_hull(raw: Tensor, rays: Tensor, entry: Tensor) -> Tensor:
    """Positions `[B, N, 3]` from (distance along the ray, right, down), rays `[B, V, 6, H, W]` and entries
    `[B, V, 1, H, W]`, which count from the point of a ray that is closest to the origin, d x m."""
    moment, direction = rays[:, :, :3], rays[:, :, 3:]
    closest = torch.linalg.cross(direction, moment, dim=2)
    # Image axes of each view: how the direction changes from the first to the last column (row).
    right = F.normalize((direction[..., :, -1] - direction[..., :, 0]).mean(dim=-1), dim=-1)  # [B, V, 3]
    down = F.normalize((direction[..., -1, :] - direction[..., 0, :]).mean(dim=-1), dim=-1)
    views, cells = rays.shape[1], rays.shape[-1] * rays.shape[-2]
    along = _DEPTH_LIMIT * torch.tanh(raw[..., :1] * (0.3 / _DEPTH_LIMIT))
    # A gain of 0.1 at zero keeps Gaussians near their rays early in training.
    offset = _OFFSET_LIMIT * torch.tanh(raw[..., 1:] * (0.1 / _OFFSET_LIMIT))
    offset = offset.reshape(raw.shape[0], views, cells, 2) @ torch.stack([right, down], dim=-2)  # [B, V, HW, 3]
    positions: Tensor = _per_pixel(closest + entry * direction) + along * _per_pixel(direction) + offset.flatten(1, 2)
    return positions
