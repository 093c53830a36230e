"""Gamba as a function from one picture to Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.models.gamba.answer import answer
from maquette.models.gamba.inputs import (
    answer_to_world,
    front_cameras,
    move_cameras,
    move_gaussians,
)
from maquette.models.gamba.network import Gamba
from maquette.nn.posed_images import resize_images, warn_about_cameras
from maquette.views import Views


class GambaReconstructor:
    """Calls a Gamba network on a view, or on a picture without a camera; no Gaussian is pruned.

    Attributes:
        network: in evaluation mode.
    """

    def __init__(self, network: Gamba) -> None:
        self.network = network.eval()

    @property
    def name(self) -> str:
        """Of its parameters, which is the registry's name."""
        return self.network.params.name

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.network.stem_layer.weight.device

    def __call__(self, views: Views) -> Gaussians:
        """Gaussians `[N]` of the first of the views `[V]`, or `[B, N]` of `[B, V]`, float32 on the network's device.

        Only the first view of an object is looked at, so that the same views can be given to every family. The
        Gaussians are in the world of its camera, which should look at an object at the origin from the distance that
        the network was trained at (`params.camera_radius`); a camera that is far from that is warned about. The picture
        is composited on white and resized; the encoder gets the resized one, as in the official inference.

        Raises:
            InvalidInputError: no view, more than one batch dimension, or pictures that are not square.
        """
        params = self.network.params
        lead = tuple(views.images.shape[:-4])
        if views.num_views < 1 or len(lead) > 1:
            raise InvalidInputError(
                f"{params.name} needs a view per object ([1, 4, H, W] or [B, 1, 4, H, W]), "
                f"got images {list(views.images.shape)}"
            )
        given = views.cameras
        first = Cameras(given.world_to_camera[..., 0, :, :], given.intrinsics[..., 0, :, :], given.height, given.width)
        cameras = first.reshape(-1)
        warn_about_cameras(cameras, params.name, params.camera_radius, params.fov_deg)
        transform = answer_to_world(cameras, params.world, params.camera_radius)
        with torch.inference_mode():
            seen = torch.cat([views.composited(), views.images[..., 3:, :, :]], dim=-3)[..., 0, :, :, :]
            seen = resize_images(seen.to(self.device).float(), params.input_size)
            seen = seen if lead else seen[None]
            seen_from = move_cameras(cameras, transform).to(self.device)
            gaussians = move_gaussians(answer(self.network, seen, seen_from, params), transform)
        result = gaussians.map(Tensor.clone)  # usual tensors, not inference ones
        return result if lead else result[0]

    def picture(self, image: Tensor) -> Gaussians:
        """Gaussians `[N]` of one picture, seen from the front at the object's height, as the official code assumes.

        Args:
            image: RGBA 0..1, straight alpha, square, `[4, H, W]`; the object in the middle, about as large as in the
                training pictures.

        Raises:
            InvalidInputError: another shape.
        """
        params = self.network.params
        if image.ndim != 3 or image.shape[0] != 4 or image.shape[1] != image.shape[2]:
            raise InvalidInputError(
                f"{params.name} needs one square RGBA picture [4, S, S], got {list(image.shape)}; crop or pad it first"
            )
        return self(Views(image[None], front_cameras(1, image.shape[-1], params)))
