"""Configurations of MVDream and ImageDream: the official presets and ours.

Sources: MVDream (Shi et al., 2023, arXiv 2308.16512), ImageDream (Wang and Shi, 2023, arXiv 2312.02201), their released
options and the files published for them; Stable Diffusion 2.1 for the auto-encoder and the text encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from maquette.errors import InvalidInputError

CAMERA_CHANNELS = 16
"""A camera is its pose matrix, flattened row by row."""


@dataclass(frozen=True)
class ResamplerParams:
    """The network that turns the tokens of a picture into a few context tokens (ImageDream's adapter).

    Attributes:
        in_channels: width of the picture encoder's tokens.
        num_queries: context tokens per picture.
        depth: layers.
        num_heads, head_channels: of its attention.
        mlp_ratio: hidden width of its MLPs as a multiple of the context's width.
    """

    in_channels: int = 1280
    num_queries: int = 16
    depth: int = 4
    num_heads: int = 12
    head_channels: int = 64
    mlp_ratio: int = 4


@dataclass(frozen=True)
class UNetParams:
    """The multi-view U-Net.

    Attributes:
        in_channels, out_channels: of the latents.
        base_channels: width of the first level and of the timestep's sinusoid.
        level_factors: width of each level as a multiple of `base_channels`; each level halves the size of the last.
        attention_levels: indices of the levels with transformers; the middle always has one.
        num_res_blocks: per level on the way down, one more on the way up.
        head_channels: width of an attention head; divides the width of every level with attention.
        context_channels: width of the text tokens.
        resampler: adapter of the prompt picture; None if there is none (MVDream).
        norm_groups: groups of every group norm; the widths of the levels are multiples of it.
        concat_picture: shows every frame the latents of the prompt picture, their mirror image (the outline from
            behind) and the pixels' coordinates as further input channels as well.

    Raises:
        InvalidInputError: widths do not fit the group norms or the heads, or a level does not exist.
    """

    in_channels: int = 4
    out_channels: int = 4
    base_channels: int = 320
    level_factors: tuple[int, ...] = (1, 2, 4, 4)
    attention_levels: tuple[int, ...] = (0, 1, 2)
    num_res_blocks: int = 2
    head_channels: int = 64
    context_channels: int = 1024
    resampler: ResamplerParams | None = None
    norm_groups: int = 32
    concat_picture: bool = False

    def __post_init__(self) -> None:
        if self.base_channels % self.norm_groups:
            raise InvalidInputError(
                f"base_channels must be a multiple of norm_groups, {self.norm_groups}, got {self.base_channels}"
            )
        if self.concat_picture and self.resampler is None:
            raise InvalidInputError("concat_picture needs a resampler: without one there is no picture")
        missing = [level for level in self.attention_levels if not 0 <= level < len(self.level_factors)]
        if missing:
            raise InvalidInputError(f"attention_levels {missing} do not exist, there are {len(self.level_factors)}")
        wrong = [width for width in self.attention_channels if width % self.head_channels]
        if wrong:
            raise InvalidInputError(f"head_channels {self.head_channels} does not divide the widths {wrong}")

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Width of each level."""
        return tuple(self.base_channels * factor for factor in self.level_factors)

    @property
    def attention_channels(self) -> tuple[int, ...]:
        """Widths at which there are transformers."""
        return (*(self.level_channels[level] for level in self.attention_levels), self.level_channels[-1])

    @property
    def embedding_channels(self) -> int:
        """Width of the timestep and camera embeddings."""
        return 4 * self.base_channels

    @property
    def stride(self) -> int:
        """Latent sizes must be multiples of it."""
        return int(2 ** (len(self.level_factors) - 1))


@dataclass(frozen=True)
class TextEncoderParams:
    """A CLIP text tower; the defaults are Stable Diffusion 2.1's (OpenCLIP ViT-H without its last layer).

    Attributes:
        channels, mlp_channels, num_layers, num_heads: of the transformer.
        vocabulary, num_tokens: of the tokenizer; prompts are cut or padded to `num_tokens`.
        pad_token: text of the padding token.
    """

    channels: int = 1024
    mlp_channels: int = 4096
    num_layers: int = 23
    num_heads: int = 16
    vocabulary: int = 49408
    num_tokens: int = 77
    pad_token: str = "!"


@dataclass(frozen=True)
class PictureEncoderParams:
    """A CLIP vision tower; the defaults are OpenCLIP ViT-H/14's.

    Attributes:
        channels, mlp_channels, num_layers, num_heads: of the transformer.
        projection_channels: width of the pooled embedding; in the files, but not used here.
        image_size, patch_size: in pixels.
    """

    channels: int = 1280
    mlp_channels: int = 5120
    num_layers: int = 32
    num_heads: int = 16
    projection_channels: int = 1024
    image_size: int = 224
    patch_size: int = 14

    @property
    def num_tokens(self) -> int:
        """Tokens per picture: one per patch and one for the whole."""
        return int((self.image_size // self.patch_size) ** 2) + 1


@dataclass(frozen=True)
class AutoencoderParams:
    """A latent auto-encoder; the defaults are Stable Diffusion's.

    Attributes:
        level_channels: width of each level; each but the first halves the size.
        num_res_blocks: per level.
        latent_channels: of the latents.
        scaling_factor: the diffusion works on latents times this.
        image_channels: 3, or 4 for pictures with alpha (the colours over white, then alpha).
        norm_groups: groups of every group norm; divides the width of every level.
        color_shortcut: the last two latents start from the mean hue of their cell, and the decoder's colours from
            theirs; small auto-encoders that learn quickly find no hues without it.
    """

    level_channels: tuple[int, ...] = (128, 256, 512, 512)
    num_res_blocks: int = 2
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    image_channels: int = 3
    norm_groups: int = 32
    color_shortcut: bool = False

    @property
    def stride(self) -> int:
        """Pixels per latent along each axis."""
        return int(2 ** (len(self.level_channels) - 1))


@dataclass(frozen=True)
class NoiseParams:
    """The noise schedule: the roots of the variances grow linearly.

    Attributes:
        num_steps: of training.
        beta_start, beta_end: variances of the first and the last step.
        prediction: what the network predicts.
        from_pure_noise: rescales the schedule so that the last step has no signal left (Lin et al., 2023, arXiv
            2305.08891), and samples from that step down to clean latents. The official schedule keeps a rest of the
            signal, from which the mean colour of a picture can be guessed.
    """

    num_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    from_pure_noise: bool = False

    def __post_init__(self) -> None:
        if self.from_pure_noise and self.prediction != "v_prediction":
            raise InvalidInputError("from_pure_noise needs v_prediction: pure noise says nothing about itself")


@dataclass(frozen=True)
class MVDreamParams:
    """Everything that defines one multi-view diffusion model.

    Attributes:
        name: registry name.
        unet, text_encoder, autoencoder, noise: its parts.
        picture_encoder: None if the model takes sentences only.
        image_size: side of the square pictures, px.
        num_views: pictures per object, at azimuths 0, 90, 180, 270 of the model's own world.
        front_view: which of them shows the front.
        picture_border: share of the side of a prompt picture that is left free around the object.
        picture_optional: whether a model with a picture encoder was also trained without pictures.
        picture_is_front: whether the prompt picture is the front view itself, pixel by pixel, so that it can take the
            place of the front that the model draws.
        default_steps, default_guidance: of the official examples.
        picture_guidance: default strength of guidance where there is a picture; None: `default_guidance`.
        temperature: default strength of the noise that sampling starts from, relative to the training's, 0..1.
        picture_temperature: likewise where there is a picture; None: `temperature`.
        subject_shares: how much of the guidance the guessed subject of a sentence takes, in the first 30 % of the noise
            levels and later, times the doubt about its words (`maquette.models.mvdream.subjects`); None: no guess.

    Raises:
        InvalidInputError: the parts do not fit each other.
    """

    name: str
    unet: UNetParams = field(default_factory=UNetParams)
    text_encoder: TextEncoderParams = field(default_factory=TextEncoderParams)
    picture_encoder: PictureEncoderParams | None = None
    autoencoder: AutoencoderParams = field(default_factory=AutoencoderParams)
    noise: NoiseParams = field(default_factory=NoiseParams)
    image_size: int = 256
    num_views: int = 4
    front_view: int = 0
    picture_border: float = 0.2
    picture_optional: bool = False
    picture_is_front: bool = False
    default_steps: int = 30
    default_guidance: float = 7.5
    picture_guidance: float | None = None
    temperature: float = 1.0
    picture_temperature: float | None = None
    subject_shares: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        resampler, encoder = self.unet.resampler, self.picture_encoder
        if (resampler is None) != (encoder is None):
            raise InvalidInputError(f"{self.name}: a picture encoder needs a resampler in the U-Net, and the reverse")
        if resampler is not None and encoder is not None and resampler.in_channels != encoder.channels:
            raise InvalidInputError(
                f"{self.name}: the resampler takes tokens of width {resampler.in_channels}, "
                f"the picture encoder makes {encoder.channels}"
            )
        if self.text_encoder.channels != self.unet.context_channels:
            raise InvalidInputError(
                f"{self.name}: the text encoder makes tokens of width {self.text_encoder.channels}, "
                f"the U-Net takes {self.unet.context_channels}"
            )
        stride = self.autoencoder.stride * self.unet.stride
        if self.image_size % stride:
            raise InvalidInputError(f"{self.name}: image_size must be a multiple of {stride}, got {self.image_size}")
        if not 0 <= self.front_view < self.num_views:
            raise InvalidInputError(f"{self.name}: front_view must lie in 0..{self.num_views - 1}")

    def guidance_for(self, has_picture: bool) -> float:
        """Default strength of guidance with or without a picture."""
        return self.picture_guidance if has_picture and self.picture_guidance is not None else self.default_guidance

    def temperature_for(self, has_picture: bool) -> float:
        """Default strength of the first noise with or without a picture."""
        own = self.picture_temperature
        return own if has_picture and own is not None else self.temperature

    @property
    def takes_picture(self) -> bool:
        """Whether the model is conditioned on a picture."""
        return self.picture_encoder is not None

    @property
    def num_frames(self) -> int:
        """Frames in the U-Net: the views, and the prompt picture if there is one."""
        return self.num_views + int(self.takes_picture)

    @property
    def latent_size(self) -> int:
        """Side of the latents."""
        return self.image_size // self.autoencoder.stride


MVDREAM = MVDreamParams(name="mvdream")
"""The official MVDream on Stable Diffusion 2.1, four views from a sentence; U-Net of 868 M parameters."""

IMAGEDREAM = MVDreamParams(
    name="imagedream",
    unet=UNetParams(resampler=ResamplerParams()),
    picture_encoder=PictureEncoderParams(),
    front_view=1,
    default_guidance=5.0,
)
"""The official ImageDream with the pixel controller, four views from a picture; U-Net of 942 M parameters."""


MVDREAM_MINI = MVDreamParams(
    name="mvdream-mini",
    unet=UNetParams(
        in_channels=8,
        out_channels=8,
        base_channels=64,
        level_factors=(1, 2, 2),
        attention_levels=(1, 2),
        num_res_blocks=1,
        head_channels=32,
        context_channels=128,
        resampler=ResamplerParams(in_channels=128, depth=1, num_heads=4, head_channels=32, mlp_ratio=2),
        norm_groups=16,
        concat_picture=True,
    ),
    text_encoder=TextEncoderParams(
        channels=128, mlp_channels=256, num_layers=4, num_heads=4, vocabulary=1536, num_tokens=32
    ),
    picture_encoder=PictureEncoderParams(
        channels=128, mlp_channels=256, num_layers=4, num_heads=4, projection_channels=8, image_size=128, patch_size=16
    ),
    autoencoder=AutoencoderParams(
        level_channels=(32, 64, 64, 64),
        num_res_blocks=1,
        latent_channels=8,
        scaling_factor=1.0,
        image_channels=4,
        norm_groups=8,
        color_shortcut=True,
    ),
    noise=NoiseParams(prediction="v_prediction", from_pure_noise=True),
    picture_border=0.25,
    picture_optional=True,
    picture_is_front=True,
    default_steps=10,
    default_guidance=5.0,
    picture_guidance=1.5,
    picture_temperature=0.4,
    subject_shares=(1.0, 0.67),
)
"""Ours, small enough to ship: one model for a sentence, a picture or both, views with alpha; 9.8 M parameters."""
