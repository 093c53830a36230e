"""Passes over the connections of triangle meshes on the CPU (Numba): which sides meet, and which corners form a fan."""

from __future__ import annotations

import numpy as np

from maquette.raster.cpu_jit import Array, compiled


@compiled()
def match_sides(faces: Array, sides: Array, uses: Array, partner: Array, crowded: Array) -> bool:
    """Joins the two sides of every edge that has two.

    Args:
        faces: `[M, 3]`; side `3 * face + i` runs from corner i to corner i + 1; sides: their edges `[M, 3]`.
        uses: zeros `[E]`, which become the number of sides of every edge.
        partner: result `[3 M]`, the opposite side, where an edge has two.
        crowded: -1 `[3 M]`, which becomes the edge where it has more than two sides.

    Returns:
        Whether every edge has as many sides in one direction as in the other.
    """
    first, balance = np.empty(len(uses), np.int64), np.zeros(len(uses), np.int64)
    for face in range(len(faces)):
        for corner in range(3):
            edge, side = sides[face, corner], 3 * face + corner
            if uses[edge] == 0:
                first[edge] = side
            partner[side], partner[first[edge]] = first[edge], side
            balance[edge] += 1 if faces[face, corner] < faces[face, (corner + 1) % 3] else -1
            uses[edge] += 1
    for face in range(len(faces)):
        for corner in range(3):
            if uses[sides[face, corner]] > 2:
                crowded[3 * face + corner] = sides[face, corner]
    return not np.any(balance)


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
