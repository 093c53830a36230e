"""Gaussians and fields to meshes, and their refinement."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maquette.surface.convert import SurfaceOptions, SurfaceResult, gaussians_to_asset, gaussians_to_mesh
    from maquette.surface.fields import field_mesh
    from maquette.surface.report import SurfaceReport

__all__ = ["SurfaceOptions", "SurfaceReport", "SurfaceResult", "field_mesh", "gaussians_to_asset", "gaussians_to_mesh"]

_MODULES = {"field_mesh": "fields", "SurfaceReport": "report"}


def __getattr__(name: str) -> Any:
    """Imports the extraction (torch, Numba) only when it is used."""
    if name in __all__:
        return getattr(importlib.import_module(f"maquette.surface.{_MODULES.get(name, 'convert')}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
