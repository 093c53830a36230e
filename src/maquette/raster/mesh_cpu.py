"""Mesh visibility on the CPU: Numba, parallel over views and bands of rows.

Each task owns its pixels, walks all triangles in ascending order and keeps the nearest: no locks, and the result does
not depend on the number of threads. No fast-math: the edge functions must round as in the reference.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.raster.cpu_jit import compiled, kernel_threads
from maquette.raster.mesh import NEAR

_TASKS_PER_THREAD = 4
_MARGIN_PX = 1e-6


def rasterize(points: Tensor, faces: Tensor, pinhole: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Triangle ids, barycentrics and depth; arguments and results as in `mesh_reference.rasterize`."""
    num_views = points.shape[0]
    triangle_id = np.full((num_views, height, width), -1, np.int32)
    barycentrics = np.zeros((num_views, height, width, 3), np.float32)
    depth = np.zeros((num_views, height, width), np.float32)
    if num_views and faces.shape[0]:
        arrays = (points.contiguous().numpy(), faces.contiguous().numpy(), pinhole.contiguous().numpy())
        with kernel_threads() as threads:
            bands = max(1, min(height, math.ceil(_TASKS_PER_THREAD * threads / num_views)))
            _rasterize(*arrays, bands, triangle_id, barycentrics, depth)
    return torch.from_numpy(triangle_id), torch.from_numpy(barycentrics), torch.from_numpy(depth)


@compiled()
def _pixel_range(low: float, high: float, first: int, last: int) -> tuple[int, int]:
    """Pixels in [first, last) whose centres lie in [low, high], as a half-open range."""
    start = max(float(first), np.ceil(low - 0.5 - _MARGIN_PX))
    stop = min(float(last), np.floor(high - 0.5 + _MARGIN_PX) + 1.0)
    if not start < stop:
        return 0, 0
    return int(start), int(stop)


