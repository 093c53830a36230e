"""Gamba's objective against the official numbers; the radial mask loss against a slow, independent one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import golden_rules
from gamba_goldens import GOLDEN_MINI, golden, stand_in_network
from lgm_goldens import statistics
from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.models.gamba.objective import GambaObjective
from maquette.models.gamba.official import cameras_from_dataset_columns, dataset_sample, official_name
from maquette.models.gamba.radial import mask_outline, radial_mask_loss
from maquette.nn.lpips import LPIPS
from maquette.views import Views

LOSS = golden("train_loss_mini")
SAMPLE = golden("dataset_sample")


def stand_in_lpips() -> LPIPS:
    state = {}
    for name, value in LPIPS().state_dict().items():
        state[name] = value
    return LPIPS()


def test_dataset_sample_matches() -> None:
    views, columns = torch.from_numpy(SAMPLE["views_bgra"]), torch.from_numpy(SAMPLE["json_x_y_z_origin_columns"])
    sample = dataset_sample(views, columns, GOLDEN_MINI)
    for name, value in {
        "in_images": sample.pictures,
        "in_plucker_img": sample.inputs,
        "in_camposes": sample.cameras.opengl_poses()[:1],
        "images_output": sample.images_output,
        "masks_output": sample.masks_output,
    }.items():
        assert list(value.shape) == list(SAMPLE[f"{name}_shape"])
        got = value.flatten()[SAMPLE[f"{name}_idx"]]
        np.testing.assert_allclose(got, SAMPLE[f"{name}_val"], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(statistics(value), SAMPLE[f"{name}_stat"], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(sample.cameras.world_to_camera.mT, SAMPLE["cam_view"], atol=1e-6)
    np.testing.assert_allclose(-sample.cameras.positions, SAMPLE["cam_pos"], atol=1e-6)
