"""What Gamba sees of one picture, and the world in which it answers."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.models.gamba.params import GambaParams, WorldFrame
from maquette.nn import posed_images
from maquette.nn.posed_images import front_to_world, resize_images


def front_cameras(count: int, size: int, params: GambaParams) -> Cameras:
    """The camera that inference assumes, `[count]`: in front of the object, at its height."""
    return Cameras.orbit([0.0] * count, radius=params.camera_radius, fov_deg=params.fov_deg, height=size, width=size)


def network_inputs(
    images: Tensor, cameras: Cameras, params: GambaParams, alpha: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The network's inputs, float32: normalised picture and rays `[B, 9, S, S]`, the encoder's picture `[B, 3, E, E]`.

    As in the official code the encoder's picture is not normalised. With `params.mask_input` there is a tenth channel,
    alpha.

    Args:
        images: RGB on white, 0..1, `[B, 3, H, W]`, square.
        cameras: of the pictures, `[B]`, in the world of the answer (see `answer_to_world`).
        params: sizes.
        alpha: of the pictures, `[B, 1, H, W]`; None: the object fills them. Only looked at with `params.mask_input`.

    Raises:
        InvalidInputError: pictures or cameras are not square.
    """
    tokens = posed_images.network_inputs(images, cameras, params.input_size)
    if params.mask_input:
        mask = torch.ones_like(images[:, :1]) if alpha is None else alpha
        tokens = torch.cat([tokens, resize_images(mask.float(), params.input_size)], dim=1)
    return tokens, resize_images(images.float(), params.encoder_size)


def answer_to_world(cameras: Cameras, world: WorldFrame, radius: float) -> Tensor:
    """Rigid transforms `[B, 4, 4]` from the world of the network's answer to that of the input cameras `[B]`.

    In the world of the answer the input camera stands in front (+Z): exactly there, upright and at `radius` ("camera"),
    or at the azimuth of the front only ("upright").
    """
    if world == "camera":
        return front_to_world(cameras, radius)
    x, _, z = cameras.positions.unbind(dim=-1)
    distance = torch.hypot(x, z)
    above = distance < 1e-6  # straight above or below: any azimuth is as good
    sine = torch.where(above, 0.0, x / distance.clamp_min(1e-6))
    cosine = torch.where(above, 1.0, z / distance.clamp_min(1e-6))
    zero, one = torch.zeros_like(sine), torch.ones_like(sine)
    rows = ((cosine, zero, sine, zero), (zero, one, zero, zero), (-sine, zero, cosine, zero), (zero, zero, zero, one))
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def move_cameras(cameras: Cameras, transform: Tensor) -> Cameras:
    """Cameras in the world from which `transform` `[..., 4, 4]` leads to theirs."""
    return dataclasses.replace(cameras, world_to_camera=cameras.world_to_camera @ transform)


def move_gaussians(gaussians: Gaussians, transform: Tensor) -> Gaussians:
    """Gaussians `[B, N]` after rigid transforms `[B, 4, 4]`, which may be on another device."""
    other = gaussians.quats
    turns = _quaternions(transform[:, :3, :3]).to(other)
    w, x, y, z = (part[:, None] for part in turns.unbind(dim=-1))
    rows = ((w, -x, -y, -z), (x, w, -z, y), (y, z, w, -x), (z, -y, x, w))
    product = [(torch.stack(row, dim=-1) * other).sum(-1) for row in rows]
    there = transform.to(other)
    means = gaussians.means @ there[:, :3, :3].mT + there[:, None, :3, 3]
    return dataclasses.replace(gaussians, means=means, quats=torch.stack(product, dim=-1))


def mirrored_gaussians(gaussians: Gaussians) -> Gaussians:
    """The mirror image, at the plane x = 0, of Gaussians with RGB colours."""
    means = gaussians.means * gaussians.means.new_tensor([-1.0, 1.0, 1.0])
    quats = gaussians.quats * gaussians.quats.new_tensor([1.0, 1.0, -1.0, -1.0])
    return dataclasses.replace(gaussians, means=means, quats=quats)


def _quaternions(rotation: Tensor) -> Tensor:
    """Unit quaternions (w, x, y, z) `[B, 4]` of rotation matrices `[B, 3, 3]`.

    Each is the leading eigenvector of a symmetric matrix (Bar-Itzhack, 2000), which is stable for every angle.
    """
    r = rotation.double()
    trace = r.diagonal(dim1=-2, dim2=-1).sum(-1)
    vector = torch.stack([r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]], dim=-1)
    symmetric = r + r.mT - trace[:, None, None] * torch.eye(3, dtype=r.dtype, device=r.device)
    top = torch.cat([trace[:, None], vector], dim=-1)[:, None]
    matrix = torch.cat([top, torch.cat([vector[:, :, None], symmetric], dim=-1)], dim=-2)
    leading: Tensor = torch.linalg.eigh(matrix).eigenvectors[..., -1]
    leading = leading * torch.where(leading[:, :1] < 0, -1.0, 1.0)
    return leading.to(rotation.dtype)
