"""LGM as a function from four posed pictures to Gaussians."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.models.lgm.inputs import network_inputs
from maquette.models.lgm.network import LGM
from maquette.views import Views

_RADIUS_TOLERANCE = 0.15
_FOV_TOLERANCE_DEG = 3.0


class LGMReconstructor:
    """Calls an LGM network on views; one Gaussian per view and cell of its output grid, none pruned.

    Attributes:
        network: in evaluation mode.
    """

    def __init__(self, network: LGM) -> None:
        self.network = network.eval()

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.network.conv.weight.device

    def __call__(self, views: Views) -> Gaussians:
        """Gaussians `[N]` of four views `[4]`, or `[B, N]` of `[B, 4]`, float32 on the network's device.

        The views must show one object at the origin from azimuths near 0, 90, 180, 270 degrees in this order, from
        the distance that the network was trained at (`params.camera_radius`); cameras that are far from that are
        warned about. Pictures are composited on white and resized.

        Raises:
            InvalidInputError: not exactly four views per object, or pictures that are not square.
        """
        params = self.network.params
        lead = tuple(views.images.shape[:-4])
        if views.num_views != params.num_input_views or len(lead) > 1:
            raise InvalidInputError(
                f"{params.name} needs exactly {params.num_input_views} views per object "
                f"([4, 4, H, W] or [B, 4, 4, H, W]), got images {list(views.images.shape)}"
            )
        self._warn_about_cameras(views)
        with torch.inference_mode():
            images, cameras = views.composited().to(self.device), views.cameras.to(self.device)
            inputs = network_inputs(images, cameras, params.input_size)
            gaussians: Gaussians = self.network(inputs if lead else inputs[None])
        result = gaussians.map(Tensor.clone)  # usual tensors, not inference ones
        return result if lead else result[0]

    def _warn_about_cameras(self, views: Views) -> None:
        params, cameras = self.network.params, views.cameras
        distances = cameras.positions.norm(dim=-1)
        if bool(((distances - params.camera_radius).abs() > _RADIUS_TOLERANCE).any()):
            low, high = float(distances.min()), float(distances.max())
            warnings.warn(
                f"{params.name} expects cameras {params.camera_radius} from the origin, got {low:.2f} to {high:.2f}: "
                "scale the scene, or let `maquette generate` do it",
                stacklevel=3,
            )
        tangent = 0.5 * cameras.height / cameras.intrinsics[..., 1, 1]
        fov_deg = torch.rad2deg(2 * torch.atan(tangent))
        if bool(((fov_deg - params.fov_deg).abs() > _FOV_TOLERANCE_DEG).any()):
            low, high = float(fov_deg.min()), float(fov_deg.max())
            warnings.warn(
                f"{params.name} expects a field of view of {params.fov_deg} degrees, got {low:.1f} to {high:.1f}: "
                "crop or pad the pictures, or let `maquette generate` do it",
                stacklevel=3,
            )
