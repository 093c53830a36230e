"""What stands around the U-Net: the text encoder, the picture encoder and the latent auto-encoder.

The networks are those of transformers and diffusers (the extra `diffusion`); this is the only module of the family
that builds them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from maquette.errors import MissingDependencyError
from maquette.models.mvdream.params import AutoencoderParams, PictureEncoderParams, TextEncoderParams
from maquette.models.mvdream.tokenizer import token_ids

_MIN_ALPHA = 0.02
_HUE_GAIN = 6.0  # of object and background together, such latents have about half the spread of the learned ones
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(f"{package} is needed for MVDream and ImageDream: pip install 'maquette[diffusion]'")


def build_text_network(params: TextEncoderParams) -> nn.Module:
    """The CLIP text tower with fresh weights.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError as error:
        raise _missing("transformers") from error
    config = CLIPTextConfig(
        vocab_size=params.vocabulary,
        hidden_size=params.channels,
        intermediate_size=params.mlp_channels,
        num_hidden_layers=params.num_layers,
        num_attention_heads=params.num_heads,
        max_position_embeddings=params.num_tokens,
        hidden_act="gelu",
        bos_token_id=params.vocabulary - 2,
        eos_token_id=params.vocabulary - 1,
        pad_token_id=0,
    )
    network: nn.Module = CLIPTextModel(config)
    return network


def build_picture_network(params: PictureEncoderParams) -> nn.Module:
    """The CLIP vision tower with fresh weights.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    try:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    except ImportError as error:
        raise _missing("transformers") from error
    config = CLIPVisionConfig(
        hidden_size=params.channels,
        intermediate_size=params.mlp_channels,
        num_hidden_layers=params.num_layers,
        num_attention_heads=params.num_heads,
        projection_dim=params.projection_channels,
        image_size=params.image_size,
        patch_size=params.patch_size,
        hidden_act="gelu",
    )
    network: nn.Module = CLIPVisionModelWithProjection(config)
    return network


def build_autoencoder_network(params: AutoencoderParams) -> nn.Module:
    """The latent auto-encoder with fresh weights.

    Raises:
        MissingDependencyError: diffusers is not installed.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise _missing("diffusers") from error
    levels = len(params.level_channels)
    network: nn.Module = AutoencoderKL(
        in_channels=params.image_channels,
        out_channels=params.image_channels,
        block_out_channels=params.level_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=params.num_res_blocks,
        latent_channels=params.latent_channels,
        scaling_factor=params.scaling_factor,
        norm_num_groups=params.norm_groups,
    )
    return network


class TextEncoder:
    """Sentences to context tokens.

    Attributes:
        network: the CLIP text tower.
    """

    def __init__(self, params: TextEncoderParams, network: nn.Module, tokenizer: Any) -> None:
        self.params = params
        self.network = network
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Normalised output of the last layer, `[B, num_tokens, channels]`; longer texts are cut with a warning."""
        ids = token_ids(self._tokenizer, texts, self.params)
        lengths = [len(row) for row in self._tokenizer(list(texts)).input_ids]
        if max(lengths) > self.params.num_tokens:
            warnings.warn(
                f"the prompt has {max(lengths)} tokens, only the first {self.params.num_tokens} are read: shorten it",
                stacklevel=3,
            )
        device = next(self.network.parameters()).device
        tokens: Tensor = self.network(input_ids=ids.to(device)).last_hidden_state
        return tokens


class PictureEncoder:
    """Pictures to the tokens that ImageDream's adapter reads.

    Attributes:
        network: the CLIP vision tower.
    """

    def __init__(self, params: PictureEncoderParams, network: nn.Module) -> None:
        self.params = params
        self.network = network

    def __call__(self, images: Tensor) -> Tensor:
        """Tokens before the last layer, `[B, patches + 1, channels]`, of pictures `[B, 3, H, W]` in 0..1."""
        parameter = next(self.network.parameters())
        pixels = torch.stack([clip_pixels(image, self.params.image_size) for image in images])
        result = self.network(pixel_values=pixels.to(parameter.device, parameter.dtype), output_hidden_states=True)
        tokens: Tensor = result.hidden_states[-2]
        return tokens


def clip_pixels(image: Tensor, size: int) -> Tensor:
    """A picture as CLIP wants it: 8 bit, short side resized (bicubic), centre cropped, normalised; `[3, size, size]`.

    Args:
        image: `[3, H, W]`, 0..1.
        size: side of the result, px.
    """
    values = (image.detach().clamp(0, 1) * 255).to("cpu", torch.uint8).permute(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(values.numpy()))
    short = min(picture.size)
    width, height = (size * side // short for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    cropped = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / np.float32(255)
    return normalize_for_clip(torch.from_numpy(cropped).permute(2, 0, 1))


def normalize_for_clip(images: Tensor) -> Tensor:
    """Pictures `[..., 3, H, W]` in 0..1 with the mean and spread that CLIP expects."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (_CLIP_MEAN, _CLIP_STD))
    return (images - mean) / std


