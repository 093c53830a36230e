"""Pipelines from weight files, and pipelines with fresh weights to measure and to train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maquette.errors import InvalidInputError, WeightsError
from maquette.models.mvdream.encoders import LatentCodec, PictureEncoder, TextEncoder
from maquette.models.mvdream.network import MultiViewUNet
from maquette.models.mvdream.official import (
    SUBJECTS,
    build_components,
    check_components,
    load_component,
    split_state,
)
from maquette.models.mvdream.params import MVDreamParams
from maquette.models.mvdream.pipeline import MultiViewPipeline, Parts
from maquette.models.mvdream.subjects import Subjects
from maquette.models.mvdream.tokenizer import build_tokenizer, letter_tokenizer
from maquette.weights import read_weights


def load_pipeline(
    params: MVDreamParams,
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    offload: bool = False,
    attention_slicing: bool = False,
) -> MultiViewPipeline:
    """A pipeline with the weights of one of our files (see `maquette.models.mvdream.official`).

    Args:
        params: the model that the file is of.
        path: the weight file.
        device, dtype, offload, attention_slicing: see `MultiViewPipeline`.

    Raises:
        WeightsError: the file is missing, broken or does not fit.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    state, _ = read_weights(path)
    check_components(params, state, path)
    parts = split_state(state)
    with torch.device("meta"):
        networks = build_components(params)
    for name, network in networks.items():
        load_component(name, network, parts[name], path)
    vocabulary, merges = (bytes(parts["tokenizer"][name].tolist()) for name in ("vocab", "merges"))
    try:
        tokenizer = build_tokenizer(vocabulary, merges, params.text_encoder)
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"the tokenizer in {path} is broken: {error}") from error
    subjects = Subjects.from_tensors(parts[SUBJECTS]) if params.subject_shares is not None else None
    return MultiViewPipeline(
        params,
        assemble(params, networks, tokenizer, subjects),
        device=device,
        dtype=dtype,
        offload=offload,
        attention_slicing=attention_slicing,
    )


def untrained_pipeline(
    params: MVDreamParams,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    offload: bool = False,
    attention_slicing: bool = False,
    cuda_graphs: bool = False,
) -> MultiViewPipeline:
    """A pipeline with fresh weights (torch's global generator) and a tokenizer of single letters; shows noise.

    Args:
        params: what to build.
        device, dtype, offload, attention_slicing, cuda_graphs: see `MultiViewPipeline`; weights are drawn on the
            device.

    Raises:
        MissingDependencyError: diffusers or transformers is not installed.
    """
    with torch.device(device):
        networks = build_components(params)
    tokenizer = build_tokenizer(*letter_tokenizer(params.text_encoder), params.text_encoder)
    return MultiViewPipeline(
        params,
        assemble(params, networks, tokenizer),
        device=device,
        dtype=dtype,
        offload=offload,
        attention_slicing=attention_slicing,
        cuda_graphs=cuda_graphs,
    )


def assemble(
    params: MVDreamParams, networks: Mapping[str, nn.Module], tokenizer: Any, subjects: Subjects | None = None
) -> Parts:
    """The parts of a pipeline from the networks of `build_components`, a tokenizer of transformers and what guesses
    subjects.

    Raises:
        InvalidInputError: the U-Net is of another class.
    """
    unet = networks["unet"]
    if not isinstance(unet, MultiViewUNet):
        raise InvalidInputError(f"the U-Net must be a MultiViewUNet, got {type(unet).__name__}")
    encoder = params.picture_encoder
    return Parts(
        unet=unet,
        codec=LatentCodec(params.autoencoder, networks["vae"]),
        text=TextEncoder(params.text_encoder, networks["text_encoder"], tokenizer),
        picture=None if encoder is None else PictureEncoder(encoder, networks["image_encoder"]),
        subjects=subjects,
    )
