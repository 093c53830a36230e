"""Gaussians to meshes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maquette.surface.convert import gaussians_to_mesh

__all__ = ["gaussians_to_mesh"]


def __getattr__(name: str) -> Any:
    """Imports the extraction (torch, Numba) only when it is used."""
    if name in __all__:
        from maquette.surface import convert

        return getattr(convert, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
