"""Passes over triangle meshes on the CPU (Numba): edges, normals, folds. One thread, the order of sums fixed."""

from __future__ import annotations

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
    starts = np.zeros(count + 1, np.int64)
    for face in range(len(faces)):
        for corner in range(3):
            starts[min(faces[face, corner], faces[face, (corner + 1) % 3]) + 1] += 1
    for vertex in range(count):
        starts[vertex + 1] += starts[vertex]
    ends = starts.copy()
    listed = np.empty((3 * len(faces), 2), np.int64)
    for face in range(len(faces)):
        for corner in range(3):
            a, b = faces[face, corner], faces[face, (corner + 1) % 3]
            low, high = min(a, b), max(a, b)
            position = ends[low]
            ends[low] += 1
            while position > starts[low] and listed[position - 1, 0] > high:
                listed[position, 0], listed[position, 1] = listed[position - 1, 0], listed[position - 1, 1]
                position -= 1
            listed[position, 0], listed[position, 1] = high, 3 * face + corner
    number = 0
    for vertex in range(count):
        for position in range(starts[vertex], starts[vertex + 1]):
            if position == starts[vertex] or listed[position, 0] != listed[position - 1, 0]:
                edges[number, 0], edges[number, 1] = vertex, listed[position, 0]
                number += 1
            side = listed[position, 1]
            sides[side // 3, side % 3] = number - 1
    return number


@compiled()
def mark_folded(
    points: Array, faces: Array, crossed: Array, sums: Array, agree: float, thin: float, wrong: Array
) -> None:
    """Marks triangles that face away from their corners' normals, or whose height is next to nothing.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`.
        crossed: cross products of the triangles `[M, 3]`; sums: of them at the vertices `[N, 3]`.
        agree: least mean cosine, times three; thin: least height relative to the longest side.
        wrong: result `[M]`.
    """
    for face in range(len(faces)):
        dot, longest = 0.0, 0.0
        length = np.sqrt(crossed[face, 0] ** 2 + crossed[face, 1] ** 2 + crossed[face, 2] ** 2)
        for corner in range(3):
            here, after = faces[face, corner], faces[face, (corner + 1) % 3]
            norm = np.sqrt(sums[here, 0] ** 2 + sums[here, 1] ** 2 + sums[here, 2] ** 2)
            along, side = 0.0, 0.0
            for axis in range(3):
                along += crossed[face, axis] * sums[here, axis]
                side += (points[here, axis] - points[after, axis]) ** 2
            dot += along / max(norm, 1e-300)
            longest = max(longest, side)
        wrong[face] = dot <= agree * length or length <= thin * longest


@compiled()
def mark_turned(old: Array, new: Array, cosine: float, smaller: float, wrong: Array) -> None:
    """Marks triangles whose normal turns too far, or whose area shrinks too much.

    Args:
        old, new: cross products `[M, 3]`; cosine: least one; smaller: least share of the area; wrong: result `[M]`.
    """
    for face in range(len(old)):
        dot = old[face, 0] * new[face, 0] + old[face, 1] * new[face, 1] + old[face, 2] * new[face, 2]
        before = np.sqrt(old[face, 0] ** 2 + old[face, 1] ** 2 + old[face, 2] ** 2)
        after = np.sqrt(new[face, 0] ** 2 + new[face, 1] ** 2 + new[face, 2] ** 2)
        wrong[face] = dot < cosine * before * after or after < smaller * before


@compiled()
def mark_slivers(points: Array, faces: Array, least: float, thin: Array) -> None:
    """Marks triangles whose quality (1 for equal sides, 0 without area) is less than `least`; points `[N, >= 3]`."""
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        total, area = 0.0, 0.0
        for i in range(3):
            j, k = (i + 1) % 3, (i + 2) % 3
            total += (points[a, i] - points[b, i]) ** 2 + (points[b, i] - points[c, i]) ** 2
            total += (points[c, i] - points[a, i]) ** 2
            area += (
                (points[b, j] - points[a, j]) * (points[c, k] - points[a, k])
                - (points[b, k] - points[a, k]) * (points[c, j] - points[a, j])
            ) ** 2
        thin[face] = 2.0 * np.sqrt(3.0) * np.sqrt(area) < least * total


@compiled()
def side_lengths(points: Array, pairs: Array, lengths: Array) -> None:
    """Distances of pairs `[E, 2]` of points `[N, >= 3]` into `lengths` `[E]`."""
    for pair in range(len(pairs)):
        total = 0.0
        for axis in range(3):
            total += (points[pairs[pair, 0], axis] - points[pairs[pair, 1], axis]) ** 2
        lengths[pair] = np.sqrt(total)


@compiled()
def shift_to_planes(points: Array, faces: Array, area: Array, wanted: Array, sums: Array, total: Array) -> None:
    """Adds up at the corners, by area, their ways to planes through the triangles' middles.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`; area: weights `[M]`; wanted: unit normals of the planes `[M, 3]`.
        sums: result `[N, 3]`; total: weights at the vertices `[N]`.
    """
    for face in range(len(faces)):
        middle = np.zeros(3)
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
