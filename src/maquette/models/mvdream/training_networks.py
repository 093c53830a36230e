"""What is trained of our own models, as networks from tensors to tensors: the auto-encoder, then all the rest.

Names in their state dicts are those of the weight file (see `maquette.models.mvdream.official`), so that the two
exports and the tokenizer put together are one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maquette.errors import InvalidInputError
from maquette.models.mvdream.encoders import (
    build_autoencoder_network,
    build_picture_network,
    build_text_network,
    decode_planes,
    encode_planes,
    normalize_for_clip,
)
from maquette.models.mvdream.network import MultiViewUNet
from maquette.models.mvdream.params import AutoencoderParams, MVDreamParams
from maquette.nn.group_norm import with_half_norms

_FIRST_LOG_VARIANCE = -6.0


class LatentAutoencoder(nn.Module):
    """The auto-encoder from pictures to latents and back.

    Attributes:
        params: its configuration.
    """

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        self.params = params
        self.vae = with_half_norms(build_autoencoder_network(params))
        moments: Any = self.vae.quant_conv
        with torch.no_grad():  # starts with latents that are hardly blurred
            moments.bias[params.latent_channels :].fill_(_FIRST_LOG_VARIANCE)

    def forward(self, planes: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, and mean and logarithm of the variance of the latents.

        Args:
            planes: `[N, C, H, W]` in 0..1, see `maquette.models.mvdream.encoders.to_planes`.
            noise: standard normal, of the latents' shape `[N, c, h, w]`.
        """
        mean, log_variance = encode_planes(self.vae, self.params, planes)
        latents = mean + (0.5 * log_variance).exp() * noise
        return decode_planes(self.vae, self.params, latents), mean, log_variance

    def freeze_encoder(self) -> None:
        """Trains the decoder alone from now on."""
        network: Any = self.vae
        for module in (network.encoder, network.quant_conv):
            module.requires_grad_(False)

    def encode(self, planes: Tensor) -> Tensor:
        """Means of the latents, unscaled, `[N, c, h, w]`."""
        return encode_planes(self.vae, self.params, planes)[0]


class ConditionalDenoiser(nn.Module):
    """U-Net, text encoder and picture encoder, trained together.

    Attributes:
        params: the model's.
    """

    def __init__(self, params: MVDreamParams) -> None:
        super().__init__()
        if params.picture_encoder is None:
            raise InvalidInputError(f"{params.name} has no picture encoder: only models that take pictures are trained")
        self.params = params
        self.unet = MultiViewUNet(params.unet)
        self.text_encoder = build_text_network(params.text_encoder)
        self.image_encoder = build_picture_network(params.picture_encoder)
        tower: Any = self.image_encoder
        unused = (tower.vision_model.encoder.layers[-1], tower.vision_model.post_layernorm, tower.visual_projection)
        for module in unused:  # the tokens are those before the last layer, as in the official model
            module.requires_grad_(False)
        for parameter in self.unet.out[-1].parameters():  # starts by predicting nothing
            nn.init.zeros_(parameter)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        cameras: Tensor,
        prompts: Tensor,
        pictures: Tensor,
        picture_latents: Tensor,
        with_picture: Tensor,
    ) -> Tensor:
        """Prediction for the views, `[B, V, C, h, w]`.

        Args:
            latents: noisy latents of the views, `[B, V, C, h, w]`.
            timesteps: `[B]`.
            cameras: of the views, `[B, V, 16]`.
            prompts: token ids, `[B, T]`.
            pictures: prompt pictures on white, `[B, 3, S, S]` in 0..1, S the picture encoder's size.
            picture_latents: their latents, `[B, C, h, w]`.
            with_picture: 1 where the picture counts, 0 where the model has to do without, `[B]`.
        """
        text = self.text_encoder(input_ids=prompts).last_hidden_state
        seen = self.image_encoder(pixel_values=normalize_for_clip(pictures), output_hidden_states=True)
        shares = with_picture.to(text.dtype)
        adapted = self.unet.image_embed(seen.hidden_states[-2] * shares[:, None, None])
        frames = torch.cat([latents, torch.zeros_like(latents[:, :1])], dim=1)
        all_cameras = torch.cat([cameras, torch.zeros_like(cameras[:, :1])], dim=1)
        shown = picture_latents * with_picture[:, None, None, None]
        prediction: Tensor = self.unet(frames, timesteps, all_cameras, text, adapted, shown)
        return prediction[:, :-1]
