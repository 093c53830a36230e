"""Pictures with known cameras as networks see them: normalised, with ray maps, relative to the first camera.

Source: LGM (Tang et al., ECCV 2024), section 3.2, and the conventions of its released code, which Gamba shares.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.nn.depth import pool_depths
from maquette.views import Views

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RADIUS_TOLERANCE = 0.15
_FOV_TOLERANCE_DEG = 3.0


def normalize_images(images: Tensor) -> Tensor:
    """ImageNet-normalises RGB pictures `[..., 3, H, W]` in 0..1."""
    mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = images.new_tensor(IMAGENET_STD)[:, None, None]
    return (images - mean) / std


def resize_images(images: Tensor, size: int) -> Tensor:
    """Resizes `[..., C, H, W]` to `size` x `size` bilinearly, without antialiasing, as LGM and Gamba were
    trained."""
    if images.shape[-2:] == (size, size):
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    resized = F.interpolate(flat, size=(size, size), mode="bilinear", align_corners=False)
    return resized.reshape(*images.shape[:-2], size, size)


def resize_views(views: Views, size: int) -> Views:
    """Views at `size` x `size` pixels, antialiased, colours weighted by alpha; depths lose pixels at edges."""
    if (views.cameras.height, views.cameras.width) == (size, size):
        return views
    alpha = views.images[..., 3:, :, :]
    stacked = torch.cat([views.images[..., :3, :, :] * alpha, alpha], dim=-3)
    lead = stacked.shape[:-3]
    flat = F.interpolate(stacked.flatten(0, -4), size=(size, size), mode="bilinear", antialias=True)
    color = torch.where(flat[:, 3:] > 1e-4, flat[:, :3] / flat[:, 3:].clamp_min(1e-4), 0.0)
    images = torch.cat([color, flat[:, 3:]], dim=1).clamp(0, 1)
    depths = None if views.depths is None else pool_depths(views.depths, size)
    return Views(images.reshape(*lead, 4, size, size), views.cameras.resized(size, size), depths)


def ray_maps(cameras: Cameras) -> Tensor:
    """Pluecker coordinates of every pixel's ray, `[..., 6, H, W]`: moment origin x direction, then direction."""
    origins, directions = cameras.rays()
    moments = torch.linalg.cross(origins, directions, dim=-1)
    return torch.cat([moments, directions], dim=-1).movedim(-1, -3)


def network_inputs(images: Tensor, cameras: Cameras, size: int) -> Tensor:
    """Normalised pictures and their ray maps, `[..., V, 9, size, size]`, float32.

    Args:
        images: RGB on white, 0..1, `[..., V, 3, H, W]`.
        cameras: of the pictures, batch `[..., V]`; any square size with the same field of view.
        size: input side of the network, px.

    Raises:
        InvalidInputError: pictures or cameras are not square.
    """
    if images.shape[-1] != images.shape[-2] or cameras.height != cameras.width:
        raise InvalidInputError(
            f"the network needs square pictures, got {images.shape[-2]} x {images.shape[-1]}; crop or pad them first"
        )
    normalized = normalize_images(resize_images(images.float(), size))
    rays = ray_maps(cameras.to(torch.float32).resized(size, size))
    return torch.cat([normalized, rays], dim=-3)


def select_cameras(cameras: Cameras, views: slice) -> Cameras:
    """A range of the views of batched cameras `[B, V]`."""
    return Cameras(cameras.world_to_camera[:, views], cameras.intrinsics[:, views], cameras.height, cameras.width)


def front_to_world(front: Cameras, radius: float = 1.5) -> Tensor:
    """Rigid transforms `[..., 4, 4]` to the world of cameras `[...]` from one in which they are the front camera.

    There they stand at `radius` on +Z, upright, and look at the origin.
    """
    return front.camera_to_world @ _to_front_camera(front.world_to_camera, radius)


def _to_front_camera(like: Tensor, radius: float) -> Tensor:
    """World to OpenCV camera of the front view, `[4, 4]`."""
    return like.new_tensor(
        [[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, radius], [0.0, 0.0, 0.0, 1.0]]
    )


def normalize_poses(cameras: Cameras, front: Cameras, radius: float = 1.5) -> Cameras:
    """Moves the world so that one camera becomes the front camera, as the training of LGM and Gamba does.

    Args:
        cameras: `[..., V]`.
        front: one camera per object, `[..., 1]`.
        radius: distance of the front camera from the new origin.
    """
    # In this order: another one rounds differently, which edges of rendered pictures show.
    moved = cameras.world_to_camera @ front.camera_to_world @ _to_front_camera(front.world_to_camera, radius)
    return Cameras(moved, cameras.intrinsics, cameras.height, cameras.width)


def opengl_poses_of_objaverse(poses: Tensor) -> Tensor:
    """OpenGL camera-to-world matrices in our world from poses of the rendered Objaverse data, `[V, 4, 4]`.

    Those are in a Blender world (Z up) with OpenCV camera axes; LGM and Gamba were trained on them.
    """
    world = poses.clone()
    world[:, 1] *= -1
    world = world[:, [0, 2, 1, 3]]
    world[:, :3, 1:3] *= -1
    return world


def warn_about_cameras(cameras: Cameras, model: str, radius: float, fov_deg: float, *, stacklevel: int = 3) -> None:
    """Warns when cameras are far from those that a model was trained with.

    Args:
        cameras: of the pictures.
        model: name for the message.
        radius: expected distance from the origin.
        fov_deg: expected vertical field of view, degrees.
        stacklevel: of the warning; 3 points at the caller's caller.
    """
    distances = cameras.positions.norm(dim=-1)
    if bool(((distances - radius).abs() > _RADIUS_TOLERANCE).any()):
        low, high = float(distances.min()), float(distances.max())
        warnings.warn(
            f"{model} expects cameras {radius} from the origin, got {low:.2f} to {high:.2f}: "
            "scale the scene, or let `maquette generate` do it",
            stacklevel=stacklevel,
        )
    tangent = 0.5 * cameras.height / cameras.intrinsics[..., 1, 1]
    seen_deg = torch.rad2deg(2 * torch.atan(tangent))
    if bool(((seen_deg - fov_deg).abs() > _FOV_TOLERANCE_DEG).any()):
        low, high = float(seen_deg.min()), float(seen_deg.max())
        warnings.warn(
            f"{model} expects a field of view of {fov_deg} degrees, got {low:.1f} to {high:.1f}: "
            "crop or pad the pictures, or let `maquette generate` do it",
            stacklevel=stacklevel,
        )
