"""Where maquette meets the official Gamba: its published weights and its data layout.

Source: the released code of Gamba (SkyworkAI/Gamba, commit 995d8d7) as described by its options and file formats. The
repository states no licence; its weights (`gamba_ep399.pth`, florinshen/Gamba on the Hugging Face hub) are fetched by
the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import WeightsError
from maquette.models.gamba.inputs import network_inputs
from maquette.models.gamba.params import GAMBA, GambaParams
from maquette.nn.posed_images import normalize_poses, opengl_poses_of_objaverse, resize_images

_PREFIXES = (("model.map_image.model.", "image_encoder."), ("model.", ""))
"""Official beginnings of names and ours, the longest first."""

_BINS = "model.decoder.coords"
_BINS_TOLERANCE = 2e-3
"""Of the stored values: the published file may be bfloat16."""


def network_state(state: Mapping[str, Tensor], params: GambaParams = GAMBA) -> dict[str, Tensor]:
    """The network's part of an official state dict under our names: without LPIPS, without wrappers' prefixes.

    A state dict that has our names already comes back unchanged.

    Args:
        state: as published, or as written by maquette.
        params: of the network; the values behind the positions, which the file stores, have to agree.

    Raises:
        WeightsError: the file's positions stand for other values.
    """
    names = {name.removeprefix("module."): value for name, value in state.items()}
    bins = names.pop(_BINS, None)
    if bins is not None:
        expected = torch.linspace(-params.bin_limit, params.bin_limit, params.num_bins).expand(3, -1)
        if bins.shape != expected.shape or float((bins.float() - expected).abs().max()) > _BINS_TOLERANCE:
            raise WeightsError(
                f"{_BINS} of this checkpoint is not {params.num_bins} values from {-params.bin_limit} to "
                f"{params.bin_limit} per axis: it was trained with other positions than {params.name}"
            )
    return {_our_name(name): value for name, value in names.items() if not name.startswith("lpips_loss.")}


def official_name(name: str) -> str:
    """The name of one of our tensors in the official state dict."""
    official, ours = _PREFIXES[0]
    return official + name.removeprefix(ours) if name.startswith(ours) else f"model.{name}"


def _our_name(name: str) -> str:
    for official, ours in _PREFIXES:
        if name.startswith(official):
            return ours + name.removeprefix(official)
    return name


@dataclass(frozen=True)
class OfficialSample:
    """One object as the official data loader returns it.

    Attributes:
        inputs: network input of the first view, `[1, 9, S, S]`.
        pictures: the encoder's picture of it, `[1, 3, E, E]`.
        images_output: supervised pictures on white, `[V, 3, output_size, output_size]`.
        masks_output: their alpha, `[V, 1, output_size, output_size]`.
        cameras: of the supervised pictures, `[V]`, relative to view 0.
    """

    inputs: Tensor
    pictures: Tensor
    images_output: Tensor
    masks_output: Tensor
    cameras: Cameras


def cameras_from_dataset_columns(columns: Tensor, size: int, params: GambaParams) -> Cameras:
    """Cameras `[V]` from the files of the official data set, moved to exactly `camera_radius` from the origin.

    Args:
        columns: the x, y and z axes and the origin of each camera as columns, `[V, 3, 4]` (Blender world, OpenCV
            camera).
        size: side of the pictures, px.
        params: camera model.
    """
    last = columns.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(columns), 1, 4)
    poses = opengl_poses_of_objaverse(torch.cat([columns, last], dim=1))
    distance = poses[:, :3, 3].norm(dim=-1, keepdim=True)
    poses[:, :3, 3] *= params.camera_radius / distance
    return Cameras.from_opengl_poses(poses, params.fov_deg, size, size)


def dataset_sample(views_bgra: Tensor, columns: Tensor, params: GambaParams) -> OfficialSample:
    """The official evaluation sample of one object.

    Args:
        views_bgra: uint8 `[V, H, W, 4]`, channels blue, green, red, alpha; the first is the input.
        columns: cameras as stored with the data, see `cameras_from_dataset_columns`.
        params: sizes and camera model.
    """
    size = views_bgra.shape[1]
    channels = views_bgra.permute(0, 3, 1, 2).float() / 255.0
    mask = channels[:, 3:]
    images = channels[:, [2, 1, 0]] * mask + (1 - mask)
    cameras = cameras_from_dataset_columns(columns.double(), size, params)
    cameras = normalize_poses(cameras, cameras[:1], params.camera_radius).to(torch.float32)
    inputs, pictures = network_inputs(images[:1], cameras[:1], params)
    return OfficialSample(
        inputs=inputs,
        pictures=pictures,
        images_output=resize_images(images, params.output_size),
        masks_output=resize_images(mask, params.output_size),
        cameras=cameras.resized(params.output_size, params.output_size),
    )
