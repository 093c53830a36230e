"""The training objective of Gamba.

Source: the released code of Gamba (Shen et al., 2024): MSE of colour and alpha plus LPIPS on rendered views, the input
among them. Without LPIPS weights, multi-scale SSIM takes the place of LPIPS. The paper's radial mask loss, which the
code lacks, is an option.
"""

from __future__ import annotations

import dataclasses

import torch

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.models.gamba.answer import Network, answer
from maquette.models.gamba.inputs import answer_to_world, move_cameras
from maquette.models.gamba.params import GambaParams
from maquette.models.gamba.radial import radial_mask_loss
from maquette.nn.lpips import LPIPS
from maquette.nn.objective import ObjectiveResult
from maquette.nn.rendered_loss import RenderedLoss, draw_backgrounds
from maquette.views import Views


class GambaObjective:
    """Renders what the network predicts from one view at the target cameras and compares it with the target pictures.

    Args:
        params: of the network; decides sizes and weights.
        lpips: perceptual term; None uses multi-scale SSIM in its place.
        max_pictures: how many objects the result shows.
    """

    def __init__(self, params: GambaParams, lpips: LPIPS | None = None, *, max_pictures: int = 4) -> None:
        self.params = params
        self.lpips = lpips
        self.max_pictures = max_pictures

    def __call__(
        self,
        network: Network,
        inputs: Views,
        targets: Views,
        generator: torch.Generator,
        training: bool,
    ) -> ObjectiveResult:
        """Evaluates the objective on a batch.

        Args:
            network: see there; with `params.join_mirrored` it answers to twice as many pictures.
            inputs: views `[B, V]`, one of which the network sees: in training a random one of each object, otherwise
                the first.
            targets: the supervised views, `[B, V]`.
            generator: source of the choice and of the backgrounds; may live on another device than the views.
            training: whether to draw random numbers.

        Raises:
            InvalidInputError: views that are not `[B, V]`, or not square.
        """
        params = self.params
        if inputs.images.ndim != 5 or targets.images.ndim != 5:
            shapes = f"{list(inputs.images.shape)} and {list(targets.images.shape)}"
            raise InvalidInputError(f"{params.name} trains on inputs and targets [B, V, 4, H, W], got {shapes}")
        view = _one_view(inputs, params.first_view_prob, generator if training else None)
        transform = answer_to_world(view.cameras, params.world, params.camera_radius)
        seen_from = move_cameras(view.cameras, transform)
        seen = torch.cat([view.composited(), view.images[:, 3:].float()], dim=1)
        gaussians = answer(network, seen, seen_from, params)
        targets = dataclasses.replace(targets, cameras=move_cameras(targets.cameras, transform[:, None]))
        backgrounds = draw_backgrounds(targets, params.random_background_prob if training else 0.0, generator)
        compared = RenderedLoss.of(params, self.lpips)(gaussians, targets, targets.cameras, backgrounds)
        if params.lambda_radial > 0:
            radial = radial_mask_loss(gaussians, targets.cameras, targets.images[:, :, 3])
            compared = compared.with_term("radial", radial, params.lambda_radial)
        return compared.result(self.max_pictures)


def _one_view(views: Views, first_view_prob: float, generator: torch.Generator | None) -> Views:
    """One view per object, `[B]`: the first with that probability, or without a generator; otherwise a random one."""
    batch, count, device = len(views.images), views.num_views, views.images.device
    if generator is None or count == 1:
        chosen = torch.zeros(batch, dtype=torch.long, device=device)
    else:
        chosen = torch.randint(count, (batch,), generator=generator, device=generator.device).to(device)
        if first_view_prob > 0:
            first = torch.rand(batch, generator=generator, device=generator.device).to(device) < first_view_prob
            chosen = torch.where(first, 0, chosen)
    where = (torch.arange(batch, device=device), chosen)
    old = views.cameras
    cameras = Cameras(old.world_to_camera[where], old.intrinsics[where], old.height, old.width)
    return Views(views.images[where], cameras)