def encode_planes(network: nn.Module, params: AutoencoderParams, planes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the variance of the unscaled latents, `[B, c, h, w]`, of planes `[B, C, H, W]` in 0..1."""
    autoencoder: Any = network
    distribution = autoencoder.encode(2 * planes - 1).latent_dist
    mean: Tensor = distribution.mean
    if params.color_shortcut:
        hues = torch.einsum("kc,bchw->bkhw", _hue_axes(planes), F.avg_pool2d(planes[:, :3], params.stride))
        mean = torch.cat([mean[:, :-2], mean[:, -2:] + hues], dim=1)
    return mean, distribution.logvar


def decode_planes(network: nn.Module, params: AutoencoderParams, latents: Tensor) -> Tensor:
    """Planes `[B, C, H, W]`, about 0..1, of unscaled latents `[B, c, h, w]`."""
    autoencoder: Any = network
    planes: Tensor = autoencoder.decode(latents).sample / 2 + 0.5
    if params.color_shortcut:
        hues = F.interpolate(latents[:, -2:], scale_factor=float(params.stride), mode="bilinear", align_corners=False)
        colors = torch.einsum("kc,bkhw->bchw", _hue_axes(hues), hues) / _HUE_GAIN**2
        planes = torch.cat([planes[:, :3] + colors, planes[:, 3:]], dim=1)
    return planes


def _hue_axes(like: Tensor) -> Tensor:
    """Red against green and yellow against blue, orthogonal to grey, `[2, 3]` of length `_HUE_GAIN`."""
    axes = like.new_tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
    lengths: Tensor = axes.norm(dim=1, keepdim=True)
    return _HUE_GAIN * axes / lengths


class LatentCodec:
    """Pictures to scaled latents and back.

    Attributes:
        network: the auto-encoder.
    """

    def __init__(self, params: AutoencoderParams, network: nn.Module) -> None:
        self.params = params
        self.network = network

    def encode(self, images: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """A sample of the latents of pictures, `[B, C, size / stride, size / stride]`.

        Args:
            images: `[B, 3, H, W]` or, with straight alpha, `[B, 4, H, W]`, 0..1; resized bilinearly (without a filter)
                if they have another size.
            size: side at which they are encoded, px.
            generator: of the CPU; draws the sample.
        """
        parameter = next(self.network.parameters())
        images = to_planes(images.to(parameter.device, torch.float32), self.params.image_channels)
        if tuple(images.shape[-2:]) != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
        mean, log_variance = encode_planes(self.network, self.params, images.to(parameter.dtype))
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        return (mean + (0.5 * log_variance).exp() * noise) * self.params.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures `[B, 3|4, H, W]` in 0..1, float32, straight alpha if they have any, of scaled latents."""
        parameter = next(self.network.parameters())
        planes = decode_planes(self.network, self.params, (latents / self.params.scaling_factor).to(parameter.dtype))
        return from_planes(planes.float().clamp(0, 1))


def to_planes(images: Tensor, channels: int) -> Tensor:
    """What an auto-encoder sees of pictures `[..., 3|4, H, W]`: colours over white, and alpha if `channels` is 4."""
    if images.shape[-3] == 3:
        opaque = torch.ones_like(images[..., :1, :, :])
        return images if channels == 3 else torch.cat([images, opaque], dim=-3)
    alpha = images[..., 3:, :, :]
    over_white = images[..., :3, :, :] * alpha + (1 - alpha)
    return over_white if channels == 3 else torch.cat([over_white, alpha], dim=-3)


def from_planes(planes: Tensor) -> Tensor:
    """Undoes `to_planes`: straight alpha from colours over white; white where nothing is."""
    if planes.shape[-3] == 3:
        return planes
    alpha = planes[..., 3:, :, :]
    color = (planes[..., :3, :, :] - (1 - alpha)) / alpha.clamp_min(_MIN_ALPHA)
    return torch.cat([torch.where(alpha > _MIN_ALPHA, color, 1.0).clamp(0, 1), alpha], dim=-3)
