"""Passes that find the opposite side of thin places of a triangle mesh and keep it away, on the CPU (Numba)."""

from __future__ import annotations

import numba
import numpy as np

from maquette.raster.cpu_jit import Array, compiled


@compiled()
def _cells_of(
    points: Array, faces: Array, face: int, low: Array, size: float, shape: Array, first: Array, last: Array
) -> None:
    """First and last cell `[3]` of a grid along every axis that a triangle's box lies in, see `count_cells`."""
    for axis in range(3):
        a, b, c = points[faces[face, 0], axis], points[faces[face, 1], axis], points[faces[face, 2], axis]
        first[axis] = min(max(int((min(a, b, c) - low[axis]) / size), 0), shape[axis] - 1)
        last[axis] = min(max(int((max(a, b, c) - low[axis]) / size), 0), shape[axis] - 1)


@compiled()
def count_cells(
    points: Array, faces: Array, crossed: Array, low: Array, size: float, shape: Array, starts: Array, bounds: Array
) -> None:
    """Counts the triangles in every cell of a grid, by their boxes, and notes how their normals lie.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`; crossed: cross products of the triangles `[M, 3]`.
        low: corner of the grid `[3]`; size: of its cells; shape: their numbers along the axes `[3]`.
        starts: zeros `[cells + 2]`, which become the numbers of triangles in the cells, two places on.
        bounds: result `[cells, 6]`, least and largest components of the unit normals where a cell has triangles.
    """
    first, last = np.empty(3, np.int64), np.empty(3, np.int64)
    for face in range(len(faces)):
        _cells_of(points, faces, face, low, size, shape, first, last)
        length = max(np.sqrt(crossed[face, 0] ** 2 + crossed[face, 1] ** 2 + crossed[face, 2] ** 2), 1e-300)
        for x in range(first[0], last[0] + 1):
            for y in range(first[1], last[1] + 1):
                for z in range(first[2], last[2] + 1):
                    cell = (x * shape[1] + y) * shape[2] + z
                    fresh = starts[cell + 2] == 0
                    starts[cell + 2] += 1
                    for axis in range(3):
                        value = crossed[face, axis] / length
                        bounds[cell, axis] = value if fresh else min(bounds[cell, axis], value)
                        bounds[cell, 3 + axis] = value if fresh else max(bounds[cell, 3 + axis], value)


@compiled()
def list_cells(
    points: Array, faces: Array, low: Array, size: float, shape: Array, starts: Array, listed: Array
) -> None:
    """Lists the triangles of every cell, smaller ones first.

    Args:
        points, faces, low, size, shape: see `count_cells`.
        starts: sums of what that found, of which the first cells + 1 become where the cells' lists begin.
        listed: result.
    """
    first, last = np.empty(3, np.int64), np.empty(3, np.int64)
    for face in range(len(faces)):
        _cells_of(points, faces, face, low, size, shape, first, last)
        for x in range(first[0], last[0] + 1):
            for y in range(first[1], last[1] + 1):
                for z in range(first[2], last[2] + 1):
                    cell = (x * shape[1] + y) * shape[2] + z
                    listed[starts[cell + 1]] = face
                    starts[cell + 1] += 1


@compiled()
def _nearest_in(
    points: Array, faces: Array, crossed: Array, listed: Array, start: int, end: int, vertex: int, way: Array,
    opposed: float, nearest: float, hit: Array, weights: Array,
) -> float:  # fmt: skip
    """Looks for a nearer triangle in a part of a list, see `find_opposite`; returns how near the nearest is."""
    wx, wy, wz = way[0], way[1], way[2]
    ox, oy, oz = points[vertex, 0], points[vertex, 1], points[vertex, 2]
    for position in range(start, end):
        face = listed[position]
        nx, ny, nz = crossed[face, 0], crossed[face, 1], crossed[face, 2]
        along = nx * wx + ny * wy + nz * wz
        if along <= 0.0 or along * along < opposed * opposed * (nx * nx + ny * ny + nz * nz):
            continue
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        px, py, pz = points[a, 0] - ox, points[a, 1] - oy, points[a, 2] - oz
        away = nx * px + ny * py + nz * pz
        if away <= 0.0 or away >= nearest * along or a == vertex or b == vertex or c == vertex:
            continue
        qx, qy, qz = points[b, 0] - ox, points[b, 1] - oy, points[b, 2] - oz
        rx, ry, rz = points[c, 0] - ox, points[c, 1] - oy, points[c, 2] - oz
        # Corners as seen along the way: the signed areas of the three parts are the weights.
        u = wx * (qy * rz - qz * ry) + wy * (qz * rx - qx * rz) + wz * (qx * ry - qy * rx)
        v = wx * (ry * pz - rz * py) + wy * (rz * px - rx * pz) + wz * (rx * py - ry * px)
        w = wx * (py * qz - pz * qy) + wy * (pz * qx - px * qz) + wz * (px * qy - py * qx)
        if u >= 0.0 and v >= 0.0 and w >= 0.0:
            nearest, hit[vertex] = away / along, face
            weights[vertex, 0], weights[vertex, 1], weights[vertex, 2] = u / along, v / along, w / along
    return float(nearest)


