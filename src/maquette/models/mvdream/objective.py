"""Training objectives of our own models: the auto-encoder's, and the denoiser's on its latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import InvalidInputError
from maquette.models.mvdream.encoders import to_planes
from maquette.models.mvdream.params import AutoencoderParams, MVDreamParams
from maquette.models.mvdream.sampling import build_scheduler
from maquette.nn.objective import ObjectiveResult
from maquette.nn.ssim import multi_scale_ssim
from maquette.views import Views


@dataclass(frozen=True)
class AutoencoderObjective:
    """Pictures must come back: distance of colours and alpha, structural similarity, and tame latents.

    Attributes:
        params: of the auto-encoder.
        object_weight: how much more the pixels of the object count than those around it.
        lambda_ssim: weight of 1 - multi-scale SSIM.
        lambda_color: weight of the same distance between the means of cells as large as a latent; without it, fine
            edges crowd out hues that are rare.
        lambda_kl: weight of the divergence of the latents from a standard normal, per value.
        lambda_scale: weight of the distance of their mean square from 1, so that diffusion needs no other scale.
    """

    params: AutoencoderParams
    object_weight: float = 3.0
    lambda_ssim: float = 0.2
    lambda_color: float = 1.0
    lambda_kl: float = 1e-4
    lambda_scale: float = 0.05

    def __call__(
        self, network: nn.Module, inputs: Views, targets: Views, generator: torch.Generator, training: bool
    ) -> ObjectiveResult:
        """Loss on the input views; `network` is a `LatentAutoencoder` or wraps one."""
        images = inputs.images
        batch, views = images.shape[:2]
        planes = to_planes(images.flatten(0, 1), self.params.image_channels)
        size = planes.shape[-1] // self.params.stride
        noise = torch.zeros(len(planes), self.params.latent_channels, size, size, device=planes.device)
        if training:
            noise.normal_(generator=generator)
        rebuilt, mean, log_variance = network(planes, noise)
        weights = 1.0 if planes.shape[1] == 3 else 1 + self.object_weight * planes[:, 3:]
        errors = (rebuilt - planes) * weights
        difference = errors.abs().mean()
        color = F.avg_pool2d(errors, self.params.stride).abs().mean()
        similarity = multi_scale_ssim(rebuilt[:, :3].clamp(0, 1), planes[:, :3]).mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        power = mean.square().mean()
        loss = difference + self.lambda_ssim * (1 - similarity) + self.lambda_color * color
        loss = loss + self.lambda_kl * divergence + self.lambda_scale * (power - 1).square()
        error = (rebuilt.detach().clamp(0, 1) - planes).square().flatten(1).mean(dim=1).clamp_min(1e-10)
        metrics = {
            "l1": difference.detach(),
            "color": color.detach(),
            "ssim": similarity.detach(),
            "psnr": -10 * error.log10().mean(),
            "latent_power": power.detach(),
        }
        shape = (batch, views, 3, *planes.shape[-2:])
        pictures = rebuilt.detach()[:, :3].clamp(0, 1).reshape(shape)
        return ObjectiveResult(loss, metrics, pictures, planes[:, :3].reshape(shape))


@dataclass(frozen=True)
class DenoisingBatch:
    """What a step of the denoiser's training sees of B objects.

    Attributes:
        latents: clean scaled latents of the views, `[B, V, C, h, w]`.
        cameras: their conditions, `[B, V, 16]`, view 0 at azimuth 0.
        pictures: view 0 on white, `[B, 3, S, S]` in 0..1, S the picture encoder's size.
        prompts: token ids of what is said, `[B, T]`.
        silence: those of the empty sentence, `[T]`.
        wordless: objects of which no sentence is told, since they are changed or turned, bool `[B]`.
    """

    latents: Tensor
    cameras: Tensor
    pictures: Tensor
    prompts: Tensor
    silence: Tensor
    wordless: Tensor


class DenoisingObjective:
    """The views' latents must be found again under noise, told a sentence, a picture of view 0, both or nothing.

    Squared error of what the network predicts (noise or velocity). The timesteps of a batch are spread evenly.
    """

    def __init__(
        self,
        params: MVDreamParams,
        *,
        drop_prompt: float = 0.2,
        drop_picture: float = 0.75,
        picture_noise: float = 0.1,
    ) -> None:
        """Sets it up.

        Args:
            params: of the model.
            drop_prompt, drop_picture: share of objects trained without, independently; 0..1.
            picture_noise: largest standard deviation of what is added to the latents of the prompt picture.

        Raises:
            InvalidInputError: the model takes no pictures, or a share lies outside 0..1.
        """
        if params.picture_encoder is None:
            raise InvalidInputError(f"{params.name} takes no picture: only models that do are trained")
        if not (0 <= drop_prompt <= 1 and 0 <= drop_picture <= 1):
            raise InvalidInputError("drop_prompt and drop_picture must lie in 0..1")
        self._params = params
        self._drop_prompt, self._drop_picture, self._picture_noise = drop_prompt, drop_picture, picture_noise
        self._alphas: Tensor = build_scheduler(params.noise).alphas_cumprod

    def __call__(
        self, network: nn.Module, batch: DenoisingBatch, generator: torch.Generator, training: bool
    ) -> ObjectiveResult:
        """Loss of a batch; `network` is a `ConditionalDenoiser` or wraps one.

        Args:
            network: see above.
            batch: on the generator's device.
            generator: draws noise, timesteps and what is left out.
            training: otherwise nothing is left out.
        """
        latents, device = batch.latents, batch.latents.device
        count = len(latents)

        def uniform() -> Tensor:
            return torch.rand(count, generator=generator, device=device)

        self._alphas = self._alphas.to(device)  # once
        silent = batch.wordless
        with_picture = torch.ones(count, device=device)
        shown = latents[:, 0]
        if training:
            silent = silent | (uniform() < self._drop_prompt)
            with_picture = torch.where(batch.wordless, 1.0, (uniform() >= self._drop_picture).float())
            strength = (self._picture_noise * uniform())[:, None, None, None]
            shown = shown + strength * torch.randn(shown.shape, generator=generator, device=device)
        told = torch.where(silent[:, None], batch.silence, batch.prompts)
        steps = self._params.noise.num_steps
        places = (torch.arange(count, device=device) + torch.rand(1, generator=generator, device=device)) / count
        timesteps = (places * steps).long().clamp_max(steps - 1)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        alpha = self._alphas[timesteps]
        signal, spread = (root.sqrt()[:, None, None, None, None] for root in (alpha, 1 - alpha))
        noisy = signal * latents + spread * noise
        prediction = network(noisy, timesteps, batch.cameras, told, batch.pictures, shown, with_picture)
        velocity = self._params.noise.prediction == "v_prediction"
        wanted = signal * noise - spread * latents if velocity else noise
        errors = (prediction - wanted).square().flatten(1).mean(dim=1)
        metrics = {"error": errors.mean().detach(), "error_noisiest_fifth": errors[(4 * count) // 5 :].mean().detach()}
        return ObjectiveResult(errors.mean(), metrics)
