"""Access to the Gamba goldens: files, stand-in weights, inputs."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import golden_rules
from maquette.models.gamba.inputs import front_cameras, network_inputs
from maquette.models.gamba.network import Gamba
from maquette.models.gamba.official import network_state
from maquette.models.gamba.params import GAMBA, GambaParams
from maquette.nn.vit_params import ViTParams

FOLDER = Path(__file__).parent / "goldens" / "gamba"

GOLDEN_MINI = GambaParams(
    name="golden-mini",
    encoder=ViTParams(width=384, depth=12, num_heads=6),
    encoder_size=112,
    input_size=128,
    width=128,
    num_layers=4,
    output_size=64,
)
PRESETS = {
    "mini": GOLDEN_MINI,
    "mini_pnum2": dataclasses.replace(GOLDEN_MINI, num_parts=2),
    "gamba": GAMBA,
}
MANIFESTS = {"mini": "mini", "mini_pnum2": "mini", "gamba": "gamba"}
"""Both mini presets have the same tensors."""


def golden(name: str) -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / f"{name}.npz") as data:
        return {key: data[key] for key in data.files}


def manifest(preset: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((FOLDER / f"manifest_{MANIFESTS[preset]}.json").read_text())
    return result


def official_state(preset: str) -> dict[str, Tensor]:
    """The stand-in weights under their official names, with the buffer that the official model computes."""
    params = PRESETS[preset]
    bins = torch.linspace(-params.bin_limit, params.bin_limit, params.num_bins)
    return _stand_in_weights(MANIFESTS[preset]) | {"model.decoder.coords": bins.repeat(3, 1)}


@functools.lru_cache(maxsize=1)
def _stand_in_weights(name: str) -> dict[str, Tensor]:
    tensors = json.loads((FOLDER / f"manifest_{name}.json").read_text())["tensors"]
    filled = golden_rules.fill_state_dict(tensors, "public")
    return {key: torch.from_numpy(value) for key, value in filled.items()}


def stand_in_network(preset: str) -> Gamba:
    with torch.device("meta"):
        network = Gamba(PRESETS[preset])
    network.load_state_dict(network_state(official_state(preset), PRESETS[preset]), strict=True, assign=True)
    return network.eval()


def stand_in_inputs(preset: str) -> tuple[Tensor, Tensor]:
    params = PRESETS[preset]
    size = params.input_size
    images = torch.from_numpy(golden_rules.image_batch("public", f"gamba_{preset}", 1, size, size))
    return network_inputs(images, front_cameras(1, size, params), params)
