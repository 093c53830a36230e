"""Passes over triangle meshes on the CPU (Numba): edges, normals, folds. The order of sums is fixed."""

from __future__ import annotations

import numba
import numpy as np

from maquette.raster.cpu_jit import Array, compiled


@compiled()
def cross(points: Array, faces: Array, crossed: Array) -> None:
    """Cross products of the triangles' first two sides into `crossed` `[M, 3]`; points `[N, 3]`, faces `[M, 3]`."""
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, az = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        bx, by, bz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        crossed[face, 0] = ay * bz - az * by
        crossed[face, 1] = az * bx - ax * bz
        crossed[face, 2] = ax * by - ay * bx


@compiled()
def corner_sums(faces: Array, values: Array, sums: Array) -> None:
    """Adds a value per triangle `[M, C]` to all its corners' `sums` `[N, C]`."""
    for face in range(len(faces)):
        for corner in range(3):
            for axis in range(values.shape[1]):
                sums[faces[face, corner], axis] += values[face, axis]


@compiled(parallel=True)
def angle_weights(points: Array, faces: Array, crossed: Array, weights: Array) -> None:
    """Angles of triangles at their corners over the lengths of their cross products, 0 for those without area.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`; crossed: cross products of the triangles `[M, 3]`.
        weights: result `[M, 3]`.
    """
    for face in numba.prange(len(faces)):
        length = np.sqrt(crossed[face, 0] ** 2 + crossed[face, 1] ** 2 + crossed[face, 2] ** 2)
        for corner in range(3):
            here, after, before = faces[face, corner], faces[face, (corner + 1) % 3], faces[face, (corner + 2) % 3]
            dot = 0.0
            for axis in range(3):
                dot += (points[after, axis] - points[here, axis]) * (points[before, axis] - points[here, axis])
            weights[face, corner] = np.arctan2(length, dot) / length if length > 0.0 else 0.0


@compiled()
def weighted_corner_sums(faces: Array, values: Array, weights: Array, sums: Array) -> None:
    """Adds a vector per triangle `[M, 3]`, times its weight there `[M, 3]`, to the `sums` `[N, 3]` of its corners."""
    for face in range(len(faces)):
        for corner in range(3):
            for axis in range(3):
                sums[faces[face, corner], axis] += weights[face, corner] * values[face, axis]


@compiled()
def mark_touching(faces: Array, chosen: Array, touching: Array) -> None:
    """Marks `[M]` the triangles `[M, 3]` with a corner among the chosen vertices `[N]`."""
    for face in range(len(faces)):
        touching[face] = chosen[faces[face, 0]] or chosen[faces[face, 1]] or chosen[faces[face, 2]]


@compiled()
def add_at(rows: Array, weights: Array, values: Array, sums: Array) -> None:
    """Adds values `[P, 3]` times weights `[P]` to rows `[P]` of `sums` `[M, 3]`."""
    for index in range(len(rows)):
        for axis in range(3):
            sums[rows[index], axis] += weights[index] * values[index, axis]


@compiled()
def dot_at(rows: Array, values: Array, others: Array, dots: Array) -> None:
    """Products of vectors `[P, 3]` with rows `[P]` of others `[M, 3]` into `dots` `[P]`."""
    for index in range(len(rows)):
        row = rows[index]
        total = values[index, 0] * others[row, 0] + values[index, 1] * others[row, 1]
        dots[index] = total + values[index, 2] * others[row, 2]


@compiled()
def unit_or_up(sums: Array, normals: Array) -> None:
    """Unit vectors `[N, 3]` of sums `[N, 3]`; (0, 1, 0) for nothing."""
    for vertex in range(len(sums)):
        length = np.sqrt(sums[vertex, 0] ** 2 + sums[vertex, 1] ** 2 + sums[vertex, 2] ** 2)
        for axis in range(3):
            normals[vertex, axis] = sums[vertex, axis] / length if length > 0 else (1.0 if axis == 1 else 0.0)


