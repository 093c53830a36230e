"""A Gamba of a few thousand weights with every option of ours, and views of a ball."""

from __future__ import annotations

import torch

from maquette.cameras import Cameras
from maquette.models.gamba.params import GambaParams
from maquette.nn.vit_params import ViTParams
from maquette.views import Views

SMALL = GambaParams(
    name="gamba-small",
    encoder=ViTParams(width=32, depth=2, num_heads=2, patch_size=8, grid_size=4, num_registers=0),
    encoder_size=32,
    freeze_encoder=False,
    input_size=32,
    patch_size=8,
    width=32,
    num_layers=3,
    state_size=8,
    alternate_direction=True,
    factorized_positions=True,
    local_features=True,
    mask_input=True,
    drop_path=0.1,
    decoder_width=32,
    cells_per_token=2,
    position_mode="ray",
    color_mode="blend",
    predict_rotation=True,
    initial_scale=0.05,
    world="upright",
    output_size=32,
    composite_twice=False,
    random_background_prob=0.5,
)


def ball_views(batch: int, num_views: int, size: int = 32, first_azimuth: float = 0.0) -> Views:
    """A red ball seen from an orbit."""
    axis = torch.arange(size) - size / 2 + 0.5
    alpha = (axis[:, None] ** 2 + axis**2 < (size / 3) ** 2).float()
    image = torch.stack([alpha * 0.9, alpha * 0.1, alpha * 0.1, alpha])
    azimuths = first_azimuth + torch.arange(num_views) * (360.0 / num_views)
    cameras = Cameras.orbit(azimuths, height=size, width=size)
    return Views(image.expand(batch, num_views, 4, size, size), Cameras.stack([cameras] * batch))
