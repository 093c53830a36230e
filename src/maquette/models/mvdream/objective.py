"""Training objectives of our own models: the auto-encoder's, and the denoiser's on its latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import InvalidInputError
from maquette.models.mvdream.cameras import relative_conditions
from maquette.models.mvdream.encoders import from_planes, to_planes
from maquette.models.mvdream.params import AutoencoderParams, MVDreamParams
from maquette.models.mvdream.sampling import build_scheduler
from maquette.models.mvdream.training_networks import LatentAutoencoder
from maquette.nn.objective import ObjectiveResult
from maquette.nn.ssim import multi_scale_ssim
from maquette.views import Views

_VISIBLE = 0.2


@dataclass(frozen=True)
class AutoencoderObjective:
    """Pictures must come back: distance of colours and alpha, structural similarity, and tame latents.

    Attributes:
        params: of the auto-encoder.
        lambda_ssim: weight of 1 - multi-scale SSIM.
        lambda_kl: weight of the divergence of the latents from a standard normal, per value.
        lambda_scale: weight of the distance of their mean square from 1, so that diffusion needs no other scale.
    """

    params: AutoencoderParams
    lambda_ssim: float = 0.2
    lambda_kl: float = 1e-4
    lambda_scale: float = 0.05

    def __call__(
        self, network: nn.Module, inputs: Views, targets: Views, generator: torch.Generator, training: bool
    ) -> ObjectiveResult:
        """Loss on all views of the batch; `network` is a `LatentAutoencoder` or wraps one."""
        images = torch.cat([inputs.images, targets.images], dim=1) if training else inputs.images
        batch, views = images.shape[:2]
        planes = to_planes(images.flatten(0, 1), self.params.image_channels)
        size = planes.shape[-1] // self.params.stride
        noise = torch.zeros(len(planes), self.params.latent_channels, size, size, device=planes.device)
        if training:
            noise.normal_(generator=generator)
        rebuilt, mean, log_variance = network(planes, noise)
        difference = (rebuilt - planes).abs().mean()
        similarity = multi_scale_ssim(rebuilt[:, :3].clamp(0, 1), planes[:, :3]).mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        power = mean.square().mean()
        loss = difference + self.lambda_ssim * (1 - similarity)
        loss = loss + self.lambda_kl * divergence + self.lambda_scale * (power - 1).square()
        error = (rebuilt.detach().clamp(0, 1) - planes).square().flatten(1).mean(dim=1).clamp_min(1e-10)
        metrics = {
            "l1": difference.detach(),
            "ssim": similarity.detach(),
            "psnr": -10 * error.log10().mean(),
            "latent_power": power.detach(),
        }
        shape = (batch, views, 3, *planes.shape[-2:])
        pictures = rebuilt.detach()[:, :3].clamp(0, 1).reshape(shape)
        return ObjectiveResult(loss, metrics, pictures, planes[:, :3].reshape(shape))


class DenoisingObjective:
    """The views' latents must be found again under noise, told a sentence, a picture of view 0, both or nothing.

    Squared error of what the network predicts (noise or velocity), over timesteps drawn uniformly.
    """

    def __init__(
        self,
        params: MVDreamParams,
        autoencoder: LatentAutoencoder,
        empty_prompt: Tensor,
        *,
        drop_prompt: float = 0.15,
        drop_picture: float = 0.35,
        border_range: tuple[float, float] = (0.1, 0.3),
    ) -> None:
        """Sets it up.

        Args:
            params: of the model.
            autoencoder: trained; it is frozen.
            empty_prompt: token ids of the empty sentence, `[T]`.
            drop_prompt, drop_picture: share of objects trained without, independently; 0..1.
            border_range: the prompt picture is view 0, centred with a border of between these shares of its side,
                as `maquette.picture` prepares pictures.

        Raises:
            InvalidInputError: the model takes no pictures, or a share lies outside 0..1.
        """
        if params.picture_encoder is None:
            raise InvalidInputError(f"{params.name} takes no picture: only models that do are trained")
        if not (0 <= drop_prompt <= 1 and 0 <= drop_picture <= 1 and 0 <= border_range[0] <= border_range[1] < 1):
            raise InvalidInputError("drop_prompt and drop_picture must lie in 0..1, border_range in [0, 1)")
        self._params = params
        self._picture_size = params.picture_encoder.image_size
        self._autoencoder = autoencoder.eval().requires_grad_(False)
        self._empty_prompt = empty_prompt
        self._drop_prompt, self._drop_picture = drop_prompt, drop_picture
        self._borders = border_range
        self._alphas: Tensor = build_scheduler(params.noise).alphas_cumprod

    def __call__(
        self,
        network: nn.Module,
        inputs: Views,
        targets: Views,
        generator: torch.Generator,
        training: bool,
        prompts: Tensor | None = None,
    ) -> ObjectiveResult:
        """Loss of a batch; `network` is a `ConditionalDenoiser` or wraps one.

        Args:
            network: see above.
            inputs: the four views to generate, `[B, V]`, orbit cameras.
            targets: not used.
            generator: on the views' device.
            training: otherwise nothing is dropped, and the border is the middle one.
            prompts: token ids of the captions, `[B, T]`; None trains without sentences.
        """
        images, device = inputs.images, inputs.images.device
        batch = len(images)
        latents = self._encode(images)
        borders = self._uniform(batch, generator, device) if training else torch.full((batch,), 0.5, device=device)
        low, high = self._borders
        pictures = centered(images[:, 0], low + (high - low) * borders)
        self._alphas, self._empty_prompt = self._alphas.to(device), self._empty_prompt.to(device)  # once
        empty = self._empty_prompt.expand(batch, -1)
        told = empty if prompts is None else prompts.to(device)
        with_picture = torch.ones(batch, device=device)
        if training:
            silent = self._uniform(batch, generator, device) < self._drop_prompt
            told = torch.where(silent[:, None], empty, told)
            with_picture = (self._uniform(batch, generator, device) >= self._drop_picture).float()
        timesteps = torch.randint(0, self._params.noise.num_steps, (batch,), generator=generator, device=device)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        alpha = self._alphas[timesteps]
        signal, spread = (root.sqrt()[:, None, None, None, None] for root in (alpha, 1 - alpha))
        noisy = signal * latents + spread * noise
        prediction = network(
            noisy,
            timesteps,
            relative_conditions(inputs.cameras),
            told,
            self._small(pictures),
            self._encode(pictures[:, None])[:, 0],
            with_picture,
        )
        velocity = self._params.noise.prediction == "v_prediction"
        wanted = signal * noise - spread * latents if velocity else noise
        loss = (prediction - wanted).square().mean()
        clean = signal * noisy - spread * prediction if velocity else (noisy - spread * prediction) / signal
        shown = None if training else self._decode(clean.detach())
        references = None if training else to_planes(images, 3)
        return ObjectiveResult(loss, {"error": loss.detach()}, shown, references)

    @staticmethod
    def _uniform(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.rand(count, generator=generator, device=device)

    def _small(self, pictures: Tensor) -> Tensor:
        size = (self._picture_size, self._picture_size)
        return F.interpolate(to_planes(pictures, 3), size, mode="bilinear", antialias=True)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Scaled mean latents `[B, V, C, h, w]` of pictures `[B, V, 4, H, W]`."""
        params = self._params.autoencoder
        planes = to_planes(images.flatten(0, 1), params.image_channels)
        vae = self._autoencoder.vae
        assert callable(vae.encode)
        mean: Tensor = vae.encode(2 * planes - 1).latent_dist.mean * params.scaling_factor
        return mean.reshape(*images.shape[:2], *mean.shape[1:])

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        """Pictures `[B, V, 3, H, W]` on white."""
        vae = self._autoencoder.vae
        assert callable(vae.decode)
        planes = vae.decode(latents.flatten(0, 1) / self._params.autoencoder.scaling_factor).sample
        images = to_planes(from_planes((planes / 2 + 0.5).clamp(0, 1)), 3)
        return images.reshape(*latents.shape[:2], *images.shape[1:])