@compiled()
def side_sums(faces: Array, values: Array, sums: Array) -> None:
    """Adds, for every side of a triangle, the value `[N, 3]` at its start to the `sums` `[N, 3]` at its end."""
    for face in range(len(faces)):
        for corner in range(3):
            start, end = faces[face, corner], faces[face, (corner + 1) % 3]
            for axis in range(3):
                sums[end, axis] += values[start, axis]


@compiled()
def edge_sums(points: Array, edges: Array, sums: Array, count: Array) -> None:
    """Adds to `sums` `[N, 3]` the points at the other ends of a vertex' edges `[E, 2]`, and to `count` their number."""
    for edge in range(len(edges)):
        first, second = edges[edge, 0], edges[edge, 1]
        count[first] += 1
        count[second] += 1
        for axis in range(3):
            sums[first, axis] += points[second, axis]
            sums[second, axis] += points[first, axis]


@compiled()
def triangles_around(faces: Array, starts: Array, around: Array) -> None:
    """Triangles of every vertex, smaller ones first: `around[starts[v] : starts[v + 1]]`.

    Args:
        faces: `[M, 3]`; starts: zeros `[N + 2]`, of which the first N + 1 become the result; around: `[3 M]`.
    """
    for face in range(len(faces)):
        for corner in range(3):
            starts[faces[face, corner] + 2] += 1
    for vertex in range(2, len(starts)):
        starts[vertex] += starts[vertex - 1]
    for face in range(len(faces)):
        for corner in range(3):
            vertex = faces[face, corner] + 1
            around[starts[vertex]] = face
            starts[vertex] += 1


