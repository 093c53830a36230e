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
    positions = cameras.positions
    azimuths = torch.atan2(positions[..., 0], positions[..., 2])
    elevations = torch.asin((positions[..., 1] / positions.norm(dim=-1).clamp_min(1e-8)).clamp(-1, 1))
    batch, views = azimuths.shape
    turned = (azimuths - azimuths[:, :1]).rad2deg().flatten().cpu()
    poses = Cameras.orbit(turned, elevations.rad2deg().flatten().cpu(), radius=1.0).opengl_poses()
    return flattened_poses(poses).reshape(batch, views, -1).to(positions)


def flattened_poses(poses: Tensor) -> Tensor:
    """OpenGL camera-to-world matrices `[..., 4, 4]` in our world as conditions `[..., 16]` in MVDream's, Z up."""
    x, y, z, last = poses.unbind(dim=-2)
    return torch.stack([x, -z, y, last], dim=-2).flatten(-2)
