"""Background removal by rembg, when the user has it and one of its models; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maquette.errors import MissingDependencyError

MODELS = ("birefnet-general", "isnet-general-use", "u2net", "silueta", "u2netp")
"""Names of models of rembg, the better first."""


def rembg_folder() -> Path:
    """Where rembg keeps its models: `U2NET_HOME`, or `.u2net` in `XDG_DATA_HOME` or the home folder."""
    home = os.environ.get("U2NET_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or "~").expanduser() / ".u2net"


def find_rembg_model() -> str | None:
    """The best model that is on this machine; None if there is none or rembg is not installed."""
    if importlib.util.find_spec("rembg") is None:
        return None
    folder = rembg_folder()
    return next((name for name in MODELS if (folder / f"{name}.onnx").is_file()), None)


def remove_background(image: Tensor) -> Tensor:
    """Cuts the object out, `[4, H, W]`.

    Args:
        image: `[3, H, W]`, 0..1.

    Raises:
        MissingDependencyError: rembg or its models are missing.
    """
    model = find_rembg_model()
    if model is None:
        raise MissingDependencyError(
            f"rembg or its models are not here: pip install 'rembg[cpu]', then put one of "
            f"{', '.join(f'{name}.onnx' for name in MODELS)} into {rembg_folder()} (rembg d {MODELS[1]} fetches it)"
        )
    import rembg

    pixels = (image.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels.numpy()))
    result = rembg.remove(picture, session=rembg.new_session(model)).convert("RGBA")
    cut = torch.from_numpy(np.asarray(result, dtype=np.float32) / np.float32(255)).permute(2, 0, 1)
    return torch.cat([image, cut[3:].to(image)])
