"""Access to the LGM goldens: files, stand-in weights, inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import golden_rules
from maquette.models.lgm.inputs import default_cameras
from maquette.models.lgm.network import LGM
from maquette.models.lgm.params import LGM_BIG, LGM_LRM, LGM_SMALL, LGM_TINY, LGMParams
from maquette.nn.posed_images import network_inputs

FOLDER = Path(__file__).parent / "goldens" / "lgm"

GOLDEN_MINI = LGMParams(
    name="golden-mini",
    down_channels=(32, 64, 128),
    down_attention=(False, False, True),
    up_channels=(128, 64),
    up_attention=(True, False),
    input_size=64,
    splat_size=32,
    output_size=64,
)
PRESETS = {"mini": GOLDEN_MINI, "tiny": LGM_TINY, "small": LGM_SMALL, "lrm": LGM_LRM, "big": LGM_BIG}


def golden(name: str) -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / f"{name}.npz") as data:
        return {key: data[key] for key in data.files}


def manifest(preset: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((FOLDER / f"manifest_{preset}.json").read_text())
    return result


def stand_in_network(preset: str) -> LGM:
    with torch.device("meta"):
        network = LGM(PRESETS[preset])
    filled = golden_rules.fill_state_dict(manifest(preset)["tensors"], "public")
    state = {name: torch.from_numpy(value) for name, value in filled.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def stand_in_inputs(preset: str) -> Tensor:
    size = PRESETS[preset].input_size
    images = torch.from_numpy(golden_rules.image_batch("public", f"lgm_{preset}", 4, size, size))
    return network_inputs(images, default_cameras(0.0, size), size)[None]


def statistics(value: Tensor) -> list[float]:
    """What the goldens store of a complete tensor: mean, population standard deviation, largest magnitude."""
    value = value.double()
    return [float(value.mean()), float(value.std(correction=0)), float(value.abs().max())]
