"""The training objective of LGM.

Source: LGM (Tang et al., ECCV 2024), section 3.4: MSE of colour and alpha plus LPIPS on rendered views. Without LPIPS
weights, multi-scale SSIM takes the place of LPIPS. Ours, where the data has depth: every Gaussian that grows from a
pixel of the object belongs on the surface seen there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.models.lgm.augment import random_grid_distortion, random_orbit_jitter
from maquette.models.lgm.inputs import model_inputs
from maquette.models.lgm.params import LGMParams
from maquette.nn.depth import pool_depths
from maquette.nn.lpips import LPIPS
from maquette.nn.objective import ObjectiveResult
from maquette.nn.posed_images import network_inputs, normalize_poses, resize_images, select_cameras
from maquette.nn.rendered_loss import RenderedLoss, draw_backgrounds
from maquette.views import Views

_DEPTH_BETA = 0.02
"""Below this error the depth term is quadratic, world units."""


class LGMObjective:
    """Renders what the network predicts at the target cameras and compares it with the target pictures.

    Args:
        params: of the network; decides sizes, weights and augmentations.
        lpips: perceptual term; None uses multi-scale SSIM in its place.
        max_pictures: how many objects the result shows.
    """

    def __init__(self, params: LGMParams, lpips: LPIPS | None = None, *, max_pictures: int = 4) -> None:
        self.params = params
        self.lpips = lpips
        self.max_pictures = max_pictures

    def __call__(
        self,
        network: Callable[..., Gaussians],
        inputs: Views,
        targets: Views,
        generator: torch.Generator,
        training: bool,
    ) -> ObjectiveResult:
        """Evaluates the objective on a batch.

        Args:
            network: maps what `model_inputs` gives to Gaussians `[B, N]`.
            inputs: the input views, `[B, 4]`; with depths for presets whose `needs_depth` is true.
            targets: the supervised views, `[B, V]`.
            generator: source of the augmentations; may live on another device than the views.
            training: whether to augment.

        Raises:
            InvalidInputError: not four input views, or no depths in training where the preset needs them.
        """
        params = self.params
        if inputs.num_views != params.num_input_views or inputs.images.ndim != 5:
            shape = list(inputs.images.shape)
            raise InvalidInputError(
                f"{params.name} trains on inputs [B, {params.num_input_views}, 4, H, W], got {shape}"
            )
        if training and params.needs_depth and inputs.depths is None:
            raise InvalidInputError(
                f"{params.name} learns from true depth and the input views have none: render the data without "
                "--no-geometry, or set lambda_depth to 0"
            )
        input_cameras, target_cameras = inputs.cameras, targets.cameras
        if params.normalize_poses:
            front = select_cameras(input_cameras, slice(0, 1))
            target_cameras = normalize_poses(target_cameras, front, params.camera_radius)
            input_cameras = normalize_poses(input_cameras, front, params.camera_radius)
        if params.parametrization == "hull":
            gaussians = network(*model_inputs(Views(inputs.images, input_cameras), params))
            unchanged = torch.ones(inputs.images.shape[:2], dtype=torch.bool, device=inputs.images.device)
        else:
            images = resize_images(inputs.composited(), params.input_size)
            seen_images, seen_cameras = images, input_cameras
            if training:
                seen_images, seen_cameras = self._augmented(images, input_cameras, generator)
            gaussians = network(network_inputs(seen_images, seen_cameras, params.input_size))
            unchanged = (seen_images == images).flatten(2).all(-1)
            unchanged &= (seen_cameras.world_to_camera == input_cameras.world_to_camera).flatten(2).all(-1)
        backgrounds = draw_backgrounds(targets, params.random_background_prob if training else 0.0, generator)
        compared = RenderedLoss.of(params, self.lpips)(gaussians, targets, target_cameras, backgrounds)
        if params.needs_depth and inputs.depths is not None:
            alpha = inputs.images[:, :, 3].float()
            depth = depth_term(gaussians, input_cameras, inputs.depths.float(), alpha, unchanged, params.splat_size)
            compared = compared.with_term("depth", depth, params.lambda_depth)
        return compared.result(self.max_pictures)

    def _augmented(self, images: Tensor, cameras: Cameras, generator: torch.Generator) -> tuple[Tensor, Cameras]:
        """Augments all input views but the first."""
        params = self.params
        if params.grid_distortion_prob > 0:
            others = random_grid_distortion(images[:, 1:], params.grid_distortion_prob, generator)
            images = torch.cat([images[:, :1], others], dim=1)
        if params.camera_jitter_prob > 0:
            jittered = random_orbit_jitter(
                select_cameras(cameras, slice(1, None)), params.camera_jitter_prob, generator
            )
            matrices = torch.cat([cameras.world_to_camera[:, :1], jittered.world_to_camera], dim=1)
            cameras = Cameras(matrices, cameras.intrinsics, cameras.height, cameras.width)
        return images, cameras


def depth_term(
    gaussians: Gaussians, cameras: Cameras, depths: Tensor, alpha: Tensor, valid: Tensor, grid: int
) -> Tensor:
    """How far the Gaussians of surely covered cells are from the surface.

    A cell counts when all its pixels are more than half covered and show one surface.

    Args:
        gaussians: one per view and cell, `[B, V * grid * grid]`.
        cameras: the true cameras of the input views, `[B, V]`.
        depths: true z, 0 where there is none, `[B, V, H, W]`.
        alpha: of the input pictures, `[B, V, H, W]`.
        valid: views that count (those the network saw unchanged), `[B, V]`.
        grid: side of the output grid.

    Returns:
        Mean smooth L1 distance along z, world units; 0 when no cell counts.
    """
    batch, views = valid.shape
    truth = pool_depths(depths, grid)  # [B, V, grid, grid]
    covered = -F.adaptive_max_pool2d(-alpha, grid) > 0.5
    counts = ((truth > 0) & covered & valid[..., None, None]).flatten(2).float()  # [B, V, cells]
    total = counts.sum().clamp_min(1.0)
    forward = cameras.world_to_camera[:, :, 2].to(gaussians.means.dtype)  # [B, V, 4]
    means = gaussians.means.reshape(batch, views, grid * grid, 3)
    z = (means * forward[:, :, None, :3]).sum(-1) + forward[:, :, None, 3]
    distance = F.smooth_l1_loss(z, truth.flatten(2), beta=_DEPTH_BETA, reduction="none")
    return (distance * counts).sum() / total
