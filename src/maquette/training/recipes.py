"""Recipes: functions that return a complete `TrainConfig`, one per registered model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from maquette.errors import InvalidInputError
from maquette.training.config import AugmentConfig, OptimizerConfig, SamplingConfig, TrainConfig
from maquette.training.schedule import ScheduleConfig


def lgm_official(model: str, *, batch_size: int, target_views: int) -> TrainConfig:
    """The published LGM recipe (Tang et al., ECCV 2024): AdamW on every weight, one cycle with 3000 warm-up steps.

    The paper's run has an effective batch of 256 over 30 epochs of about 80,000 objects, 9375 steps; the released
    configuration has 8 (tiny: 16) objects per GPU and accumulates nothing.
    """
    return TrainConfig(
        model=model,
        steps=9_375,
        batch_size=batch_size,
        precision="bf16",
        optimizer=OptimizerConfig(
            lr=4e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05, decay_vectors=True, grad_clip=1.0
        ),
        schedule=ScheduleConfig(
            kind="onecycle",
            warmup_steps=3_000,
            start_fraction=1 / 25,
            final_fraction=1 / 25 / 1e4,
            beta1_range=(0.85, 0.95),
        ),
        sampling=SamplingConfig(num_inputs=4, target_views=target_views, input_targets=4, family_exponent=0.0),
        augment=AugmentConfig(color_probability=0.0),
    )


def lgm_mini() -> TrainConfig:
    """Our recipe for `lgm-mini`: an hour of one GPU on low-poly art, meant to hold on scanned objects as well.

    Families count by the square root of their size, realistic objects three times; colours of half of them are
    changed so that flat palettes do not become a prior, half are mirrored, and some inputs are damaged as background
    removal would do.
    """
    return TrainConfig(
        model="lgm-mini",
        steps=30_000,
        batch_size=32,
        precision="bf16",
        ema_decay=0.999,
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, grad_clip=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=500, final_fraction=0.01),
        sampling=SamplingConfig(
            num_inputs=4, target_views=8, input_targets=0, realistic_weight=3.0, family_exponent=0.5
        ),
        augment=AugmentConfig(
            color_probability=0.5,
            edge_probability=0.15,
            noise=0.01,
            blur_probability=0.1,
            grey_probability=0.05,
            mirror_probability=0.5,
        ),
    )


def gamba_official() -> TrainConfig:
    """The released Gamba recipe (Shen et al., 2024): AdamW on every weight but the encoder's, warm-up, half a cosine.

    The paper's run has an effective batch of 256 over 400 epochs of about 20,000 objects, 31,250 steps, ten epochs of
    them warm-up; the released configuration has 16 objects per GPU. The released code supervises 3 views per object at
    first and 7 from epoch 60 on, the input among them; here it is 7 throughout.
    """
    lr, first_lr = 2e-3, 1e-10
    return TrainConfig(
        model="gamba",
        steps=31_250,
        batch_size=16,
        precision="bf16",
        optimizer=OptimizerConfig(lr=lr, betas=(0.9, 0.95), weight_decay=0.05, decay_vectors=True, grad_clip=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=781, start_fraction=first_lr / lr),
        sampling=SamplingConfig(num_inputs=1, target_views=7, input_targets=1, family_exponent=0.0),
        augment=AugmentConfig(color_probability=0.0),
    )


def gamba_mini() -> TrainConfig:
    """Our recipe for `gamba-mini`: of four input views the objective shows the network a random one.

    Two of them are supervised, beside six novel ones. Data and augmentation are those of `lgm_mini`.
    """
    return dataclasses.replace(
        lgm_mini(),
        model="gamba-mini",
        sampling=dataclasses.replace(lgm_mini().sampling, target_views=8, input_targets=2),
    )


def mvdream_mini_autoencoder() -> TrainConfig:
    """Our recipe for the auto-encoder of `mvdream-mini`: four views per object, half of them with changed colours."""
    return TrainConfig(
        model="mvdream-mini-autoencoder",
        steps=6_000,
        batch_size=24,
        precision="bf16",
        ema_decay=0.998,
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, grad_clip=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=200, final_fraction=0.01),
        sampling=SamplingConfig(num_inputs=4, target_views=1, input_targets=1, realistic_weight=3.0),
        augment=AugmentConfig(color_probability=0.5, mirror_probability=0.5),
    )


def mvdream_mini() -> TrainConfig:
    """Our recipe for the denoiser of `mvdream-mini`, on latents that are computed once."""
    return TrainConfig(
        model="mvdream-mini",
        steps=20_000,
        batch_size=128,
        precision="bf16",
        ema_decay=0.9995,
        optimizer=OptimizerConfig(lr=7e-4, betas=(0.9, 0.99), weight_decay=0.02, grad_clip=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=500, final_fraction=0.01),
        sampling=SamplingConfig(num_inputs=4, target_views=1, input_targets=1, realistic_weight=2.0),
        augment=AugmentConfig(color_probability=0.5, mirror_probability=0.5),
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "lgm-mini": lgm_mini,
    "lgm-big": lambda: lgm_official("lgm-big", batch_size=8, target_views=8),
    "lgm-small": lambda: lgm_official("lgm-small", batch_size=8, target_views=12),
    "lgm-lrm": lambda: lgm_official("lgm-lrm", batch_size=8, target_views=12),
    "lgm-tiny": lambda: lgm_official("lgm-tiny", batch_size=16, target_views=8),
    "gamba-mini": gamba_mini,
    "gamba": gamba_official,
    "mvdream-mini-autoencoder": mvdream_mini_autoencoder,
    "mvdream-mini": mvdream_mini,
}
"""Model name to recipe."""


def get_recipe(model: str) -> TrainConfig:
    """The recipe of a registered model.

    Raises:
        InvalidInputError: no recipe of that name; lists the valid ones.
    """
    if model not in RECIPES:
        raise InvalidInputError(f"no training recipe for {model!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[model]()
