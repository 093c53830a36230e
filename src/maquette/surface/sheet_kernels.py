"""Passes over the connections of triangle meshes on the CPU (Numba): which sides meet, and which corners form a fan."""

from __future__ import annotations

import numpy as np

from maquette.raster.cpu_jit import Array, compiled


@compiled()
def sort_sides(faces: Array, starts: Array, sides: Array, far: Array) -> None:
    """Sorts sides by the smaller vertex at their ends, then by the larger one, then by their number.

    Args:
        faces: `[M, 3]`; side `3 * face + i` runs from corner i to corner i + 1.
        starts: zeros `[N + 1]`, which become the first position of every smaller vertex.
        sides: result `[3 M]`; far: their larger vertices `[3 M]`.
    """
    for face in range(len(faces)):
        for corner in range(3):
            starts[min(faces[face, corner], faces[face, (corner + 1) % 3]) + 1] += 1
    for vertex in range(1, len(starts)):
        starts[vertex] += starts[vertex - 1]
    ends = starts.copy()
    for face in range(len(faces)):
        for corner in range(3):
            a, b = faces[face, corner], faces[face, (corner + 1) % 3]
            low, high = min(a, b), max(a, b)
            position = ends[low]
            ends[low] += 1
            while position > starts[low] and far[position - 1] > high:
                far[position], sides[position] = far[position - 1], sides[position - 1]
                position -= 1
            far[position], sides[position] = high, 3 * face + corner


@compiled()
def match_sides(faces: Array, count: int, partner: Array, crowded: Array) -> bool:
    """Joins the two sides of every edge that has two.

    Args:
        faces: `[M, 3]`; count: number of vertices.
        partner: result `[3 M]`, the opposite side, where an edge has two.
        crowded: -1 `[3 M]`, which becomes a number of the edge where it has more than two sides.

    Returns:
        Whether every edge has as many sides in one direction as in the other.
    """
    starts = np.zeros(count + 1, np.int64)
    sides, far = np.empty(3 * len(faces), np.int64), np.empty(3 * len(faces), np.int64)
    sort_sides(faces, starts, sides, far)
    number = 0
    for vertex in range(count):
        first = starts[vertex]
        while first < starts[vertex + 1]:
            last, balance = first, 0
            while last < starts[vertex + 1] and far[last] == far[first]:
                balance += 1 if faces[sides[last] // 3, sides[last] % 3] == vertex else -1
                last += 1
            if balance != 0:
                return False
            if last == first + 2:
                partner[sides[first]], partner[sides[first + 1]] = sides[first + 1], sides[first]
            else:
                crowded[sides[first:last]] = number
                number += 1
            first = last
    return True


@compiled()
def label_cycles(following: Array, labels: Array) -> int:
    """Numbers the cycles of a permutation `[N]` into `labels` `[N]`, -1 before, by their first member."""
    number = 0
    for first in range(len(following)):
        if labels[first] < 0:
            member = first
            while labels[member] < 0:
                labels[member] = number
                member = following[member]
            number += 1
    return number


@compiled()
def has_repeated_triangles(faces: Array, count: int) -> bool:
    """Whether two triangles `[M, 3]` of `count` vertices have the same corners, in whatever order."""
    starts = np.zeros(count + 1, np.int64)
    for face in range(len(faces)):
        starts[min(faces[face, 0], faces[face, 1], faces[face, 2]) + 1] += 1
    for vertex in range(count):
        starts[vertex + 1] += starts[vertex]
    ends, others = starts.copy(), np.empty((len(faces), 2), np.int64)
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        low, high = min(a, b, c), max(a, b, c)
        middle = a + b + c - low - high
        for position in range(starts[low], ends[low]):
            if others[position, 0] == middle and others[position, 1] == high:
                return True
        others[ends[low], 0], others[ends[low], 1] = middle, high
        ends[low] += 1
    return False
