"""Access to the MVDream and ImageDream goldens: files, stand-in weights, inputs.

The numbers of these goldens follow their own rule: every tensor has a random stream of its own, named by the text
"salt/unet.name"; matrices are scaled by the root of their fan-in, gains lie around 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from golden_rules import stream
from maquette.models.mvdream.network import MultiViewUNet
from maquette.models.mvdream.params import IMAGEDREAM, MVDREAM, ResamplerParams, UNetParams

FOLDER = Path(__file__).parent / "goldens" / "mvdream"
SALT = "public"
TIMESTEP = 741

_TINY: dict[str, Any] = {
    "base_channels": 32,
    "level_factors": (1, 2),
    "attention_levels": (0, 1),
    "num_res_blocks": 1,
    "head_channels": 16,
    "context_channels": 48,
}
UNETS = {
    "mvdream_tiny": UNetParams(**_TINY),
    "imagedream_tiny": UNetParams(**_TINY, resampler=ResamplerParams()),
    "mvdream_full": MVDREAM.unet,
    "imagedream_full": IMAGEDREAM.unet,
}


def golden(name: str) -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / f"{name}.npz") as data:
        return {key: data[key] for key in data.files}


def manifest(model: str) -> dict[str, list[int]]:
    result: dict[str, list[int]] = json.loads((FOLDER / "manifest.json").read_text())[model]
    return result


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """One state-dict entry of a U-Net."""
    values = stream(f"{SALT}/unet.{name}").standard_normal(tuple(shape)).astype(np.float32)
    scale, offset = 1.0 / math.sqrt(math.prod(shape[1:])), 0.0
    if name == "image_embed.latents":
        scale = 1.0
    elif len(shape) == 1:
        scale, offset = 0.1, 1.0 if name.endswith("weight") else 0.0
    return torch.from_numpy(values * np.float32(scale) + np.float32(offset))


def stand_in_unet(params: UNetParams) -> MultiViewUNet:
    with torch.device("meta"):
        network = MultiViewUNet(params)
    state = {name: weight(name, value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def noise(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(stream(f"{SALT}/input/{name}").standard_normal(shape).astype(np.float32))


@dataclass(frozen=True)
class Inputs:
    latents: Tensor
    timesteps: Tensor
    cameras: Tensor
    text: Tensor
    image_tokens: Tensor | None
    picture_latents: Tensor | None

    def predict(self, network: MultiViewUNet) -> Tensor:
        """The network's output in its own precision, frames of all objects in a row."""
        dtype = network.dtype
        picture = None if self.image_tokens is None else network.image_embed(self.image_tokens.to(dtype))
        latents = None if self.picture_latents is None else self.picture_latents.to(dtype)
        output: Tensor = network(
            self.latents.to(dtype), self.timesteps, self.cameras.to(dtype), self.text.to(dtype), picture, latents
        )
        return output.flatten(0, 1)


def stand_in_inputs(name: str, stored: dict[str, NDArray[Any]]) -> Inputs:
    params, size = UNETS[name], 8 if name.endswith("tiny") else 32
    objects = 2 if name.endswith("tiny") else 1
    frames = len(stored["camera"]) // objects
    with_picture = params.resampler is not None
    tokens, width = 77, params.context_channels
    return Inputs(
        noise("latents", objects * frames, 4, size, size).unflatten(0, (objects, frames)),
        torch.full((objects,), TIMESTEP),
        torch.from_numpy(stored["camera"]).unflatten(0, (objects, frames)),
        noise("text_context", objects, tokens, width),
        noise("image_tokens", objects, 257, 1280) if with_picture else None,
        noise("image_latents", objects, 4, size, size) if with_picture else None,
    )
