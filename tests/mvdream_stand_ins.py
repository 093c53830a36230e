"""Tiny models of the same make as MVDream and ImageDream, with random weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from maquette.models.mvdream.loading import untrained_pipeline
from maquette.models.mvdream.params import (
    AutoencoderParams,
    MVDreamParams,
    NoiseParams,
    PictureEncoderParams,
    ResamplerParams,
    TextEncoderParams,
    UNetParams,
)
from maquette.models.mvdream.pipeline import MultiViewPipeline

_UNET = UNetParams(
    base_channels=32,
    level_factors=(1, 2),
    attention_levels=(0, 1),
    num_res_blocks=1,
    head_channels=16,
    context_channels=48,
)
TINY_MVDREAM = MVDreamParams(
    name="tiny-mvdream",
    unet=_UNET,
    text_encoder=TextEncoderParams(channels=48, mlp_channels=96, num_layers=2, num_heads=4, vocabulary=600),
    autoencoder=AutoencoderParams(level_channels=(32, 32, 64), num_res_blocks=1),
    image_size=32,
)
TINY_IMAGEDREAM = dataclasses.replace(
    TINY_MVDREAM,
    name="tiny-imagedream",
    unet=dataclasses.replace(_UNET, resampler=ResamplerParams(in_channels=40, depth=2, num_heads=2, head_channels=16)),
    picture_encoder=PictureEncoderParams(
        channels=40, mlp_channels=80, num_layers=2, num_heads=4, projection_channels=16, image_size=28
    ),
    front_view=1,
)
TINY_MINI = dataclasses.replace(
    TINY_IMAGEDREAM,
    name="tiny-mini",
    unet=dataclasses.replace(TINY_IMAGEDREAM.unet, concat_picture=True),
    autoencoder=AutoencoderParams(
        level_channels=(32, 32, 32),
        num_res_blocks=1,
        scaling_factor=1.0,
        image_channels=4,
        latent_channels=4,
        color_shortcut=True,
    ),
    text_encoder=dataclasses.replace(TINY_IMAGEDREAM.text_encoder, num_tokens=16),
    noise=NoiseParams(prediction="v_prediction", from_pure_noise=True),
    front_view=0,
    picture_optional=True,
    picture_is_front=True,
)
"""Of the make of `mvdream-mini`: sentence or picture, views with alpha."""


def random_pipeline(params: MVDreamParams, **options: Any) -> MultiViewPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return untrained_pipeline(params, **options)
