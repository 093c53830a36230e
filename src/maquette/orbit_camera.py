"""`OrbitCamera`: the camera of an interactive viewer, moved by dragging and scrolling."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maquette.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

    from maquette.cameras import Cameras

ORBIT_DEG_PER_PX = 0.05
"""How far a drag of one pixel turns the camera."""
PAN_PER_PX = 0.0005
"""How far a drag of one pixel shifts the target, in world units."""
ZOOM_PER_STEP = 1.1
"""Factor by which one step of the wheel brings the camera closer."""


@dataclass(frozen=True)
class OrbitCamera:
    """A camera that looks at a target and turns about it without rolling. Movements return a new camera.

    The feel (angles and shifts per pixel) is that of LGM's viewer.

    Attributes:
        azimuth_deg: 0 looks at the front (+Z), 90 stands on +X; any value.
        elevation_deg: up is positive; any value, beyond 90 the picture is upside down.
        radius: distance from the target, > 0.
        target: the point in the middle of the picture, in the world.

    Raises:
        InvalidInputError: a value is not finite or the radius not positive.
    """

    azimuth_deg: float = 0.0
    elevation_deg: float = 0.0
    radius: float = 1.5
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        values = (self.azimuth_deg, self.elevation_deg, self.radius, *self.target)
        if not (all(map(math.isfinite, values)) and self.radius > 0):
            raise InvalidInputError(f"an orbit camera needs finite values and a radius > 0, got {self}")

    def orbited(self, dx_px: float, dy_px: float) -> OrbitCamera:
        """After a drag to the right and downwards: the object turns with the pointer."""
        return dataclasses.replace(
            self,
            azimuth_deg=self.azimuth_deg - ORBIT_DEG_PER_PX * dx_px,
            elevation_deg=self.elevation_deg + ORBIT_DEG_PER_PX * dy_px,
        )

    def zoomed(self, steps: float) -> OrbitCamera:
        """After turning the wheel; positive steps bring the camera closer."""
        return dataclasses.replace(self, radius=self.radius * ZOOM_PER_STEP**-steps)

    def panned(self, dx_px: float, dy_px: float) -> OrbitCamera:
        """After a panning drag to the right and downwards: the object shifts with the pointer."""
        right, up, _ = self._axes()
        shift = [PAN_PER_PX * (dy_px * u - dx_px * r) for r, u in zip(right, up, strict=True)]
        x, y, z = (value + change for value, change in zip(self.target, shift, strict=True))
        return dataclasses.replace(self, target=(x, y, z))

    def opengl_pose(self) -> Tensor:
        """Camera-to-world matrix in OpenGL camera axes (x right, y up, z backward), `[4, 4]` float64."""
        import torch

        pose = torch.eye(4, dtype=torch.float64)
        right, up, backward = torch.tensor(self._axes(), dtype=torch.float64)
        pose[:3, :3] = torch.stack([right, up, backward], dim=-1)
        pose[:3, 3] = backward * self.radius + torch.tensor(self.target, dtype=torch.float64)
        return pose

    def cameras(self, fov_deg: float, height: int, width: int) -> Cameras:
        """The camera as `Cameras` `[1]` in float32.

        Args:
            fov_deg: vertical field of view in degrees, in (0, 180).
            height, width: image size in pixels.
        """
        import torch

        from maquette.cameras import Cameras

        return Cameras.from_opengl_poses(self.opengl_pose()[None], fov_deg, height, width).to(torch.float32)

    def _axes(self) -> tuple[tuple[float, float, float], ...]:
        """Right, up and backward in the world."""
        azimuth, elevation = math.radians(self.azimuth_deg), math.radians(self.elevation_deg)
        cos_a, sin_a, cos_e, sin_e = math.cos(azimuth), math.sin(azimuth), math.cos(elevation), math.sin(elevation)
        right = (cos_a, 0.0, -sin_a)
        up = (-sin_e * sin_a, cos_e, -sin_e * cos_a)
        return right, up, (cos_e * sin_a, sin_e, cos_e * cos_a)
