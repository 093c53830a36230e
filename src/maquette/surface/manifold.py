"""Topology of triangle meshes: whether they enclose a volume, and how to make them.

A mesh is watertight here when every edge belongs to exactly two triangles that run along it in opposite directions
and the triangles around every vertex form one fan. `separate_sheets` is the cutting of Gueziec et al., "Cutting and
Stitching: Converting Sets of Polygons to Manifold Surfaces" (2001), with pairs chosen by the angle around the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maquette.surface import mesh_kernels, sheet_kernels

Doubles = NDArray[np.float64]
Faces = NDArray[np.int64]

_GAP = 0.02
"""Separated copies of a vertex move this share of the way into their own sheet, so that they stay apart."""


@dataclass(frozen=True)
class Topology:
    """What the connections of a mesh say, vertices at one position being one.

    Attributes:
        watertight: closed, manifold and consistently oriented.
        components: connected parts.
        boundary_edges: edges of one triangle only.
        bad_edges: edges of more than two triangles, or of two that do not agree on the side.
        area: in squared units.
        volume: signed, positive when normals point outwards; of open meshes it means nothing.
    """

    watertight: bool
    components: int
    boundary_edges: int
    bad_edges: int
    area: float
    volume: float


def topology(vertices: Doubles, faces: Faces) -> Topology:
    """Describes a mesh `[N, 3]`, `[M, 3]`; triangles with a repeated corner do not count."""
    merged = same_rows(vertices)[faces]
    merged = merged[_proper(merged)]
    corners = vertices[faces]
    crossed = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    volume = float(np.einsum("ni,ni->", corners[:, 0], crossed)) / 6
    area = float(np.linalg.norm(crossed, axis=1).sum()) / 2
    if not len(merged):
        return Topology(False, 0, 0, 0, area, volume)
    used, compact = np.unique(merged, return_inverse=True)
    compact = compact.reshape(-1, 3)
    directed = _directed_edges(compact)
    low, high = directed.min(axis=1), directed.max(axis=1)
    key = low * np.int64(len(used)) + high
    _, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
    balance = np.bincount(inverse, np.where(directed[:, 0] < directed[:, 1], 1, -1))
    boundary = int((count == 1).sum())
    bad = int(((count > 2) | ((count == 2) & (balance != 0))).sum())
    fans = boundary == 0 and bad == 0 and bool((_fans(compact)[1] == 1).all())
    return Topology(fans, _components(compact, len(used)), boundary, bad, area, volume)


def same_rows(rows: NDArray[Any]) -> NDArray[np.int64]:
    """A number for every row `[N, 3]`, from 0 on, the same for equal rows: the inverse of `numpy.unique`."""
    order = np.lexsort(rows.T[::-1])
    new = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    numbers = np.zeros(len(rows), np.int64)
    numbers[order[1:]] = np.cumsum(new)
    return numbers


def _proper(faces: Faces) -> NDArray[np.bool_]:
    a, b, c = faces.T
    proper: NDArray[np.bool_] = (a != b) & (b != c) & (c != a)
    return proper


def _directed_edges(faces: Faces) -> Faces:
    """Row `3 * face + i` runs from corner i to corner i + 1, `[3 M, 2]`."""
    return np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2)


def unique_edges(faces: Faces) -> tuple[Faces, Faces]:
    """Edges `[E, 2]` (smaller vertex first), and the edge of every side (corner i to i + 1) of a triangle `[M, 3]`."""
    edges, sides = np.empty((3 * len(faces), 2), np.int64), np.empty((len(faces), 3), np.int64)
    count = mesh_kernels.edges_of(faces, int(faces.max()) + 1, edges, sides)
    return edges[:count], sides


def touching(faces: Faces, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Triangles `[M]` with a corner among the chosen vertices `[N]`; faces: `[M, 3]`."""
    marked = np.empty(len(faces), np.bool_)
    mesh_kernels.mark_touching(faces, chosen, marked)
    return marked


def _connected(first: NDArray[Any], second: NDArray[Any], count: int) -> tuple[int, NDArray[np.int64]]:
    """Number and labels of the parts of a graph with `count` nodes."""
    from scipy import sparse
    from scipy.sparse import csgraph

    graph = sparse.coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    number, labels = csgraph.connected_components(graph, directed=False)
    return int(number), labels.astype(np.int64)


