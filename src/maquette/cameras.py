"""`Cameras`: a batch of pinhole cameras, and the conventions between which files convert.

World: right-handed, Y up, the object inside [-1, 1]^3 facing +Z. Camera: OpenCV axes (x right, y down,
z forward). Pixel centres lie at +0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maquette.errors import InvalidInputError

OPENGL_TO_OPENCV = (1.0, -1.0, -1.0, 1.0)
"""Factors on the columns of a camera-to-world matrix that turn OpenGL camera axes into OpenCV ones and back."""


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras that share one image size.

    Attributes:
        world_to_camera: rigid transforms into OpenCV camera axes, `[..., 4, 4]`.
        intrinsics: in pixels, `[..., 3, 3]`: fx, fy on the diagonal, (cx, cy) in the last column.
        height, width: image size in pixels.

    Raises:
        InvalidInputError: shapes, dtypes or devices disagree, or the image size is not positive.
    """

    world_to_camera: Tensor
    intrinsics: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        lead = tuple(self.world_to_camera.shape[:-2])
        if tuple(self.world_to_camera.shape[-2:]) != (4, 4):
            raise InvalidInputError(f"world_to_camera must be [..., 4, 4], got {list(self.world_to_camera.shape)}")
        if tuple(self.intrinsics.shape) != (*lead, 3, 3):
            raise InvalidInputError(f"intrinsics must be {[*lead, 3, 3]}, got {list(self.intrinsics.shape)}")
        if self.world_to_camera.device != self.intrinsics.device:
            raise InvalidInputError("world_to_camera and intrinsics must be on one device")
        if not (self.world_to_camera.is_floating_point() and self.intrinsics.is_floating_point()):
            raise InvalidInputError("world_to_camera and intrinsics must be floating-point tensors")
        if self.height < 1 or self.width < 1:
            raise InvalidInputError(f"image size must be positive, got {self.height} x {self.width}")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions."""
        return tuple(self.world_to_camera.shape[:-2])

    @property
    def device(self) -> torch.device:
        """Device of both tensors."""
        return self.world_to_camera.device

    @property
    def camera_to_world(self) -> Tensor:
        """Inverse of `world_to_camera`, OpenCV axes, `[..., 4, 4]`."""
        rotation = self.world_to_camera[..., :3, :3].mT
        translation = -rotation @ self.world_to_camera[..., :3, 3:]
        last = self.world_to_camera[..., 3:, :]
        return torch.cat([torch.cat([rotation, translation], dim=-1), last], dim=-2)

    @property
    def positions(self) -> Tensor:
        """Camera centres in the world, `[..., 3]`."""
        return self.camera_to_world[..., :3, 3]

    def opengl_poses(self) -> Tensor:
        """Camera-to-world matrices in OpenGL camera axes (x right, y up, z backward), `[..., 4, 4]`."""
        return self.camera_to_world * self.camera_to_world.new_tensor(OPENGL_TO_OPENCV)

    def to(self, target: torch.device | torch.dtype | str) -> Cameras:
        """Moves to a device or casts to a floating-point dtype."""
        return Cameras(self.world_to_camera.to(target), self.intrinsics.to(target), self.height, self.width)

    def __getitem__(self, index: int | slice | Tensor) -> Cameras:
        """Indexes the first batch dimension."""
        return Cameras(self.world_to_camera[index], self.intrinsics[index], self.height, self.width)

    def reshape(self, *shape: int) -> Cameras:
        """Reshapes the leading dimensions."""
        return Cameras(
            self.world_to_camera.reshape(*shape, 4, 4),
            self.intrinsics.reshape(*shape, 3, 3),
            self.height,
            self.width,
        )

    def resized(self, height: int, width: int) -> Cameras:
        """The same cameras at another image size (pixels scale, the field of view stays)."""
        factors = self.intrinsics.new_tensor([[width / self.width], [height / self.height], [1.0]])
        return Cameras(self.world_to_camera, self.intrinsics * factors, height, width)

    def mirrored(self) -> Cameras:
        """Cameras that see the mirror image, at the plane x = 0, of what these see: left and right swapped.

        With S = diag(-1, 1, 1), a camera turns from R, t to S R S, S t, and its principal point to width - cx.
        """
        signs = 1.0 - 2.0 * (torch.arange(4, device=self.device) == 0)  # diag(S, 1)
        intrinsics = self.intrinsics.clone()
        intrinsics[..., 0, 2] = self.width - intrinsics[..., 0, 2]
        return Cameras(self.world_to_camera * signs[:, None] * signs, intrinsics, self.height, self.width)

    def rays(self) -> tuple[Tensor, Tensor]:
        """Origins and unit directions through every pixel centre, both `[..., H, W, 3]`, in the world."""
        device, dtype = self.device, self.intrinsics.dtype
        rows = torch.arange(self.height, device=device, dtype=dtype) + 0.5
        columns = torch.arange(self.width, device=device, dtype=dtype) + 0.5
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        focal_x, focal_y = self.intrinsics[..., 0, 0, None, None], self.intrinsics[..., 1, 1, None, None]
        center_x, center_y = self.intrinsics[..., 0, 2, None, None], self.intrinsics[..., 1, 2, None, None]
        local_x = (x - center_x) / focal_x
        local = torch.stack([local_x, (y - center_y) / focal_y, torch.ones_like(local_x)], dim=-1)
        rotation = self.camera_to_world[..., :3, :3]  # [..., 3, 3]
        directions = torch.einsum("...ij,...hwj->...hwi", rotation, local)
        directions = directions / directions.norm(dim=-1, keepdim=True).clamp_min(1e-10)
        origins = self.positions[..., None, None, :].expand_as(directions)
        return origins, directions

    @staticmethod
    def from_opengl_poses(poses: Tensor, fov_deg: float, height: int, width: int) -> Cameras:
        """Cameras from OpenGL camera-to-world matrices and one vertical field of view.

        Args:
            poses: `[..., 4, 4]`, rigid.
            fov_deg: vertical field of view in degrees, in (0, 180); pixels are square.
            height, width: image size in pixels.
        """
        opencv = poses * poses.new_tensor(OPENGL_TO_OPENCV)
        rotation = opencv[..., :3, :3].mT
        translation = -rotation @ opencv[..., :3, 3:]
        world_to_camera = torch.cat([torch.cat([rotation, translation], -1), opencv[..., 3:, :]], -2)
        intrinsics = intrinsics_from_fov(fov_deg, height, width).to(poses)
        return Cameras(world_to_camera, intrinsics.expand(*poses.shape[:-2], 3, 3), height, width)

    @staticmethod
    def orbit(
        azimuths_deg: Sequence[float] | Tensor,
        elevations_deg: float | Sequence[float] | Tensor = 0.0,
        *,
        radius: float = 1.5,
        fov_deg: float = 49.1,
        height: int = 256,
        width: int = 256,
        target: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Cameras:
        """Upright cameras on a sphere about a point that look at it; defaults are LGM's.

        Args:
            azimuths_deg: `[V]`; 0 looks at the front (+Z), growing to the object's left (+X is 90).
            elevations_deg: one value or `[V]`; up is positive, in [-90, 90].
            radius: distance of the camera centre, > 0.
            fov_deg: vertical field of view in degrees, in (0, 180).
            height, width: image size in pixels.
            target: the point, in the world.
        """
        if not 0 < radius < math.inf:
            raise InvalidInputError(f"radius must be > 0, got {radius}")
        azimuth = torch.as_tensor(azimuths_deg, dtype=torch.float64).reshape(-1).deg2rad()
        elevation = torch.as_tensor(elevations_deg, dtype=torch.float64).reshape(-1).deg2rad().expand_as(azimuth)
        if not bool(azimuth.isfinite().all()):
            raise InvalidInputError(f"azimuths_deg must be finite numbers, got {azimuths_deg}")
        if not bool((elevation.abs() <= math.pi / 2 + 1e-9).all()):
            raise InvalidInputError(f"elevations_deg must lie in [-90, 90], got {elevations_deg}")
        cos_e, sin_e, cos_a, sin_a = elevation.cos(), elevation.sin(), azimuth.cos(), azimuth.sin()
        zero = torch.zeros_like(azimuth)
        backward = torch.stack([cos_e * sin_a, sin_e, cos_e * cos_a], -1)
        right = torch.stack([cos_a, zero, -sin_a], -1)
        up = torch.stack([-sin_e * sin_a, cos_e, -sin_e * cos_a], -1)
        poses = torch.eye(4, dtype=torch.float64).repeat(len(azimuth), 1, 1)
        poses[:, :3, :3] = torch.stack([right, up, backward], -1)
        poses[:, :3, 3] = backward * radius + poses.new_tensor(target)
        cameras = Cameras.from_opengl_poses(poses, fov_deg, height, width)
        return cameras.to(torch.float32)

    @staticmethod
    def stack(items: Sequence[Cameras]) -> Cameras:
        """Stacks cameras of one batch shape and image size along a new first dimension."""
        if not items:
            raise InvalidInputError("stack() needs at least one item")
        sizes = {(item.height, item.width) for item in items}
        if len(sizes) != 1:
            raise InvalidInputError(f"stack() needs cameras of one image size, got {sorted(sizes)}")
        return Cameras(
            torch.stack([item.world_to_camera for item in items]),
            torch.stack([item.intrinsics for item in items]),
            items[0].height,
            items[0].width,
        )


def intrinsics_from_fov(fov_deg: float, height: int, width: int) -> Tensor:
    """Pinhole matrix `[3, 3]` (float64) for a vertical field of view, square pixels, centred principal point."""
    if not 0.0 < fov_deg < 180.0:
        raise InvalidInputError(f"fov_deg must lie in (0, 180) degrees, got {fov_deg}")
    focal_px = 0.5 * height / math.tan(math.radians(fov_deg) / 2)
    return torch.tensor([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]], dtype=torch.float64)
