"""Choices of remeshing on the CPU (Numba): which edges collapse and which flip, so that no two changes touch.

All read a closed or open triangle mesh as it is before the pass; a chosen change locks the vertices around it, so the
checks of every change stay true when all are made at once.
"""

from __future__ import annotations

import numpy as np

from maquette.raster.cpu_jit import Array, compiled


@compiled()
def _normal(points: Array, a: int, b: int, c: int, out: Array) -> float:
    """Cross product of a triangle's edges into `out` `[3]`; returns its length."""
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        out[i] = (points[b, j] - points[a, j]) * (points[c, k] - points[a, k]) - (points[b, k] - points[a, k]) * (
            points[c, j] - points[a, j]
        )
    return float(np.sqrt(out[0] ** 2 + out[1] ** 2 + out[2] ** 2))


@compiled()
def _shape(points: Array, a: int, b: int, c: int, area: float) -> float:
    """Quality of a triangle from twice its area: 1 for equal sides, 0 without area."""
    total = 0.0
    for i in range(3):
        total += (points[a, i] - points[b, i]) ** 2 + (points[b, i] - points[c, i]) ** 2
        total += (points[c, i] - points[a, i]) ** 2
    return float(2.0 * np.sqrt(3.0) * area / max(total, 1e-300))


@compiled()
def _turns(
    points: Array, face: Array, vertex: int, other: int, target: Array, old: Array, new: Array, moved: Array
) -> bool:
    """Whether a triangle turns too far or gets too thin when one of its corners moves to `target`."""
    length_old = _normal(points, face[0], face[1], face[2], old)
    for i in range(3):
        for axis in range(3):
            moved[i, axis] = target[axis] if face[i] == vertex or face[i] == other else points[face[i], axis]
    length_new = _normal(moved, 0, 1, 2, new)
    if length_new <= 0.0 or _shape(moved, 0, 1, 2, length_new) < 0.05:
        return True
    dot = old[0] * new[0] + old[1] * new[1] + old[2] * new[2]
    return bool(dot < 0.3 * length_old * length_new)


@compiled()
def _manifold_after(
    faces: Array, starts: Array, around: Array, first: int, second: int, locked: Array, mark: Array, stamp: int
) -> bool:
    """Whether nothing around an edge is locked, and exactly two vertices are next to both ends.

    With more of them the surface would touch itself after the collapse. `mark` `[N]` is scratch: values below `stamp`.
    """
    common = 0
    for end in range(2):
        vertex = second if end else first
        for position in range(starts[vertex], starts[vertex + 1]):
            for corner in faces[around[position]]:
                if locked[corner]:
                    return False
                if end == 0:
                    mark[corner] = stamp
                elif corner != first and corner != second and mark[corner] == stamp:
                    mark[corner] = stamp + 1
                    common += 1
    return common == 2


@compiled()
def _any_turns(points: Array, faces: Array, starts: Array, around: Array, first: int, second: int) -> bool:
    """Whether a triangle would turn over when an edge shrinks to its middle."""
    old, new, moved, target = np.empty(3), np.empty(3), np.empty((3, 3)), np.empty(3)
    for axis in range(3):
        target[axis] = 0.5 * (points[first, axis] + points[second, axis])
    for vertex, other in ((first, second), (second, first)):
        for position in range(starts[vertex], starts[vertex + 1]):
            face = faces[around[position]]
            if face[0] == other or face[1] == other or face[2] == other:
                continue
            if _turns(points, face, vertex, other, target, old, new, moved):
                return True
    return False


@compiled()
def choose_collapses(
    points: Array, faces: Array, starts: Array, around: Array, edges: Array, order: Array, locked: Array, chosen: Array
) -> None:
    """Marks edges whose ends can become one vertex in the middle.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`.
        starts, around: triangles of every vertex: `around[starts[v] : starts[v + 1]]`.
        edges: `[E, 2]`; order: rows of `edges`, the most wanted first.
        locked: per vertex, what must stay `[N]`; the vertices around every chosen edge are added.
        chosen: result `[E]`.
    """
    mark = np.zeros(len(points), np.int64)
    stamp = 0
    for edge in order:
        first, second = edges[edge, 0], edges[edge, 1]
        stamp += 2
        if locked[first] or locked[second]:
            continue
        if not _manifold_after(faces, starts, around, first, second, locked, mark, stamp):
            continue
        if _any_turns(points, faces, starts, around, first, second):
            continue
        chosen[edge] = True
        for end in (first, second):
            for position in range(starts[end], starts[end + 1]):
                for corner in faces[around[position]]:
                    locked[corner] = True


@compiled()
def _linked(faces: Array, starts: Array, around: Array, vertex: int, other: int) -> bool:
    """Whether an edge joins two vertices."""
    for position in range(starts[vertex], starts[vertex + 1]):
        face = faces[around[position]]
        if face[0] == other or face[1] == other or face[2] == other:
            return True
    return False


@compiled()
def choose_flips(
    points: Array, faces: Array, starts: Array, around: Array, pairs: Array, degrees: Array, locked: Array,
    chosen: Array,
) -> None:  # fmt: skip
    """Marks inner edges that should join the opposite corners instead: degrees nearer to six, no fold, no sliver.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`.
        starts, around: triangles of every vertex.
        pairs: start and end of the edge, the corner opposite to it in the triangle that runs along it, and in the other
            one, `[E, 4]`.
        degrees: edges at every vertex `[N]`.
        locked: per vertex, what must stay `[N]`; the four vertices of every chosen edge are added.
        chosen: result `[E]`.
    """
    first_old, second_old, first_new, second_new = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    for edge in range(len(pairs)):
        a, b, c, d = pairs[edge]
        if locked[a] or locked[b] or locked[c] or locked[d] or degrees[a] <= 3 or degrees[b] <= 3:
            continue
        before = (degrees[a] - 6) ** 2 + (degrees[b] - 6) ** 2 + (degrees[c] - 6) ** 2 + (degrees[d] - 6) ** 2
        after = (degrees[a] - 7) ** 2 + (degrees[b] - 7) ** 2 + (degrees[c] - 5) ** 2 + (degrees[d] - 5) ** 2
        areas = (_normal(points, a, b, c, first_old), _normal(points, b, a, d, second_old))
        thin = min(_shape(points, a, b, c, areas[0]), _shape(points, b, a, d, areas[1]))
        if after >= before and thin > 0.1:
            continue
        if _linked(faces, starts, around, c, d):
            continue
        lengths = (_normal(points, c, d, b, first_new), _normal(points, d, c, a, second_new))
        if lengths[0] <= 0.0 or lengths[1] <= 0.0:
            continue
        worst = min(_shape(points, c, d, b, lengths[0]), _shape(points, d, c, a, lengths[1]))
        if worst < min(0.3, max(thin, 0.05)):
            continue
        good = True
        for old, length_old in ((first_old, areas[0]), (second_old, areas[1])):
            for new, length in ((first_new, lengths[0]), (second_new, lengths[1])):
                dot = old[0] * new[0] + old[1] * new[1] + old[2] * new[2]
                good = good and dot > 0.5 * length_old * length
        if good:
            chosen[edge] = True
            locked[a], locked[b], locked[c], locked[d] = True, True, True, True
