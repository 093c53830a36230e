"""Gaussians to a mesh by either extraction."""

from __future__ import annotations

from typing import Literal

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.surface.extract import extract_density
from maquette.surface.fusion import fuse_gaussians

Method = Literal["auto", "fusion", "density"]
METHODS = ("auto", "fusion", "density")

DENSITY_LEVEL = 0.25
"""Low enough that sides which no input view saw, where networks are unsure, close."""
_FEW = 64
"""Fewer Gaussians are blobs without a surface that views could agree on: density suits them."""


def gaussians_to_mesh(gaussians: Gaussians, *, method: Method = "auto", resolution: int = 160) -> Mesh:
    """Extracts a closed surface with outward normals and vertex colours, in the Gaussians' own coordinates.

    Args:
        gaussians: unbatched `[N]`.
        method: "fusion" fuses rendered depth and takes colours from rendered views (see `fuse_gaussians`); "density"
            is the level set of the summed Gaussians (see `extract_density`); "auto" takes fusion, and density for
            less than 64 Gaussians.
        resolution: grid points along the longest side, 16 to 384.

    Raises:
        InvalidInputError: a batch, an unknown method, a resolution out of range, or Gaussians without a surface.
    """
    if method not in METHODS:
        raise InvalidInputError(f"unknown surface method {method!r}: valid are {', '.join(METHODS)}")
    if method == "density" or (method == "auto" and not gaussians.batch_shape and gaussians.num_gaussians < _FEW):
        return extract_density(gaussians, resolution=resolution, level=DENSITY_LEVEL)
    return fuse_gaussians(gaussians, resolution=resolution)
