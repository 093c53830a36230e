"""Kernels of the depth fusion (Numba): a truncated signed distance volume, and colours of points seen by views."""

from __future__ import annotations

import numba
import numpy as np

from maquette.raster.cpu_jit import Array, compiled

F32 = np.float32


@compiled(fast=True, parallel=True)
def integrate(
    depth: Array, alpha: Array, weights: Array, matrices: Array, pinhole: Array, reliance: Array, geometry: Array,
    settings: Array, distance: Array,
) -> None:  # fmt: skip
    """Weighted mean of the signed distances that the views give, in units of the truncation, -1 inside to 1 outside.

    A voxel in front of a view's surface, or where the view sees nothing, is outside as far as the truncation; one
    behind the surface by more than the truncation is hidden, and counts as inside with a small weight. A pixel that is
    nearly solid is next to no proof of nothing: shells of few Gaussians have pinholes.

    Args:
        depth: expected depth along z where something is seen, `[V, H, W]`.
        alpha: coverage, `[V, H, W]`.
        weights: trust in the depth of each pixel, `[V, H, W]`.
        matrices: world to camera, `[V, 4, 4]`.
        pinhole: fx, fy, cx, cy, `[V, 4]`.
        geometry: origin (x, y, z) and spacing of the grid, `[4]`.
        reliance: on what each view sees of the surface, `[V]`; where it sees nothing, all are relied on.
        settings: truncation in world units, coverage from which a pixel is solid, weights of a free and of a hidden
            view, `[4]`.
        distance: result, `[X, Y, Z]`; all float32.
    """
    size_x, size_y, size_z = distance.shape
    num_views, height, width = depth.shape
    truncation, solid, free_weight, hidden_weight = settings[0], settings[1], settings[2], settings[3]
    for column in numba.prange(size_x * size_y):
        ix, iy = column // size_y, column % size_y
        x = geometry[0] + geometry[3] * F32(ix)
        y = geometry[1] + geometry[3] * F32(iy)
        sums = np.zeros((2, size_z), np.float32)
        for view in range(num_views):
            m = matrices[view]
            base_x = m[0, 0] * x + m[0, 1] * y + m[0, 3]
            base_y = m[1, 0] * x + m[1, 1] * y + m[1, 3]
            base_z = m[2, 0] * x + m[2, 1] * y + m[2, 3]
            fx, fy, cx, cy = pinhole[view, 0], pinhole[view, 1], pinhole[view, 2], pinhole[view, 3]
            for iz in range(size_z):
                z = geometry[2] + geometry[3] * F32(iz)
                depth_z = base_z + m[2, 2] * z
                scale = F32(1) / depth_z
                column_px = int(np.floor(fx * (base_x + m[0, 2] * z) * scale + cx))
                row_px = int(np.floor(fy * (base_y + m[1, 2] * z) * scale + cy))
                inside = 0 <= column_px < width and 0 <= row_px < height
                covered = alpha[view, row_px, column_px] / solid if inside else F32(0)
                if covered < F32(1):
                    value, weight = F32(1), free_weight * (F32(1) - covered) * (F32(1) - covered)
                else:
                    value = (depth[view, row_px, column_px] - depth_z) / truncation
                    weight = weights[view, row_px, column_px] * reliance[view]
                    if value < F32(-1):
                        value, weight = F32(-1), hidden_weight
                    elif value > F32(1):
                        value, weight = F32(1), weight * free_weight
                sums[0, iz] += weight * value
                sums[1, iz] += weight
        for iz in range(size_z):
            distance[ix, iy, iz] = sums[0, iz] / max(sums[1, iz], F32(1e-12))


@compiled(fast=True, parallel=True)
def gather_colors(
    points: Array, normals: Array, color: Array, depth: Array, weights: Array, matrices: Array, pinhole: Array,
    positions: Array, tolerance: float, sums: Array,
) -> None:  # fmt: skip
    """Adds up what the views show at surface points that they see, front views most.

    Args:
        points, normals: `[N, 3]`, unit normals.
        color: not multiplied by coverage, `[V, H, W, 3]`.
        depth, weights: as for `integrate`; a weight of 0 is never used.
        matrices, pinhole: as for `integrate`.
        positions: of the cameras, `[V, 3]`.
        tolerance: how far a point may lie behind a view's surface and still be seen, in world units.
        sums: result, weighted colour and weight, `[N, 4]`.
    """
    num_views, height, width = depth.shape
    for n in numba.prange(points.shape[0]):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        for view in range(num_views):
            dx, dy, dz = positions[view, 0] - x, positions[view, 1] - y, positions[view, 2] - z
            cosine = dx * normals[n, 0] + dy * normals[n, 1] + dz * normals[n, 2]
            cosine /= np.sqrt(dx * dx + dy * dy + dz * dz)
            if cosine < F32(0.1):
                continue
            m = matrices[view]
            depth_z = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
            px = pinhole[view, 0] * (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / depth_z + pinhole[view, 2]
            py = pinhole[view, 1] * (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth_z + pinhole[view, 3]
            left, top = int(np.floor(px - F32(0.5))), int(np.floor(py - F32(0.5)))
            if left < 0 or top < 0 or left + 1 >= width or top + 1 >= height:
                continue
            frac_x, frac_y = px - F32(0.5) - F32(left), py - F32(0.5) - F32(top)
            trust = cosine * cosine * cosine * cosine
            for corner in range(4):
                column, row = left + corner % 2, top + corner // 2
                share = frac_x if corner % 2 else F32(1) - frac_x
                share *= frac_y if corner // 2 else F32(1) - frac_y
                if abs(depth_z - depth[view, row, column]) > tolerance:
                    continue
                weight = share * trust * weights[view, row, column]
                sums[n, 0] += weight * color[view, row, column, 0]
                sums[n, 1] += weight * color[view, row, column, 1]
                sums[n, 2] += weight * color[view, row, column, 2]
                sums[n, 3] += weight
