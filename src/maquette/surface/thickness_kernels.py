"""Passes that find the opposite side of thin places of a triangle mesh and keep it away, on the CPU (Numba)."""

from __future__ import annotations

import numpy as np

from maquette.raster.cpu_jit import Array, compiled


@compiled()
def list_cells(points: Array, faces: Array, low: Array, size: float, shape: Array, starts: Array, listed: Array) -> int:
    """Lists the triangles of every cell of a grid by their boxes; returns how many places of the list that takes.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`.
        low: corner of the grid `[3]`; size: of its cells; shape: their numbers `[3]`.
        starts: zeros `[cells + 2]`, of which the first cells + 1 become where every cell's list begins; with an empty
            list they become counts only.
        listed: result, or empty.
    """
    first, last = np.empty(3, np.int64), np.empty(3, np.int64)
    fill = len(listed) > 0
    if fill:
        for cell in range(2, len(starts)):
            starts[cell] += starts[cell - 1]
    number = 0
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        for axis in range(3):
            least = min(points[a, axis], points[b, axis], points[c, axis])
            most = max(points[a, axis], points[b, axis], points[c, axis])
            first[axis] = min(max(int((least - low[axis]) / size), 0), shape[axis] - 1)
            last[axis] = min(max(int((most - low[axis]) / size), 0), shape[axis] - 1)
        for x in range(first[0], last[0] + 1):
            for y in range(first[1], last[1] + 1):
                for z in range(first[2], last[2] + 1):
                    cell = (x * shape[1] + y) * shape[2] + z
                    if fill:
                        listed[starts[cell + 1]] = face
                        starts[cell + 1] += 1
                    else:
                        starts[cell + 2] += 1
                    number += 1
    return number


@compiled()
def find_opposite(
    points: Array, faces: Array, crossed: Array, normals: Array, reach: float, opposed: float, low: Array, size: float,
    shape: Array, starts: Array, listed: Array, hit: Array, weights: Array,
) -> int:  # fmt: skip
    """Follows every vertex' normal inwards to the first triangle that faces the other way; returns how many have one.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`; crossed: cross products of the triangles `[M, 3]`; normals: unit `[N, 3]`.
        reach: longest way; opposed: least cosine of the way with the triangle's normal.
        low, size, shape, starts, listed: see `list_cells`.
        hit: result `[N]`, the triangle or -1; weights: result `[N, 3]`, of its corners in the point that is met.
    """
    first, last = np.empty(3, np.int64), np.empty(3, np.int64)
    number = 0
    for vertex in range(len(points)):
        hit[vertex], nearest = -1, reach
        ox, oy, oz = points[vertex, 0], points[vertex, 1], points[vertex, 2]
        wx, wy, wz = -normals[vertex, 0], -normals[vertex, 1], -normals[vertex, 2]
        for axis in range(3):
            here = points[vertex, axis] - low[axis]
            there = here - reach * normals[vertex, axis]
            first[axis] = min(max(int(min(here, there) / size), 0), shape[axis] - 1)
            last[axis] = min(max(int(max(here, there) / size), 0), shape[axis] - 1)
        for x in range(first[0], last[0] + 1):
            for y in range(first[1], last[1] + 1):
                for z in range(first[2], last[2] + 1):
                    cell = (x * shape[1] + y) * shape[2] + z
                    for position in range(starts[cell], starts[cell + 1]):
                        face = listed[position]
                        nx, ny, nz = crossed[face, 0], crossed[face, 1], crossed[face, 2]
                        along = nx * wx + ny * wy + nz * wz
                        if along <= 0.0 or along * along < opposed * opposed * (nx * nx + ny * ny + nz * nz):
                            continue
                        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
                        if a == vertex or b == vertex or c == vertex:
                            continue
                        px, py, pz = points[a, 0] - ox, points[a, 1] - oy, points[a, 2] - oz
                        away = (nx * px + ny * py + nz * pz) / along
                        if away <= 0.0 or away >= nearest:
                            continue
                        # Corners as seen from the vertex along the way: signed areas of the parts are the weights.
                        qx, qy, qz = points[b, 0] - ox, points[b, 1] - oy, points[b, 2] - oz
                        rx, ry, rz = points[c, 0] - ox, points[c, 1] - oy, points[c, 2] - oz
                        u = wx * (qy * rz - qz * ry) + wy * (qz * rx - qx * rz) + wz * (qx * ry - qy * rx)
                        v = wx * (ry * pz - rz * py) + wy * (rz * px - rx * pz) + wz * (rx * py - ry * px)
                        w = wx * (py * qz - pz * qy) + wy * (pz * qx - px * qz) + wz * (px * qy - py * qx)
                        if u < 0.0 or v < 0.0 or w < 0.0:
                            continue
                        nearest, hit[vertex] = away, face
                        weights[vertex, 0], weights[vertex, 1], weights[vertex, 2] = u / along, v / along, w / along
        number += hit[vertex] >= 0
    return number


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