def _components(faces: Faces, num_vertices: int) -> int:
    first, second = faces[:, [0, 1]].reshape(-1), faces[:, [1, 2]].reshape(-1)
    return _connected(first, second, num_vertices)[0]


def _fans(faces: Faces) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fan of every corner `[3 M]` where all edges are pairs, and the number of fans of every vertex."""
    directed = _directed_edges(faces)
    count = np.int64(faces.max() + 1)
    forward = np.argsort(directed[:, 0] * count + directed[:, 1], kind="stable")
    backward = np.argsort(directed[:, 1] * count + directed[:, 0], kind="stable")
    partner = np.empty(len(directed), np.int64)
    partner[forward] = backward
    return _fans_of(faces, partner)


def _fans_of(faces: Faces, partner: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As `_fans`, with the opposite directed edge of every directed edge given.

    The corner at the start of an edge is in one fan with the corner at the end of its partner.
    """
    labels = np.full(len(partner), -1)
    sheet_kernels.label_cycles(partner // 3 * 3 + (partner % 3 + 1) % 3, labels)
    owners = np.zeros(labels.max() + 1, np.int64)
    owners[labels] = faces.reshape(-1)
    fans = np.bincount(owners)
    return labels, fans[fans > 0]


def separate_sheets(vertices: Doubles, faces: Faces) -> tuple[Doubles, Faces]:
    """Makes a closed, oriented mesh manifold where its sheets touch each other.

    Pairs of triangles that cancel are removed; at an edge of four and more triangles those are joined that bound the
    same piece of solid; a vertex with several fans becomes several vertices, slightly apart.

    Args:
        vertices: `[N, 3]`; faces: `[M, 3]`, at every edge as many in one direction as in the other.

    Returns:
        Vertices in use and faces. A mesh with borders comes back without repeated corners, else as it was.
    """
    faces = _without_cancelling(faces[_proper(faces)])
    if not len(faces):
        return vertices, faces
    paired = _pair_edges(vertices, faces)
    if paired is None:
        used, index = np.unique(faces, return_inverse=True)
        return vertices[used], index.reshape(-1, 3)
    points, split = _split_fans(vertices, faces, paired[0])
    while (doubled := _doubled_edges(points, split)) is not None:
        points, split = _halve_edges(points, split, *doubled)
    return points, split


def _split_fans(vertices: Doubles, faces: Faces, partner: NDArray[np.int64]) -> tuple[Doubles, Faces]:
    """One vertex per fan; those that share a position move apart."""
    labels, _ = _fans_of(faces, partner)
    owners = np.zeros(labels.max() + 1, np.int64)
    owners[labels] = faces.reshape(-1)
    points = vertices[owners]
    shared = np.bincount(owners, minlength=len(vertices))[owners] > 1
    rows = np.flatnonzero(shared[labels])
    centers = vertices[faces[rows // 3]].mean(axis=1)
    sums = np.stack([np.bincount(labels[rows], centers[:, i], len(owners)) for i in range(3)], axis=1)
    middle = sums[shared] / np.bincount(labels[rows], minlength=len(owners))[shared, None]
    points[shared] += _GAP * (middle - points[shared])
    return points, labels.reshape(-1, 3)


def _doubled_edges(vertices: Doubles, faces: Faces) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Directed edges that share both ends with others, each with its partner, no triangle twice; None without any.

    Between two vertices where sheets touch twice there are two edges: they need vertices of their own.
    """
    paired = _pair_edges(vertices, faces)
    if paired is None or not paired[1].any():
        return None
    partner, crowded = paired
    chosen: list[int] = []
    touched: set[int] = set()
    for row in np.flatnonzero(crowded).tolist():
        both = {row // 3, int(partner[row]) // 3}
        if faces[row // 3, row % 3] < faces[row // 3, (row + 1) % 3] and not both & touched:
            touched |= both
            chosen.append(row)
    ahead = np.array(chosen, np.int64)
    return ahead, partner[ahead]


def _halve_edges(
    vertices: Doubles, faces: Faces, ahead: NDArray[np.int64], back: NDArray[np.int64]
) -> tuple[Doubles, Faces]:
    """Puts a vertex on each edge, a little into its sheet, and halves the triangles on both sides."""
    middles, parts = [], []
    for number, pair in enumerate(zip(ahead.tolist(), back.tolist(), strict=True)):
        new = len(vertices) + number
        corners = [np.roll(faces[row // 3], -(row % 3)) for row in pair]
        ends = vertices[corners[0][:2]].mean(axis=0)
        middles.append(ends + _GAP * (vertices[[c[2] for c in corners]].mean(axis=0) - ends))
        for a, b, c in corners:
            parts += [[a, new, c], [new, b, c]]
    kept = np.ones(len(faces), bool)
    kept[ahead // 3], kept[back // 3] = False, False
    return np.concatenate([vertices, middles]), np.concatenate([faces[kept], np.array(parts, np.int64)])


def _without_cancelling(faces: Faces) -> Faces:
    """Drops triangles with the same corners, as many as there are of the other orientation."""
    if not sheet_kernels.has_repeated_triangles(faces, int(faces.max(initial=-1)) + 1):
        return faces
    order = np.sort(faces, axis=1)
    first = faces.argmin(axis=1)
    turned = faces[np.arange(len(faces)), (first + 1) % 3] == order[:, 1]
    inverse = same_rows(order)
    count = np.bincount(inverse)
    total = np.bincount(inverse, np.where(turned, 1, -1), len(count)).astype(np.int64)
    rank = np.empty(len(faces), np.int64)
    sign = np.where(turned, 1, -1)
    by_group = np.lexsort((sign != np.sign(total)[inverse], inverse))
    starts = np.concatenate([[0], np.cumsum(count)[:-1]])
    rank[by_group] = np.arange(len(faces)) - starts[inverse[by_group]]
    kept: Faces = faces[(count[inverse] == 1) | (rank < np.abs(total)[inverse])]
    return kept


def _pair_edges(vertices: Doubles, faces: Faces) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
    """For every directed edge the opposite one that continues the surface, and whether others have its two ends.

    None where there are borders.
    """
    partner, crowded = np.full(3 * len(faces), -1), np.full(3 * len(faces), -1)
    edges, sides = unique_edges(faces)
    if not sheet_kernels.match_sides(faces, sides, np.zeros(len(edges), np.int64), partner, crowded):
        return None
    rows = np.flatnonzero(crowded >= 0)
    ends = np.stack([faces[rows // 3, rows % 3], faces[rows // 3, (rows + 1) % 3]], axis=1)
    order = np.lexsort((ends[:, 0] > ends[:, 1], crowded[rows]))
    for members in np.split(order, np.flatnonzero(np.diff(crowded[rows[order]])) + 1) if len(rows) else ():
        for one, other in _pairs_by_angle(vertices, faces, rows[members], ends[members]):
            partner[one], partner[other] = other, one
    return partner, crowded >= 0


def _pairs_by_angle(vertices: Doubles, faces: Faces, members: NDArray[np.int64], ends: Faces) -> list[Any]:
    """Pairs of the directed edges of one edge: each forward one with the next backward one through the solid."""
    low, high = vertices[ends[0].min()], vertices[ends[0].max()]
    axis = (high - low) / max(float(np.linalg.norm(high - low)), 1e-300)
    opposite = vertices[faces[members // 3, (members % 3 + 2) % 3]] - low
    flat = opposite - (opposite @ axis)[:, None] * axis
    side = flat[0] / max(float(np.linalg.norm(flat[0])), 1e-300)
    angles = np.arctan2(flat @ np.cross(axis, side), flat @ side)
    turn = np.argsort(angles, kind="stable")
    around, forward = members[turn], ends[turn, 0] < ends[turn, 1]
    stack: list[int] = []
    pairs = []
    # The solid lies clockwise (seen along the axis) behind a forward triangle: its partner comes before it. As in
    # nested brackets, a backward triangle opens a piece of solid and the next forward one closes it.
    depth = np.cumsum(np.where(forward, -1, 1))
    start = (int(depth.argmin()) + 1) % len(around)
    for position in np.roll(np.arange(len(around)), -start):
        if forward[position]:
            pairs.append((int(around[position]), stack.pop()))
        else:
            stack.append(int(around[position]))
    return pairs
