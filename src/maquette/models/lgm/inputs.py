"""What the networks of the LGM family see, and the cameras that LGM's inference assumes."""

from __future__ import annotations

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.models.lgm.params import LGMParams
from maquette.models.lgm.sweep import plane_sweep
from maquette.nn.posed_images import network_inputs, resize_views
from maquette.views import Views

INPUT_AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)
"""Azimuths of the four input views."""


def default_cameras(elevation_deg: float = 0.0, size: int = 256, *, radius: float = 1.5) -> Cameras:
    """The four cameras `[4]` that LGM's inference assumes.

    Args:
        elevation_deg: of all four, up is positive (the official code counts downwards: negate its values).
        size: side of the square pictures, px.
        radius: distance from the origin.
    """
    return Cameras.orbit(INPUT_AZIMUTHS_DEG, elevation_deg, radius=radius, height=size, width=size)


def model_inputs(views: Views, params: LGMParams) -> tuple[Tensor, ...]:
    """What an LGM network is called with.

    Args:
        views: the input views `[B, V]`, RGBA, in the order of the orbit.
        params: of the network.

    Returns:
        Normalised pictures on white and ray maps `[B, V, 9, H, W]`. For the parametrisation "hull" these with alpha and
        the entry into the visual hull, `[B, V, 11, H, W]`, and the profile of the plane sweep
        `[B, V, 3 * sweep_planes, H / patch_size, W / patch_size]`.

    Raises:
        InvalidInputError: pictures or cameras are not square.
    """
    if params.parametrization == "world":
        return (network_inputs(views.composited(), views.cameras, params.input_size),)
    views = resize_views(Views(views.images.float(), views.cameras), params.input_size)
    pictures = network_inputs(views.composited(), views.cameras, params.input_size)
    sweep = plane_sweep(
        views.images, views.cameras, planes=params.sweep_planes, grid=params.input_size // params.patch_size
    )
    return torch.cat([pictures, views.images[:, :, 3:], sweep.entry], dim=2), sweep.profile
