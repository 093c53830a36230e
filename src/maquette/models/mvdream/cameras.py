"""Camera conditions of MVDream: poses on the unit sphere in a world with Z up, flattened."""

from __future__ import annotations

import torch
from torch import Tensor

from maquette.cameras import Cameras


def camera_conditions(
    num_views: int = 4, elevation_deg: float = 0.0, *, first_azimuth_deg: float = 0.0, with_picture: bool = False
) -> Tensor:
    """Conditions of cameras all around the object, `[num_views, 16]` (or one more).

    Args:
        num_views: number of cameras, evenly spaced in azimuth.
        elevation_deg: of all cameras, in [-90, 90], above is positive.
        first_azimuth_deg: where the first camera stands.
        with_picture: appends the all-zero camera that stands for the prompt picture.
    """
    azimuths = first_azimuth_deg + torch.arange(num_views, dtype=torch.float64) * (360.0 / num_views)
    conditions = flattened_poses(Cameras.orbit(azimuths, elevation_deg, radius=1.0).opengl_poses())
    return torch.cat([conditions, conditions.new_zeros(1, conditions.shape[-1])]) if with_picture else conditions


def relative_conditions(cameras: Cameras) -> Tensor:
    """Conditions `[B, V, 16]` of orbit cameras `[B, V]` around the origin, first view at azimuth 0, distance 1.

    Only the azimuth is relative: elevations stay what they are.
    """
    poses = cameras.opengl_poses()
    rotations, positions = poses[..., :3, :3], poses[..., :3, 3]
    azimuth = torch.atan2(positions[:, :1, 0], positions[:, :1, 2])
    cosine, sine = azimuth.cos(), azimuth.sin()
    zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
    rows = [torch.stack(row, dim=-1) for row in ((cosine, zero, -sine), (zero, one, zero), (sine, zero, cosine))]
    turn = torch.stack(rows, dim=-2)  # [B, 1, 3, 3], about Y
    directions = positions / positions.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    moved = torch.cat([turn @ rotations, turn @ directions[..., None]], dim=-1)
    return flattened_poses(torch.cat([moved, poses[..., 3:, :]], dim=-2))


def flattened_poses(poses: Tensor) -> Tensor:
    """OpenGL camera-to-world matrices `[..., 4, 4]` in our world as conditions `[..., 16]` in MVDream's, Z up."""
    x, y, z, last = poses.unbind(dim=-2)
    return torch.stack([x, -z, y, last], dim=-2).flatten(-2)