def centered(images: Tensor, borders: Tensor) -> Tensor:
    """Pictures `[B, 4, H, W]` with the object in the middle and a border of the given share of the side, `[B]`.

    The batched counterpart of what `maquette.picture` does; empty pictures stay as they are.
    """
    batch, _, height, width = images.shape
    seen = images[:, 3] > _VISIBLE
    windows = []
    for axis, length in ((1, width), (2, height)):  # along x, then along y
        line = seen.any(dim=axis)
        index = torch.arange(length, device=images.device, dtype=images.dtype).expand(batch, -1)
        first = torch.where(line, index, float(length)).amin(dim=1)
        last = torch.where(line, index, -1.0).amax(dim=1)
        empty = last < first
        middle = torch.where(empty, torch.zeros_like(first), (first + last + 1) / length - 1)
        half = torch.where(empty, torch.ones_like(first), (last - first + 1) / length)
        windows.append((middle, half))
    (center_x, half_x), (center_y, half_y) = windows
    scale = torch.maximum(half_x, half_y) / (1 - borders)
    scale = torch.where(seen.flatten(1).any(dim=1), scale, torch.ones_like(scale))
    zero = torch.zeros_like(scale)
    rows = [torch.stack([scale, zero, center_x], dim=1), torch.stack([zero, scale, center_y], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), [batch, 4, height, width], align_corners=False)
    stacked = torch.cat([images[:, :3] * images[:, 3:], images[:, 3:]], dim=1)
    moved = F.grid_sample(stacked, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    color = torch.where(moved[:, 3:] > 1e-4, moved[:, :3] / moved[:, 3:].clamp_min(1e-4), 0.0)
    return torch.cat([color, moved[:, 3:]], dim=1).clamp(0, 1)