@compiled()
def _bounds(corners: NDArray[np.float64], pinhole: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Box in pixels (u low, u high, v low, v high) around the part of a triangle beyond the near plane."""
    low_u, high_u, low_v, high_v = np.inf, -np.inf, np.inf, -np.inf
    for i in range(3):
        j = (i + 1) % 3
        z, other = corners[i, 2], corners[j, 2]
        if z > NEAR:
            u = pinhole[0] * corners[i, 0] / z + pinhole[2]
            v = pinhole[1] * corners[i, 1] / z + pinhole[3]
            low_u, high_u = min(low_u, u), max(high_u, u)
            low_v, high_v = min(low_v, v), max(high_v, v)
        if (z > NEAR) != (other > NEAR):
            t = (NEAR - z) / (other - z)
            u = pinhole[0] * (corners[i, 0] + t * (corners[j, 0] - corners[i, 0])) / NEAR + pinhole[2]
            v = pinhole[1] * (corners[i, 1] + t * (corners[j, 1] - corners[i, 1])) / NEAR + pinhole[3]
            low_u, high_u = min(low_u, u), max(high_u, u)
            low_v, high_v = min(low_v, v), max(high_v, v)
    return low_u, high_u, low_v, high_v


@compiled()
def _setup(corners: NDArray[np.float64], pinhole: NDArray[np.float64], edges: NDArray[np.float64]) -> float:
    """Writes the oriented edge coefficients `[3, 3]` and returns the absolute determinant."""
    for i in range(3):
        p, q = corners[(i + 1) % 3], corners[(i + 2) % 3]
        a = (p[1] * q[2] - p[2] * q[1]) / pinhole[0]
        b = (p[2] * q[0] - p[0] * q[2]) / pinhole[1]
        edges[i, 0] = a
        edges[i, 1] = b
        edges[i, 2] = ((p[0] * q[1] - p[1] * q[0]) - a * pinhole[2]) - b * pinhole[3]
    r, p, q = corners[0], corners[1], corners[2]
    det = (r[0] * (p[1] * q[2] - p[2] * q[1]) + r[1] * (p[2] * q[0] - p[0] * q[2])) + r[2] * (p[0] * q[1] - p[1] * q[0])
    if det < 0.0:
        for i in range(3):
            for j in range(3):
                edges[i, j] = -edges[i, j]
        det = -det
    return float(det)


@compiled()
def _fill(
    edges: NDArray[np.float64],
    det: float,
    index: int,
    columns: tuple[int, int],
    rows: tuple[int, int],
    triangle_id: NDArray[np.int32],
    depth: NDArray[np.float32],
) -> None:
    """Depth-tests one triangle against the pixels of one view inside a box."""
    a0, b0, c0 = edges[0, 0], edges[0, 1], edges[0, 2]
    a1, b1, c1 = edges[1, 0], edges[1, 1], edges[1, 2]
    a2, b2, c2 = edges[2, 0], edges[2, 1], edges[2, 2]
    zero0 = a0 > 0.0 or (a0 == 0.0 and b0 > 0.0)  # top-left rule
    zero1 = a1 > 0.0 or (a1 == 0.0 and b1 > 0.0)
    zero2 = a2 > 0.0 or (a2 == 0.0 and b2 > 0.0)
    for row in range(rows[0], rows[1]):
        y = row + 0.5
        by0, by1, by2 = b0 * y, b1 * y, b2 * y
        for column in range(columns[0], columns[1]):
            x = column + 0.5
            e0 = (a0 * x + by0) + c0
            e1 = (a1 * x + by1) + c1
            e2 = (a2 * x + by2) + c2
            if not (e0 >= 0.0 and e1 >= 0.0 and e2 >= 0.0):
                continue
            if (e0 == 0.0 and not zero0) or (e1 == 0.0 and not zero1) or (e2 == 0.0 and not zero2):
                continue
            z = det / ((e0 + e1) + e2)
            z32 = np.float32(z)
            if z > NEAR and (triangle_id[row, column] < 0 or z32 < depth[row, column]):
                triangle_id[row, column] = index
                depth[row, column] = z32


@compiled()
def _resolve(
    points: NDArray[np.float64],
    faces: NDArray[np.int64],
    pinhole: NDArray[np.float64],
    rows: tuple[int, int],
    triangle_id: NDArray[np.int32],
    barycentrics: NDArray[np.float32],
) -> None:
    """Barycentrics of the triangles seen in one view's rows."""
    corners, edges = np.empty((3, 3)), np.empty((3, 3))
    current = -1
    for row in range(rows[0], rows[1]):
        y = row + 0.5
        for column in range(triangle_id.shape[1]):
            index = triangle_id[row, column]
            if index < 0:
                continue
            if index != current:
                for i in range(3):
                    corners[i] = points[faces[index, i]]
                _setup(corners, pinhole, edges)
                current = index
            x = column + 0.5
            e0 = (edges[0, 0] * x + edges[0, 1] * y) + edges[0, 2]
            e1 = (edges[1, 0] * x + edges[1, 1] * y) + edges[1, 2]
            e2 = (edges[2, 0] * x + edges[2, 1] * y) + edges[2, 2]
            total = (e0 + e1) + e2
            barycentrics[row, column, 0] = e0 / total
            barycentrics[row, column, 1] = e1 / total
            barycentrics[row, column, 2] = e2 / total


@compiled(parallel=True)
def _rasterize(
    points: NDArray[np.float64],
    faces: NDArray[np.int64],
    pinhole: NDArray[np.float64],
    bands: int,
    triangle_id: NDArray[np.int32],
    barycentrics: NDArray[np.float32],
    depth: NDArray[np.float32],
) -> None:
    num_views, height, width = triangle_id.shape
    for task in numba.prange(num_views * bands):
        view, band = task // bands, task % bands
        first, last = band * height // bands, (band + 1) * height // bands
        corners, edges = np.empty((3, 3)), np.empty((3, 3))
        for index in range(faces.shape[0]):
            for i in range(3):
                corners[i] = points[view, faces[index, i]]
            low_u, high_u, low_v, high_v = _bounds(corners, pinhole[view])
            columns = _pixel_range(low_u, high_u, 0, width)
            rows = _pixel_range(low_v, high_v, first, last)
            if columns[0] >= columns[1] or rows[0] >= rows[1]:
                continue
            det = _setup(corners, pinhole[view], edges)
            if det > 0.0 and det < np.inf:
                _fill(edges, det, index, columns, rows, triangle_id[view], depth[view])
        _resolve(points[view], faces, pinhole[view], (first, last), triangle_id[view], barycentrics[view])
