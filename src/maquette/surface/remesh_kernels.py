"""Passes of remeshing on the CPU (Numba): edges that collapse, split and flip, so that no two changes touch.

All read a closed or open triangle mesh as it is before the pass; a chosen change locks the vertices around it, so the
checks of every change stay true when all are made at once.
"""

from __future__ import annotations

import numpy as np

from maquette.raster.cpu_jit import Array, compiled

_SLIVER = 0.1
"""Least quality (1 for equal sides, 0 without area) of a triangle that needs no care."""


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
def _distance(points: Array, a: int, b: int) -> float:
    total = 0.0
    for axis in range(3):
        total += (points[a, axis] - points[b, axis]) ** 2
    return float(np.sqrt(total))


@compiled()
def lock_borders(edges: Array, sides: Array, locked: Array) -> None:
    """Locks vertices `[N]` at edges `[E, 2]` that do not have exactly two sides `[M, 3]`."""
    uses = np.zeros(len(edges), np.int32)
    for face in range(len(sides)):
        for corner in range(3):
            uses[sides[face, corner]] += 1
    for edge in range(len(edges)):
        if uses[edge] != 2:
            locked[edges[edge, 0]], locked[edges[edge, 1]] = True, True


@compiled()
def edge_lengths(
    points: Array, wanted: Array, faces: Array, edges: Array, sides: Array, shortest: float, relative: Array
) -> None:
    """Lengths of edges relative to the one below which they collapse.

    The shortest side of a sliver goes, unless it is long: then the flips or splits see to it.

    Args:
        points: `[N, 3]`; wanted: edge length at every vertex `[N]`; faces, edges, sides: see `edges_of`.
        shortest: share of the wanted length that an edge must have; relative: result `[E]`.
    """
    lengths, goals = np.empty(len(edges)), np.empty(len(edges))
    for edge in range(len(edges)):
        first, second = edges[edge, 0], edges[edge, 1]
        lengths[edge], goals[edge] = _distance(points, first, second), (wanted[first] + wanted[second]) / 2
        relative[edge] = lengths[edge] / max(shortest * goals[edge], 1e-300)
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
        if 2.0 * np.sqrt(3.0) * np.sqrt(area) < _SLIVER * total:
            worst = sides[face, 0]
            for corner in range(1, 3):
                if lengths[sides[face, corner]] < lengths[worst]:
                    worst = sides[face, corner]
            relative[worst] = min(relative[worst], lengths[worst] / goals[worst])


@compiled()
def renumber(faces: Array, target: Array, number: Array) -> int:
    """Replaces vertices in place, drops triangles with equal corners and numbers anew what is left.

    Args:
        faces: `[M, 3]`, the first ones of which become the result.
        target: what every vertex becomes `[N]`; number: result `[N]`, -1 for vertices that no triangle has any more.

    Returns:
        The number of triangles.
    """
    kept = 0
    number[:] = -1
    for face in range(len(faces)):
        a, b, c = target[faces[face, 0]], target[faces[face, 1]], target[faces[face, 2]]
        if a != b and b != c and c != a:
            faces[kept, 0], faces[kept, 1], faces[kept, 2] = a, b, c
            number[a], number[b], number[c] = 0, 0, 0
            kept += 1
    used = 0
    for vertex in range(len(number)):
        if number[vertex] == 0:
            number[vertex] = used
            used += 1
    for face in range(kept):
        for corner in range(3):
            faces[face, corner] = number[faces[face, corner]]
    return kept


@compiled()
def long_sides(
    points: Array, wanted: Array, faces: Array, frozen: Array, longest: float, keys: Array, where: Array
) -> int:
    """Lists sides of triangles that are longer than so many times the wanted length; returns their number.

    Args:
        points: `[N, 3]`; wanted, frozen: per vertex `[N]`; sides at frozen ones are left out.
        faces: `[M, 3]`; longest: relative to the mean wanted length of the ends.
        keys: results `[3 M]`: N times the smaller end, plus the larger one; where: `[3 M]`, 3 times the triangle, plus
            the corner that the side starts at.
    """
    number = 0
    for face in range(len(faces)):
        for corner in range(3):
            a, b = faces[face, corner], faces[face, (corner + 1) % 3]
            if frozen[a] or frozen[b]:
                continue
            if _distance(points, a, b) > longest * ((wanted[a] + wanted[b]) / 2):
                keys[number], where[number] = min(a, b) * len(points) + max(a, b), 3 * face + corner
                number += 1
    return number


