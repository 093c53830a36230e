"""Triangles of a scalar field, and their normals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from maquette.errors import InvalidInputError
from maquette.surface import mesh_kernels

Floats = NDArray[np.float32]


def marching_cubes(field: Floats, level: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices in grid units and faces that are counter-clockwise seen from outside, where `field` is below `level`.

    Raises:
        InvalidInputError: the field does not cross the level.
    """
    from skimage import measure

    extract: Any = measure.marching_cubes

    if not float(field.min()) < level < float(field.max()):
        raise InvalidInputError("no surface: the Gaussians are too small or too faint for this resolution; raise it")
    # With "ascent" the front of a triangle, where it is counter-clockwise, is the side of the lower values.
    points, triangles, _, _ = extract(field, level, gradient_direction="ascent", allow_degenerate=False)
    return points.astype(np.float64), np.ascontiguousarray(triangles, np.int64)


def vertex_normals(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Floats:
    """Unit normals `[N, 3]`, faces weighted by area; (0, 1, 0) where they cancel."""
    crossed, summed = np.empty((len(faces), 3)), np.zeros((len(vertices), 3))
    mesh_kernels.cross(np.ascontiguousarray(vertices), faces, crossed)
    mesh_kernels.corner_sums(faces, crossed, summed)
    unit = np.empty((len(vertices), 3), np.float32)
    mesh_kernels.unit_or_up(summed, unit)
    return unit
