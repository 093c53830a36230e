"""The training objective of LGM.

Source: LGM (Tang et al., ECCV 2024), section 3.4: MSE of colour and alpha plus LPIPS on rendered views. Without LPIPS
weights, multi-scale SSIM takes the place of LPIPS.
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
from maquette.models.lgm.inputs import network_inputs, normalize_poses, resize_images, select_cameras
from maquette.models.lgm.params import LGMParams
from maquette.nn.lpips import LPIPS
from maquette.nn.objective import ObjectiveResult
from maquette.nn.ssim import multi_scale_ssim
from maquette.raster import render_gaussians
from maquette.views import Views

_LPIPS_SIZE = 256


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
        network: Callable[[Tensor], Gaussians],
        inputs: Views,
        targets: Views,
        generator: torch.Generator,
        training: bool,
    ) -> ObjectiveResult:
        """Evaluates the objective on a batch.

        Args:
            network: maps `[B, 4, 9, H, W]` to Gaussians `[B, N]`.
            inputs: the input views, `[B, 4]`.
            targets: the supervised views, `[B, V]`.
            generator: source of the augmentations; may live on another device than the views.
            training: whether to augment.

        Raises:
            InvalidInputError: not four input views.
        """
        params = self.params
        if inputs.num_views != params.num_input_views or inputs.images.ndim != 5:
            shape = list(inputs.images.shape)
            raise InvalidInputError(
                f"{params.name} trains on inputs [B, {params.num_input_views}, 4, H, W], got {shape}"
            )
        input_cameras, target_cameras = inputs.cameras, targets.cameras
        if params.normalize_poses:
            front = select_cameras(input_cameras, slice(0, 1))
            target_cameras = normalize_poses(target_cameras, front, params.camera_radius)
            input_cameras = normalize_poses(input_cameras, front, params.camera_radius)
        images = resize_images(inputs.composited(), params.input_size)
        if training:
            images, input_cameras = self._augmented(images, input_cameras, generator)
        gaussians = network(network_inputs(images, input_cameras, params.input_size))
        backgrounds = self._backgrounds(targets, generator if training else None)
        return self._compare(gaussians, targets, target_cameras, backgrounds)

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

    def _backgrounds(self, targets: Views, generator: torch.Generator | None) -> Tensor:
        """Background colours `[B, V, 3]`: white, or one random colour per object."""
        images = targets.images
        white = torch.ones(len(images), 1, 3, device=images.device)
        if generator is not None and self.params.random_background_prob > 0:
            drawn = torch.rand((len(images), 1, 4), generator=generator, device=generator.device).to(images.device)
            white = torch.where(drawn[..., 3:] < self.params.random_background_prob, drawn[..., :3], white)
        return white.expand(-1, targets.num_views, -1)

    def _compare(self, gaussians: Gaussians, targets: Views, cameras: Cameras, backgrounds: Tensor) -> ObjectiveResult:
        size = self.params.output_size
        alpha = targets.images[:, :, 3:].float()
        color = targets.images[:, :, :3].float() * alpha + backgrounds[..., None, None] * (1 - alpha)
        color, alpha = resize_images(color, size), resize_images(alpha, size)
        if self.params.composite_twice:
            color = color * alpha + backgrounds[..., None, None] * (1 - alpha)
        rendered = render_gaussians(gaussians, cameras.resized(size, size), background=backgrounds)
        predicted = rendered.color.clamp(0.0, 1.0)
        mse = F.mse_loss(predicted, color)
        mse_alpha = F.mse_loss(rendered.alpha[:, :, None], alpha)
        loss = mse + mse_alpha
        metrics = {"mse": mse, "mse_alpha": mse_alpha, "psnr": -10 * torch.log10(mse.detach().clamp_min(1e-10))}
        if self.lpips is not None and self.params.lambda_lpips > 0:
            metrics["lpips"] = self._perceptual(self.lpips, color, predicted)
            loss = loss + self.params.lambda_lpips * metrics["lpips"]
        elif self.params.lambda_ssim > 0:
            metrics["ms_ssim"] = multi_scale_ssim(predicted, color).mean()
            loss = loss + self.params.lambda_ssim * (1 - metrics["ms_ssim"])
        metrics["loss"] = loss
        shown = slice(0, self.max_pictures)
        return ObjectiveResult(
            loss=loss,
            metrics={name: value.detach() for name, value in metrics.items()},
            pictures=predicted[shown].detach(),
            references=color[shown].detach(),
        )

    @staticmethod
    def _perceptual(lpips: LPIPS, reference: Tensor, predicted: Tensor) -> Tensor:
        resized = [resize_images(image, _LPIPS_SIZE).flatten(0, 1) * 2 - 1 for image in (reference, predicted)]
        distances: Tensor = lpips(*resized)
        return distances.mean()
