"""Rasterizers: Gaussians (`render_gaussians`) and meshes, each with a torch reference, Numba and CUDA backends.

Names are imported on first use, so that `import maquette.raster` itself is quick and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maquette.raster.api import BACKENDS, RenderedGaussians, available_backends, render_gaussians

__all__ = ["BACKENDS", "RenderedGaussians", "available_backends", "render_gaussians"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("maquette.raster.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
