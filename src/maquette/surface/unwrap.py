"""Texture coordinates by xatlas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maquette.surface.manifold import Doubles, Faces
from maquette.surface.triangles import Floats

_PADDING = 2
"""Texels between charts."""


@dataclass(frozen=True)
class Unwrapped:
    """A mesh cut along seams.

    Attributes:
        origins: the vertex that every vertex was before, `[K]`.
        faces: indices into the new vertices, `[M, 3]`, in the old order.
        uvs: `[K, 2]`, (0, 0) is the top left corner of the texture.
    """

    origins: NDArray[np.int64]
    faces: Faces
    uvs: Floats


def unwrap(vertices: Doubles, faces: Faces, texture_size: int) -> Unwrapped:
    """Cuts a surface into charts and lays them out in a square texture.

    Args:
        vertices: `[N, 3]`; faces: `[M, 3]`, about 20,000 take seconds, and more than in proportion beyond.
        texture_size: in texels; charts keep a distance of two texels.
    """
    import xatlas

    atlas = xatlas.Atlas()
    # Charts are as large as the surface: coordinates of about 1 keep xatlas' thresholds meaningful.
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    scaled = (vertices - low) / max(float((high - low).max()), 1e-30)
    atlas.add_mesh(scaled.astype(np.float32), faces.astype(np.uint32))
    pack = xatlas.PackOptions()
    pack.resolution = texture_size
    pack.padding = _PADDING
    atlas.generate(xatlas.ChartOptions(), pack)
    origins, indices, uvs = atlas[0]
    return Unwrapped(origins.astype(np.int64), indices.astype(np.int64).reshape(-1, 3), uvs.astype(np.float32))
