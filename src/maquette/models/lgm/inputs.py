"""What LGM sees: normalised pictures and ray maps; the official camera conventions at the border.

Source: LGM (Tang et al., ECCV 2024), section 3.2 and the released inference code's conventions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INPUT_AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)
"""Azimuths of the four input views."""


def normalize_images(images: Tensor) -> Tensor:
    """ImageNet-normalises RGB pictures `[..., 3, H, W]` in 0..1."""
    mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = images.new_tensor(IMAGENET_STD)[:, None, None]
    return (images - mean) / std


def resize_images(images: Tensor, size: int) -> Tensor:
    """Resizes `[..., C, H, W]` to `size` x `size` bilinearly, without antialiasing, as LGM was trained."""
    if images.shape[-2:] == (size, size):
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    resized = F.interpolate(flat, size=(size, size), mode="bilinear", align_corners=False)
    return resized.reshape(*images.shape[:-2], size, size)


def ray_maps(cameras: Cameras) -> Tensor:
    """Pluecker coordinates of every pixel's ray, `[..., 6, H, W]`: moment origin x direction, then direction."""
    origins, directions = cameras.rays()
    moments = torch.linalg.cross(origins, directions, dim=-1)
    return torch.cat([moments, directions], dim=-1).movedim(-1, -3)


def default_cameras(elevation_deg: float = 0.0, size: int = 256, *, radius: float = 1.5) -> Cameras:
    """The four cameras `[4]` that LGM's inference assumes.

    Args:
        elevation_deg: of all four, up is positive (the official code counts downwards: negate its values).
        size: side of the square pictures, px.
        radius: distance from the origin.
    """
    return Cameras.orbit(INPUT_AZIMUTHS_DEG, elevation_deg, radius=radius, height=size, width=size)


def network_inputs(images: Tensor, cameras: Cameras, size: int) -> Tensor:
    """The network's input `[..., V, 9, size, size]` in float32.

    Args:
        images: RGB on white, 0..1, `[..., V, 3, H, W]`.
        cameras: of the pictures, batch `[..., V]`; any image size with the same field of view.
        size: input side of the network, px.

    Raises:
        InvalidInputError: pictures or cameras are not square.
    """
    if images.shape[-1] != images.shape[-2] or cameras.height != cameras.width:
        raise InvalidInputError(
            f"LGM needs square pictures, got {images.shape[-2]} x {images.shape[-1]}; crop or pad them first"
        )
    normalized = normalize_images(resize_images(images.float(), size))
    rays = ray_maps(cameras.to(torch.float32).resized(size, size))
    return torch.cat([normalized, rays], dim=-3)


def select_cameras(cameras: Cameras, views: slice) -> Cameras:
    """A range of the views of batched cameras `[B, V]`."""
    return Cameras(cameras.world_to_camera[:, views], cameras.intrinsics[:, views], cameras.height, cameras.width)


def normalize_poses(cameras: Cameras, front: Cameras, radius: float = 1.5) -> Cameras:
    """Moves the world so that one camera becomes the front camera, as LGM's training does.

    Afterwards `front` would stand at `radius` on +Z, upright, looking at the origin.

    Args:
        cameras: `[..., V]`.
        front: one camera per object, `[..., 1]`.
        radius: distance of the front camera from the new origin.
    """
    standard = cameras.world_to_camera.new_tensor(
        [[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, radius], [0.0, 0.0, 0.0, 1.0]]
    )  # world to OpenCV camera of the front view
    moved = cameras.world_to_camera @ front.camera_to_world @ standard
    return Cameras(moved, cameras.intrinsics, cameras.height, cameras.width)
