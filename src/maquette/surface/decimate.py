"""Fewer triangles: quadric edge collapse by fast-simplification, made manifold again afterwards."""

from __future__ import annotations

import numpy as np

from maquette.errors import InvalidInputError
from maquette.surface.manifold import Doubles, Faces, separate_sheets

MIN_FACES = 16
"""Fewer triangles hardly make a shape."""


def decimate(vertices: Doubles, faces: Faces, target: int) -> tuple[Doubles, Faces]:
    """Reduces a mesh to about a number of triangles; a closed one stays closed and manifold.

    Args:
        vertices: `[N, 3]`; faces: `[M, 3]`.
        target: triangles wanted, at least `MIN_FACES`. A mesh that has no more comes back as it is.

    Raises:
        InvalidInputError: the target is too small.
    """
    import fast_simplification

    if target < MIN_FACES:
        raise InvalidInputError(f"the number of faces must be at least {MIN_FACES}, got {target}")
    if len(faces) <= target:
        return vertices, faces
    # Collapses work in float32: centred, so that small objects far from the origin keep their shape.
    center = vertices.mean(axis=0)
    points, triangles = fast_simplification.simplify(
        (vertices - center).astype(np.float32), faces.astype(np.int32), target_count=target
    )
    return separate_sheets(points.astype(np.float64) + center, triangles.astype(np.int64))
