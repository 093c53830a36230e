"""LGM as a function from four posed pictures to Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.models.lgm.inputs import model_inputs
from maquette.models.lgm.network import LGM
from maquette.nn.posed_images import warn_about_cameras
from maquette.views import Views


class LGMReconstructor:
    """Calls an LGM network on views; one Gaussian per view and cell of its output grid, none pruned.

    Attributes:
        network: in evaluation mode.
    """

    def __init__(self, network: LGM) -> None:
        self.network = network.eval()

    @property
    def name(self) -> str:
        """Of its parameters, which is the registry's name."""
        return self.network.params.name

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
        warn_about_cameras(views.cameras, params.name, params.camera_radius, params.fov_deg)
        with torch.inference_mode():
            views = views.to(self.device)
            batch = views if lead else Views(views.images[None], views.cameras.reshape(1, views.num_views))
            gaussians: Gaussians = self.network(*model_inputs(batch, params))
        result = gaussians.map(Tensor.clone)  # usual tensors, not inference ones
        return result if lead else result[0]