@compiled(parallel=True)
def find_opposite(
    points: Array, faces: Array, crossed: Array, normals: Array, chosen: Array, reach: float, opposed: float,
    low: Array, size: float, shape: Array, starts: Array, listed: Array, bounds: Array, hit: Array, weights: Array,
) -> None:  # fmt: skip
    """Follows the normals of vertices inwards to the nearest triangle that faces the other way.

    Args:
        points, faces, crossed, low, size, shape, starts, listed, bounds: see `count_cells` and `list_cells`.
        normals: unit `[N, 3]`; chosen: vertices that count `[N]`.
        reach: longest way; opposed: least cosine of the way with the triangle's normal.
        hit: result `[N]`, the triangle or -1; weights: result `[N, 3]`, of its corners in the point that is met.
    """
    chunks, count = 64, len(points)
    for chunk in numba.prange(chunks):
        first, last, way = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3)
        for vertex in range(chunk * count // chunks, (chunk + 1) * count // chunks):
            hit[vertex], nearest = -1, reach
            if not chosen[vertex]:
                continue
            for axis in range(3):
                way[axis] = -normals[vertex, axis]
                here = points[vertex, axis] - low[axis]
                there = here + reach * way[axis]
                first[axis] = min(max(int(min(here, there) / size), 0), shape[axis] - 1)
                last[axis] = min(max(int(max(here, there) / size), 0), shape[axis] - 1)
            for x in range(first[0], last[0] + 1):
                for y in range(first[1], last[1] + 1):
                    for z in range(first[2], last[2] + 1):
                        cell = (x * shape[1] + y) * shape[2] + z
                        most = 0.0 if starts[cell] < starts[cell + 1] else -3.0
                        for axis in range(3):
                            most += max(way[axis] * bounds[cell, axis], way[axis] * bounds[cell, 3 + axis])
                        # Most cells have no triangle that faces so far away.
                        if most >= opposed - 1e-6:
                            nearest = _nearest_in(
                                points, faces, crossed, listed, starts[cell], starts[cell + 1], vertex, way, opposed,
                                nearest, hit, weights,
                            )  # fmt: skip


@compiled()
def keep_apart(
    shifted: Array, faces: Array, normals: Array, hit: Array, weights: Array, least: float, sums: Array, total: Array
) -> int:
    """Moves vertices and the opposite triangles apart where less than so much is between them; returns how many.

    Args:
        shifted: points `[N, 3]`, changed; faces: `[M, 3]`; normals: unit, along which thickness is measured `[N, 3]`.
        hit, weights: see `find_opposite`.
        least: thickness; sums `[N, 3]`, total `[N]`: scratch.
    """
    sums[:], total[:] = 0, 0
    number = 0
    for vertex in range(len(shifted)):
        if hit[vertex] < 0:
            continue
        face, gap = hit[vertex], 0.0
        for axis in range(3):
            opposite = 0.0
            for corner in range(3):
                opposite += weights[vertex, corner] * shifted[faces[face, corner], axis]
            gap += (shifted[vertex, axis] - opposite) * normals[vertex, axis]
        if gap >= least:
            continue
        number += 1
        total[vertex] += 1.0
        for axis in range(3):
            sums[vertex, axis] += (least - gap) / 2 * normals[vertex, axis]
        for corner in range(3):
            other, weight = faces[face, corner], weights[vertex, corner]
            total[other] += weight
            for axis in range(3):
                sums[other, axis] -= weight * (least - gap) / 2 * normals[vertex, axis]
    for vertex in range(len(shifted)):
        if total[vertex] > 0.0:
            for axis in range(3):
                shifted[vertex, axis] += sums[vertex, axis] / max(total[vertex], 1.0)
    return number
