"""The radial mask loss: Gaussians that project outside the object's outline are drawn back towards it.

Source: Gamba (Shen et al., 2024), section 3.4. The outline is a polygon about the centre of the picture, one corner per
direction, as in PolarMask (Xie et al., 2020); the paper's own implementation is not published.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.cameras import Cameras
from maquette.gaussians import Gaussians

NUM_DIRECTIONS = 64
"""Corners of the polygon."""

_NEAR = 0.2
"""Gaussians closer to the camera plane than this are not drawn, and not judged either."""


def mask_outline(alpha: Tensor, num_directions: int = NUM_DIRECTIONS) -> Tensor:
    """Distance of the outermost covered point from the centre of the picture in equidistant directions.

    Args:
        alpha: coverage 0..1, `[..., H, W]`; a point is covered where the nearest pixel has more than 0.5.
        num_directions: directions, the first to the right, then turning downwards.

    Returns:
        `[..., num_directions]` in half diagonals of the picture; 0 where nothing is covered.
    """
    height, width = alpha.shape[-2:]
    steps = max(height, width)
    angles = torch.arange(num_directions, device=alpha.device) * (2 * math.pi / num_directions)
    radii = (torch.arange(steps, device=alpha.device) + 0.5) / steps  # half diagonals
    half_diagonal = 0.5 * math.hypot(height, width)
    # Coordinates in which the borders of the picture lie at -1 and 1.
    x = radii * half_diagonal * angles.cos()[:, None] / (0.5 * width)
    y = radii * half_diagonal * angles.sin()[:, None] / (0.5 * height)
    flat = alpha.reshape(-1, 1, height, width)
    grid = torch.stack([x, y], dim=-1).to(flat.dtype).expand(len(flat), -1, -1, -1)
    covered = F.grid_sample(flat, grid, mode="nearest", align_corners=False)[:, 0] > 0.5
    distances = torch.where(covered, radii.to(flat.dtype), 0.0).amax(dim=-1)
    return distances.reshape(*alpha.shape[:-2], num_directions)


def radial_mask_loss(gaussians: Gaussians, cameras: Cameras, alpha: Tensor) -> Tensor:
    """Mean squared distance by which projected centres lie outside the outline, measured along their directions.

    Args:
        gaussians: `[B, N]`.
        cameras: `[B, V]`, in the world of the Gaussians.
        alpha: true coverage, `[B, V, H, W]`.

    Returns:
        Scalar, in squared half diagonals of the picture; the mean goes over all Gaussians and views, so that those
        inside count as 0.
    """
    outline = mask_outline(alpha.float())  # [B, V, D]
    transform = cameras.world_to_camera.float()
    local = gaussians.means[:, None] @ transform[..., :3, :3].mT + transform[..., None, :3, 3]  # [B, V, N, 3]
    in_front = local[..., 2] > _NEAR
    depth = torch.where(in_front, local[..., 2], 1.0)
    focal = cameras.intrinsics[..., None, [0, 1], [0, 1]].float()
    middle = cameras.intrinsics[..., None, :2, 2].float() - cameras.intrinsics.new_tensor(
        [0.5 * cameras.width, 0.5 * cameras.height]
    )
    half_diagonal = 0.5 * math.hypot(cameras.height, cameras.width)
    from_center = (local[..., :2] / depth[..., None] * focal + middle) / half_diagonal  # [B, V, N, 2]
    distance = from_center.square().sum(-1).clamp_min(1e-12).sqrt()
    allowed = _interpolated(outline, torch.atan2(from_center[..., 1], from_center[..., 0]).detach())
    outside = (distance - allowed).clamp_min(0.0)
    return torch.where(in_front, outside, 0.0).square().mean()


def _interpolated(outline: Tensor, angles: Tensor) -> Tensor:
    """The outline `[B, V, D]` at angles `[B, V, N]`, linear between the two neighbouring directions."""
    count = outline.shape[-1]
    position = (angles / (2 * math.pi) * count) % count
    before = position.floor()
    first = before.long() % count
    return torch.lerp(outline.gather(-1, first), outline.gather(-1, (first + 1) % count), position - before)