@compiled()
def edges_of(faces: Array, count: int, edges: Array, sides: Array) -> int:
    """Edges in the order of their vertices, the smaller one first, and the edge of every side; returns their number.

    Args:
        faces: `[M, 3]`; count: number of vertices.
        edges: result `[3 M, 2]`, of which the first ones are filled; sides: result `[M, 3]`.
    """
    starts = np.zeros(count + 1, np.int32)
    for face in range(len(faces)):
        for corner in range(3):
            starts[min(faces[face, corner], faces[face, (corner + 1) % 3]) + 1] += 1
    for vertex in range(count):
        starts[vertex + 1] += starts[vertex]
    ends = starts.copy()
    # The larger vertex of every side and the side itself, in one number, sorted within the smaller vertex.
    listed = np.empty(3 * len(faces), np.int64)
    for face in range(len(faces)):
        for corner in range(3):
            a, b = faces[face, corner], faces[face, (corner + 1) % 3]
            low, packed = min(a, b), (max(a, b) << 32) | (3 * face + corner)
            position = ends[low]
            ends[low] += 1
            while position > starts[low] and listed[position - 1] > packed:
                listed[position] = listed[position - 1]
                position -= 1
            listed[position] = packed
    number = 0
    for vertex in range(count):
        last = -1
        for position in range(starts[vertex], starts[vertex + 1]):
            high, side = listed[position] >> 32, listed[position] & 0xFFFFFFFF
            if high != last:
                edges[number, 0], edges[number, 1] = vertex, high
                number += 1
                last = high
            sides[side // 3, side % 3] = number - 1
    return number


@compiled(parallel=True)
def mark_folded(
    points: Array, faces: Array, crossed: Array, sums: Array, agree: Array, thin: float, wrong: Array
) -> None:
    """Marks triangles that face away from their corners' normals, or whose height is next to nothing.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`.
        crossed: cross products of the triangles `[M, 3]`; sums: of them at the vertices `[N, 3]`.
        agree: least sum of cosines of a triangle, at vertices `[N]`: the least of its corners counts.
        thin: least height relative to the longest side.
        wrong: result `[M]`.
    """
    norms = np.empty(len(sums))
    for vertex in numba.prange(len(sums)):
        norms[vertex] = max(np.sqrt(sums[vertex, 0] ** 2 + sums[vertex, 1] ** 2 + sums[vertex, 2] ** 2), 1e-300)
    for face in numba.prange(len(faces)):
        dot, longest, least = 0.0, 0.0, np.inf
        length = np.sqrt(crossed[face, 0] ** 2 + crossed[face, 1] ** 2 + crossed[face, 2] ** 2)
        for corner in range(3):
            here, after = faces[face, corner], faces[face, (corner + 1) % 3]
            along, side = 0.0, 0.0
            for axis in range(3):
                along += crossed[face, axis] * sums[here, axis]
                side += (points[here, axis] - points[after, axis]) ** 2
            dot += along / norms[here]
            longest, least = max(longest, side), min(least, agree[here])
        wrong[face] = dot <= least * length or length <= thin * longest


@compiled()
def around_wrong(faces: Array, wrong: Array, frozen: Array, around: Array) -> int:
    """Marks vertices of triangles that share a free corner with a wrong one, unless frozen; returns their number.

    Args:
        faces: `[M, 3]`; wrong: `[M]`; frozen: vertices `[N]`; around: result `[N]`.
    """
    corners = np.zeros(len(frozen), np.bool_)
    around[:] = False
    for face in range(len(faces)):
        if wrong[face]:
            for corner in faces[face]:
                corners[corner] = not frozen[corner]
    number = 0
    for face in range(len(faces)):
        a, b, c = faces[face]
        if corners[a] or corners[b] or corners[c]:
            for corner in (a, b, c):
                number += not (frozen[corner] or around[corner])
                around[corner] = not frozen[corner]
    return number


@compiled()
def hold_back(
    shifted: Array, faces: Array, crossed: Array, cosine: float, smaller: float, factor: float, moving: Array
) -> int:
    """Lets the corners of triangles that turn too far, or shrink too much, move less; returns the triangles' number.

    Args:
        shifted: points `[N, 3]`; faces: `[M, 3]`; crossed: cross products before the shift `[M, 3]`.
        cosine: least one of the turn; smaller: least share of the area.
        factor: on the share of the way `moving` `[N]` of these corners.
    """
    number = 0
    touched = np.zeros(len(shifted), np.bool_)
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, az = shifted[b, 0] - shifted[a, 0], shifted[b, 1] - shifted[a, 1], shifted[b, 2] - shifted[a, 2]
        bx, by, bz = shifted[c, 0] - shifted[a, 0], shifted[c, 1] - shifted[a, 1], shifted[c, 2] - shifted[a, 2]
        x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        dot = crossed[face, 0] * x + crossed[face, 1] * y + crossed[face, 2] * z
        before = np.sqrt(crossed[face, 0] ** 2 + crossed[face, 1] ** 2 + crossed[face, 2] ** 2)
        after = np.sqrt(x**2 + y**2 + z**2)
        if dot < cosine * before * after or after < smaller * before:
            number += 1
            touched[a], touched[b], touched[c] = True, True, True
    for vertex in range(len(shifted)):
        if touched[vertex]:
            moving[vertex] *= factor
    return number


@compiled()
def shift_to_planes(points: Array, faces: Array, area: Array, wanted: Array, sums: Array, total: Array) -> None:
    """Adds up at the corners, by area, their ways to planes through the triangles' middles.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`; area: weights `[M]`; wanted: unit normals of the planes `[M, 3]`.
        sums: result `[N, 3]`; total: weights at the vertices `[N]`.
    """
    middle = np.empty(3)
    for face in range(len(faces)):
        middle[:] = 0
        for corner in range(3):
            for axis in range(3):
                middle[axis] += points[faces[face, corner], axis] / 3.0
        for corner in range(3):
            vertex = faces[face, corner]
            way = 0.0
            for axis in range(3):
                way += (middle[axis] - points[vertex, axis]) * wanted[face, axis]
            for axis in range(3):
                sums[vertex, axis] += area[face] * way * wanted[face, axis]
            total[vertex] += area[face]
