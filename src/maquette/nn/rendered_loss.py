"""How rendered Gaussians are compared with pictures: MSE of colour and alpha, and a perceptual term.

Source: LGM (Tang et al., ECCV 2024), section 3.4; Gamba trains with the same terms. Without LPIPS weights, multi-scale
SSIM takes the place of LPIPS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.nn.lpips import LPIPS
from maquette.nn.objective import ObjectiveResult
from maquette.nn.posed_images import resize_images
from maquette.nn.ssim import multi_scale_ssim, ssim
from maquette.raster import render_gaussians
from maquette.views import Views

_LPIPS_SIZE = 256


@dataclass(frozen=True)
class Compared:
    """Outcome of a comparison.

    Attributes:
        loss: scalar.
        metrics: named scalars, not detached: "mse", "mse_alpha", "psnr", and "lpips" or "ms_ssim", "ssim".
        predicted: rendered pictures, clamped to 0..1, `[B, V, 3, size, size]`.
        references: the true ones on the same backgrounds, same shape.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    predicted: Tensor
    references: Tensor

    def with_term(self, name: str, value: Tensor, weight: float) -> Compared:
        """With one more term, a scalar, in the loss and the metrics."""
        return dataclasses.replace(self, loss=self.loss + weight * value, metrics={**self.metrics, name: value})

    def result(self, max_pictures: int) -> ObjectiveResult:
        """For the training loop, with the pictures of the first objects."""
        return ObjectiveResult(
            loss=self.loss,
            metrics={name: value.detach() for name, value in {**self.metrics, "loss": self.loss}.items()},
            pictures=self.predicted[:max_pictures].detach(),
            references=self.references[:max_pictures].detach(),
        )


class LossParams(Protocol):
    """The parameters of a model that decide its `RenderedLoss`."""

    @property
    def output_size(self) -> int:
        """Its `size`."""

    @property
    def composite_twice(self) -> bool:
        """Its own."""

    @property
    def lambda_lpips(self) -> float:
        """Its own."""

    @property
    def lambda_ssim(self) -> float:
        """Its own."""

    @property
    def lambda_fine_ssim(self) -> float:
        """Its own."""

    @property
    def error_knee(self) -> float:
        """Its own."""


@dataclass(frozen=True)
class RenderedLoss:
    """Renders Gaussians at the cameras of true pictures and compares.

    Attributes:
        size: side of the compared pictures, px.
        composite_twice: whether the references go over the background a second time, as in the official training
            code; it lightens half-transparent edges.
        lpips: perceptual term; None uses multi-scale SSIM in its place.
        lambda_lpips: weight of LPIPS.
        lambda_ssim: weight of 1 - multi-scale SSIM where there is no LPIPS.
        lambda_fine_ssim: weight of 1 - SSIM at the pictures' own resolution, which the multi-scale one hardly counts;
            0, as in the official code, leaves it out.
        error_knee: 0: squared errors count as they are (official). Above 0: a view's mean squared error e counts as
            knee * log(1 + e / knee), so that far above the knee equal ratios of error, equal decibels of PSNR, weigh
            the same, and objects that are easy to render are not drowned out by those that are not.
    """

    size: int
    composite_twice: bool = True
    lpips: LPIPS | None = None
    lambda_lpips: float = 1.0
    lambda_ssim: float = 0.5
    lambda_fine_ssim: float = 0.0
    error_knee: float = 0.0

    @classmethod
    def of(cls, params: LossParams, lpips: LPIPS | None) -> RenderedLoss:
        """That of a model."""
        return cls(
            size=params.output_size,
            composite_twice=params.composite_twice,
            lpips=lpips,
            lambda_lpips=params.lambda_lpips,
            lambda_ssim=params.lambda_ssim,
            lambda_fine_ssim=params.lambda_fine_ssim,
            error_knee=params.error_knee,
        )

    def __call__(self, gaussians: Gaussians, targets: Views, cameras: Cameras, backgrounds: Tensor) -> Compared:
        """Compares Gaussians `[B, N]` with views `[B, V]`.

        Args:
            gaussians: predictions.
            targets: the true pictures.
            cameras: of the targets, `[B, V]`, in the world of the Gaussians.
            backgrounds: colours behind both, `[B, V, 3]`.
        """
        size = self.size
        alpha = targets.images[:, :, 3:].float()
        color = targets.images[:, :, :3].float() * alpha + backgrounds[..., None, None] * (1 - alpha)
        color, alpha = resize_images(color, size), resize_images(alpha, size)
        if self.composite_twice:
            color = color * alpha + backgrounds[..., None, None] * (1 - alpha)
        rendered = render_gaussians(gaussians, cameras.resized(size, size), background=backgrounds)
        predicted = rendered.color.clamp(0.0, 1.0)
        errors = (predicted - color).square().mean((2, 3, 4))  # [B, V]
        alpha_errors = (rendered.alpha[:, :, None] - alpha).square().mean((2, 3, 4))
        mse, mse_alpha = errors.mean(), alpha_errors.mean()
        loss = mse + mse_alpha
        if self.error_knee > 0:
            loss = self.error_knee * torch.log1p((errors + alpha_errors) / self.error_knee).mean()
        metrics = {"mse": mse, "mse_alpha": mse_alpha, "psnr": -10 * torch.log10(mse.detach().clamp_min(1e-10))}
        if self.lpips is not None and self.lambda_lpips > 0:
            metrics["lpips"] = _perceptual(self.lpips.to(color.device), color, predicted)
            loss = loss + self.lambda_lpips * metrics["lpips"]
        elif self.lambda_ssim > 0:
            metrics["ms_ssim"] = multi_scale_ssim(predicted, color).mean()
            loss = loss + self.lambda_ssim * (1 - metrics["ms_ssim"])
        if self.lambda_fine_ssim > 0:
            metrics["ssim"] = ssim(predicted, color).mean()
            loss = loss + self.lambda_fine_ssim * (1 - metrics["ssim"])
        return Compared(loss, metrics, predicted, color)


def draw_backgrounds(targets: Views, probability: float, generator: torch.Generator) -> Tensor:
    """Background colours `[B, V, 3]`: white, or with `probability` 0..1 one random colour for all views of an object.

    The generator may live on another device than the views; at probability 0 nothing is drawn.
    """
    images = targets.images
    colors = torch.ones(len(images), 1, 3, device=images.device)
    if probability > 0:
        drawn = torch.rand((len(images), 1, 4), generator=generator, device=generator.device).to(images.device)
        colors = torch.where(drawn[..., 3:] < probability, drawn[..., :3], colors)
    return colors.expand(-1, targets.num_views, -1)


def _perceptual(lpips: LPIPS, reference: Tensor, predicted: Tensor) -> Tensor:
    resized = [resize_images(image, _LPIPS_SIZE).flatten(0, 1) * 2 - 1 for image in (reference, predicted)]
    distances: Tensor = lpips(*resized)
    return distances.mean()
