"""From the raw outputs of LGM to Gaussians."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.gaussians import Gaussians
from maquette.models.lgm.params import LGMParams
from maquette.nn.posed_images import IMAGENET_MEAN, IMAGENET_STD


def activate_gaussians(raw: Tensor, images_and_rays: Tensor, params: LGMParams) -> Gaussians:
    """Applies the activations of LGM (section 3.2 of the paper) in float32.

    Args:
        raw: `[B, N, C]`: position 3, opacity 1, scale 3, quaternion (w, x, y, z) 4, colour 3 and, with
            `color_mode` "blend", the mixing weight.
        images_and_rays: the network's input `[B, 4, 9, H, W]`; used by the modes "ray" and "blend" only.
        params: chooses the parametrisation.
    """
    raw = raw.float()
    if params.position_mode == "ray":
        means = _positions_on_rays(raw[..., :3], images_and_rays[:, :, 3:].float(), params)
    else:
        means = raw[..., :3].clamp(-1.0, 1.0)
    colors = 0.5 * torch.tanh(raw[..., 11:14]) + 0.5
    if params.color_mode == "blend":
        observed = _pool_to_cells(images_and_rays[:, :, :3].float(), params)  # [B, N, 3]
        observed = observed * observed.new_tensor(IMAGENET_STD) + observed.new_tensor(IMAGENET_MEAN)
        colors = torch.lerp(observed.clamp(0.0, 1.0), colors, torch.sigmoid(raw[..., 14:15]))
    return Gaussians(
        means=means,
        quats=F.normalize(raw[..., 7:11], dim=-1 if params.rotation_axis == "last" else 1, eps=1e-12),
        scales=0.1 * F.softplus(raw[..., 4:7]),
        opacities=torch.sigmoid(raw[..., 3]),
        colors=colors,
    )


def _pool_to_cells(maps: Tensor, params: LGMParams) -> Tensor:
    """Means of `[B, V, C, H, W]` over the cells of the output grid, `[B, V * S * S, C]`."""
    batch, _, channels = maps.shape[:3]
    pooled = F.avg_pool2d(maps.flatten(0, 1), params.input_size // params.splat_size)
    return pooled.permute(0, 2, 3, 1).reshape(batch, -1, channels)


def _positions_on_rays(raw: Tensor, rays: Tensor, params: LGMParams) -> Tensor:
    """Positions `[B, N, 3]` from (distance along the ray, offset right, offset down) and rays `[B, V, 6, H, W]`.

    The moment m = o x d is linear in d, so the mean ray of a cell is (mean m, mean d) over the length of the
    mean d. The point of the ray closest to the origin is d x m; distances count from there.
    """
    pooled = _pool_to_cells(rays, params)
    length = pooled[..., 3:].norm(dim=-1, keepdim=True).clamp_min(1e-10)
    moment, direction = (pooled / length).split(3, dim=-1)
    closest = torch.linalg.cross(direction, moment, dim=-1)
    # Image axes of each view: how the direction changes from the first to the last column (row).
    right = F.normalize((rays[:, :, 3:, :, -1] - rays[:, :, 3:, :, 0]).mean(dim=-1), dim=-1)  # [B, V, 3]
    down = F.normalize((rays[:, :, 3:, -1, :] - rays[:, :, 3:, 0, :]).mean(dim=-1), dim=-1)
    axes = torch.stack([right, down], dim=-2).repeat_interleave(params.splat_size**2, dim=1)  # [B, N, 2, 3]
    depth_limit, offset_limit = params.ray_depth_limit, params.ray_offset_limit
    depth = depth_limit * torch.tanh(raw[..., :1] / depth_limit)
    # A gain of 0.1 at zero keeps Gaussians near their rays early in training.
    offset = offset_limit * torch.tanh(raw[..., 1:] * (0.1 / offset_limit))
    positions: Tensor = closest + depth * direction + (offset[..., None] * axes).sum(dim=-2)
    return positions
