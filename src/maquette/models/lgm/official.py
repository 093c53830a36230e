"""Where maquette meets the official LGM: its cameras, data layout and published weights.

Everything that follows the official conventions instead of ours lives here. Source: the released code of LGM
(3DTopia/LGM, MIT) as described by its options and file formats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.models.lgm.params import LGMParams, RotationAxis
from maquette.nn.posed_images import network_inputs, normalize_poses, opengl_poses_of_objaverse, resize_images

Z_NEAR, Z_FAR = 0.5, 2.5
"""Clipping planes of the official projection matrix."""


def rotation_axis_of(filename: str) -> RotationAxis:
    """How quaternions were normalised in a published checkpoint, from its file name.

    The files published before 2024-04-03 (`model_fp16.safetensors`, `model.safetensors`) were trained with the norm
    over all Gaussians; `model_fp16_fixrot.safetensors` and everything else with the norm of each quaternion.
    """
    old = {"model_fp16.safetensors", "model.safetensors", "model_fp16.pt", "model.pt"}
    return "gaussians" if PurePath(filename).name in old else "last"


def network_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's part of an official state dict: without LPIPS, without wrappers' prefixes."""
    names = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in names.items() if not name.startswith("lpips_loss.")}


def orbit_cameras(
    elevations_deg: Sequence[float] | Tensor,
    azimuths_deg: Sequence[float] | Tensor,
    *,
    radius: float = 1.5,
    fov_deg: float = 49.1,
    size: int = 256,
    target: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Cameras:
    """Orbit cameras `[V]` from official angles, where positive elevations lie below the object."""
    elevations = -torch.as_tensor(elevations_deg, dtype=torch.float64)
    return Cameras.orbit(
        azimuths_deg, elevations, radius=radius, fov_deg=fov_deg, height=size, width=size, target=target
    )


def left_handed_poses(cameras: Cameras) -> Tensor:
    """Camera-to-world matrices as the official orbit function returns them without its OpenGL flag, `[..., 4, 4]`.

    Their columns are right, up and forward, which is neither OpenGL nor OpenCV.
    """
    poses = cameras.opengl_poses()
    return poses * poses.new_tensor([1.0, 1.0, -1.0, 1.0])


@dataclass(frozen=True)
class RendererMatrices:
    """Camera matrices as the official rasterizer takes them.

    Attributes:
        cam_view: transposed world-to-camera matrices (row vectors), `[V, 4, 4]`.
        cam_view_proj: `cam_view` times the projection, `[V, 4, 4]`.
        cam_pos: the negated camera positions (the official sign), `[V, 3]`.
    """

    cam_view: Tensor
    cam_view_proj: Tensor
    cam_pos: Tensor


def projection_matrix(fov_deg: float = 49.1) -> Tensor:
    """The official projection for row vectors, `[4, 4]`; its depth row is not a true OpenGL one."""
    cotangent = 1 / math.tan(math.radians(fov_deg) / 2)
    matrix = torch.zeros(4, 4)
    matrix[0, 0] = matrix[1, 1] = cotangent
    matrix[2, 2] = (Z_FAR + Z_NEAR) / (Z_FAR - Z_NEAR)
    matrix[3, 2] = -Z_FAR * Z_NEAR / (Z_FAR - Z_NEAR)
    matrix[2, 3] = 1.0
    return matrix


def renderer_matrices(cameras: Cameras, fov_deg: float = 49.1) -> RendererMatrices:
    """Official renderer matrices of cameras `[V]`."""
    view = cameras.world_to_camera.mT
    return RendererMatrices(view, view @ projection_matrix(fov_deg).to(view), -cameras.positions)


def perspective_matrix(fov_deg: float, aspect: float = 1.0, near: float = 0.01, far: float = 1000.0) -> Tensor:
    """The OpenGL projection of the official mesh stage, `[4, 4]`, column vectors, image rows downwards."""
    tangent = math.tan(math.radians(fov_deg) / 2)
    matrix = torch.zeros(4, 4)
    matrix[0, 0] = 1 / (tangent * aspect)
    matrix[1, 1] = -1 / tangent
    matrix[2, 2] = -(far + near) / (far - near)
    matrix[2, 3] = -2 * far * near / (far - near)
    matrix[3, 2] = -1.0
    return matrix


def diffusion_cameras(elevation_deg: float = 0.0, *, with_reference: bool = False) -> Tensor:
    """Camera conditions of the official multi-view diffusion stage, `[4, 16]`.

    Args:
        elevation_deg: official sign, positive is below.
        with_reference: appends the fifth, all-zero camera of the reference picture, `[5, 16]`.
    """
    poses = orbit_cameras([elevation_deg] * 4, [0.0, 90.0, 180.0, 270.0], radius=1.0).opengl_poses()
    x, y, z, last = poses.unbind(dim=-2)
    blender = torch.stack([x, -z, y, last], dim=-2).flatten(-2)
    return torch.cat([blender, torch.zeros(1, 16)]) if with_reference else blender


@dataclass(frozen=True)
class OfficialSample:
    """One object as the official data loader returns it.

    Attributes:
        inputs: network input, `[4, 9, S, S]`.
        images_output: supervised pictures on white, `[V, 3, output_size, output_size]`.
        masks_output: their alpha, `[V, 1, output_size, output_size]`.
        cameras: of the supervised pictures, `[V]`, relative to view 0.
        matrices: the same for the official renderer.
    """

    inputs: Tensor
    images_output: Tensor
    masks_output: Tensor
    cameras: Cameras
    matrices: RendererMatrices


def cameras_from_dataset_poses(poses: Tensor, size: int, params: LGMParams) -> Cameras:
    """Cameras `[V]` from the poses of the official data set (Blender world, OpenCV camera), `[V, 4, 4]`."""
    world = opengl_poses_of_objaverse(poses)
    world[:, :3, 3] *= params.camera_radius / 1.5
    return Cameras.from_opengl_poses(world, params.fov_deg, size, size)


def dataset_sample(views_bgra: Tensor, poses: Tensor, params: LGMParams) -> OfficialSample:
    """The official evaluation sample of one object, without augmentation.

    Args:
        views_bgra: uint8 `[V, H, W, 4]`, channels blue, green, red, alpha; the first 4 are the inputs.
        poses: `[V, 4, 4]` as stored with the data, see `cameras_from_dataset_poses`.
        params: sizes and camera model.
    """
    size = views_bgra.shape[1]
    channels = views_bgra.permute(0, 3, 1, 2).float() / 255.0
    mask = channels[:, 3:]
    images = channels[:, [2, 1, 0]] * mask + (1 - mask)
    cameras = cameras_from_dataset_poses(poses.double(), size, params)
    cameras = normalize_poses(cameras, cameras[:1], params.camera_radius).to(torch.float32)
    count = params.num_input_views
    return OfficialSample(
        inputs=network_inputs(images[:count], cameras[:count], params.input_size),
        images_output=resize_images(images, params.output_size),
        masks_output=resize_images(mask, params.output_size),
        cameras=cameras.resized(params.output_size, params.output_size),
        matrices=renderer_matrices(cameras, params.fov_deg),
    )