@compiled()
def cut_triangles(points: Array, faces: Array, cut: Array, begins: Array, result: Array) -> None:
    """Cuts triangles at the middles of their long sides; whole ones come first, then those with one cut, two and three.

    Args:
        points: `[N, 3]`, the middles among them.
        faces: `[M, 3]`; cut: vertex in the middle of every side `[M, 3]`, -1 where it stays whole.
        begins: row of the result where triangles with 0 to 3 cuts begin, and their number, `[4, 2]`; then come the
            second parts of all of them, and so on. The first column is changed.
        result: `[R, 3]`.
    """
    for face in range(len(faces)):
        cuts, turn = 0, 0
        for corner in range(3):
            cuts += cut[face, corner] >= 0
        # Turned so that the first side is cut and, of two, the second one too.
        while cuts and (cut[face, turn] < 0 or (cuts == 2 and cut[face, (turn + 1) % 3] < 0)):
            turn += 1
        a, b, c = faces[face, turn], faces[face, (turn + 1) % 3], faces[face, (turn + 2) % 3]
        p, q, r = cut[face, turn], cut[face, (turn + 1) % 3], cut[face, (turn + 2) % 3]
        row, step = begins[cuts, 0], begins[cuts, 1]
        begins[cuts, 0] += 1
        if cuts == 0:
            result[row] = (a, b, c)
        elif cuts == 1:
            result[row], result[row + step] = (a, p, c), (p, b, c)
        elif cuts == 2:
            near = _distance(points, p, c) < _distance(points, a, q)
            result[row] = (p, b, q)
            result[row + step] = (a, p, c) if near else (a, p, q)
            result[row + 2 * step] = (p, q, c) if near else (a, q, c)
        else:
            result[row], result[row + step] = (a, p, r), (p, b, q)
            result[row + 2 * step], result[row + 3 * step] = (r, q, c), (p, q, r)


@compiled()
def _linked(edges: Array, starts: Array, vertex: int, other: int) -> bool:
    """Whether an edge joins two vertices; `starts` `[N + 1]` says where those with each smaller vertex begin."""
    low, high = min(vertex, other), max(vertex, other)
    found = False
    for edge in range(starts[low], starts[low + 1]):
        found = found or edges[edge, 1] == high
    return found


@compiled()
def _qualities(points: Array, faces: Array) -> Array:
    """Quality of every triangle, see `_shape`, `[M]`."""
    crossed, qualities = np.empty(3), np.empty(len(faces))
    for face in range(len(faces)):
        a, b, c = faces[face]
        qualities[face] = _shape(points, a, b, c, _normal(points, a, b, c, crossed))
    return qualities


@compiled()
def _flips_well(points: Array, a: int, b: int, c: int, d: int, thin: float, old: Array, new: Array) -> bool:
    """Whether triangles (c, d, b) and (d, c, a) may come for (a, b, c) and (b, a, d), whose least quality is given."""
    before = (_normal(points, a, b, c, old[0]), _normal(points, b, a, d, old[1]))
    lengths = (_normal(points, c, d, b, new[0]), _normal(points, d, c, a, new[1]))
    if lengths[0] <= 0.0 or lengths[1] <= 0.0:
        return False
    worst = min(_shape(points, c, d, b, lengths[0]), _shape(points, d, c, a, lengths[1]))
    if worst < min(0.3, max(thin, 0.05)):
        return False
    for i in range(2):
        for j in range(2):
            dot = old[i, 0] * new[j, 0] + old[i, 1] * new[j, 1] + old[i, 2] * new[j, 2]
            if not dot > 0.5 * before[i] * lengths[j]:
                return False
    return True


@compiled()
def flip(points: Array, faces: Array, edges: Array, sides: Array, locked: Array, flipped: Array) -> None:
    """Joins the opposite corners of inner edges instead of their ends: degrees nearer to six, no fold, no sliver.

    Args:
        points: `[N, 3]`; faces, edges, sides: see `edges_of`.
        locked: per vertex, what must stay `[N]`; the four vertices of every flip are added.
        flipped: faces `[M, 3]`, changed where an edge flips.
    """
    qualities = _qualities(points, faces)
    both, degrees = np.full((len(edges), 2), -1, np.int32), np.zeros(len(points), np.int32)
    for face in range(len(faces)):
        for corner in range(3):
            edge = sides[face, corner]
            both[edge, 1 if both[edge, 0] >= 0 else 0] = 3 * face + corner
    starts = np.zeros(len(points) + 1, np.int32)
    for edge in range(len(edges)):
        starts[edges[edge, 0] + 1] += 1
        degrees[edges[edge, 0]] += 1
        degrees[edges[edge, 1]] += 1
    for vertex in range(len(points)):
        starts[vertex + 1] += starts[vertex]
    old, new = np.empty((2, 3)), np.empty((2, 3))
    for edge in range(len(edges)):
        first, second = both[edge]
        if second < 0:
            continue
        one, two = first // 3, second // 3
        a, b, c = faces[one, first % 3], faces[one, (first + 1) % 3], faces[one, (first + 2) % 3]
        if faces[two, second % 3] != b:
            continue
        d = faces[two, (second + 2) % 3]
        if locked[a] or locked[b] or locked[c] or locked[d] or degrees[a] <= 3 or degrees[b] <= 3:
            continue
        before = (degrees[a] - 6) ** 2 + (degrees[b] - 6) ** 2 + (degrees[c] - 6) ** 2 + (degrees[d] - 6) ** 2
        after = (degrees[a] - 7) ** 2 + (degrees[b] - 7) ** 2 + (degrees[c] - 5) ** 2 + (degrees[d] - 5) ** 2
        thin = min(qualities[one], qualities[two])
        if (after >= before and thin > _SLIVER) or _linked(edges, starts, c, d):
            continue
        if _flips_well(points, a, b, c, d, thin, old, new):
            flipped[one, 0], flipped[one, 1], flipped[one, 2] = c, d, b
            flipped[two, 0], flipped[two, 1], flipped[two, 2] = d, c, a
            locked[a], locked[b], locked[c], locked[d] = True, True, True, True
