"""Continuous remeshing: edges kept near a wanted length by splits, collapses and flips, while something optimises.

The rules follow Palfinger, "Continuous remeshing for inverse rendering" (2022): per vertex a wanted edge length, with a
tolerance; whatever belongs to a vertex (position, optimizer state) is averaged where a vertex is made. Stricter than
there, no pass may make a triangle turn over or a surface touch itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maquette.surface import mesh_kernels
from maquette.surface.manifold import Doubles, Faces
from maquette.surface.remesh_kernels import choose_collapses, choose_flips

TOLERANCE = 0.5
"""Edges may be this share longer or shorter than wanted."""


@dataclass(frozen=True)
class Patch:
    """A mesh with anything per vertex.

    Attributes:
        state: `[N, K]`: position in the first three columns, wanted edge length in the last one.
        faces: `[M, 3]`.
        frozen: vertices that stay where they are, with all their edges, `[N]`.
    """

    state: Doubles
    faces: Faces
    frozen: NDArray[np.bool_]


def remeshed(patch: Patch) -> Patch:
    """One pass: collapses, splits and flips."""
    return _flipped(_split(_collapsed(patch)))


def unique_edges(faces: Faces) -> tuple[Faces, NDArray[np.int64]]:
    """Edges `[E, 2]` (smaller vertex first), and the edge of every side (corner i to i + 1) of a triangle `[M, 3]`."""
    edges, sides = np.empty((3 * len(faces), 2), np.int64), np.empty((len(faces), 3), np.int64)
    count = mesh_kernels.edges_of(faces, int(faces.max()) + 1, edges, sides)
    return np.ascontiguousarray(edges[:count]), sides


def _lengths(patch: Patch, edges: Faces) -> tuple[Doubles, Doubles]:
    """Length of every edge, and the length wanted there."""
    lengths, wanted = np.empty(len(edges)), patch.state[:, -1]
    mesh_kernels.side_lengths(patch.state, edges, lengths)
    return lengths, (wanted[edges[:, 0]] + wanted[edges[:, 1]]) / 2


def _triangles_around(faces: Faces, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts, around = np.zeros(count + 2, np.int64), np.empty(faces.size, np.int64)
    mesh_kernels.triangles_around(faces, starts, around)
    return starts[:-1], around


def _border(edges: Faces, sides: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Vertices at edges that do not have exactly two triangles."""
    uses = np.bincount(sides.reshape(-1), minlength=len(edges))
    border = np.zeros(count, bool)
    border[edges[uses != 2].reshape(-1)] = True
    return border


def _collapsed(patch: Patch) -> Patch:
    edges, sides = unique_edges(patch.faces)
    lengths, wanted = _lengths(patch, edges)
    relative = lengths / np.maximum((1 - TOLERANCE) * wanted, 1e-300)
    thin = np.empty(len(patch.faces), np.bool_)
    mesh_kernels.mark_slivers(patch.state, patch.faces, 0.1, thin)
    # The shortest side of a sliver goes, unless it is long: then the flips or splits see to it.
    worst = sides[thin, lengths[sides[thin]].argmin(axis=1)]
    relative[worst] = np.minimum(relative[worst], lengths[worst] / wanted[worst])
    todo = np.flatnonzero(relative < 1)
    if not len(todo):
        return patch
    order = todo[np.argsort(relative[todo], kind="stable")]
    count = len(patch.state)
    chosen = np.zeros(len(edges), bool)
    locked = patch.frozen | _border(edges, sides, count)
    points = np.ascontiguousarray(patch.state[:, :3])
    choose_collapses(points, patch.faces, *_triangles_around(patch.faces, count), edges, order, locked, chosen)
    kept, gone = edges[chosen].T
    state = patch.state.copy()
    state[kept] = (state[kept] + state[gone]) / 2
    target = np.arange(count)
    target[gone] = kept
    faces = target[patch.faces]
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
    used, index = np.unique(faces, return_inverse=True)
    return Patch(state[used], index.reshape(-1, 3), patch.frozen[used])


def _split(patch: Patch) -> Patch:
    edges, sides = unique_edges(patch.faces)
    lengths, wanted = _lengths(patch, edges)
    long = (lengths > (1 + TOLERANCE) * wanted) & ~patch.frozen[edges].any(axis=1)
    if not long.any():
        return patch
    middle = np.full(len(edges), -1, np.int64)
    middle[long] = len(patch.state) + np.arange(int(long.sum()))
    state = np.concatenate([patch.state, patch.state[edges[long]].mean(axis=1)])
    cut = middle[sides]
    number = (cut >= 0).sum(axis=1)
    parts = [patch.faces[number == 0]]
    for cuts in (1, 2, 3):
        rows = np.flatnonzero(number == cuts)
        # Turned so that the first side is cut and, of two, the second one too.
        first = (cut[rows] >= 0).argmax(axis=1)
        if cuts == 2:
            first = (cut[rows] < 0).argmax(axis=1) + 1
        turn = (first[:, None] + np.arange(3)) % 3
        a, b, c = np.take_along_axis(patch.faces[rows], turn, 1).T
        p, q, r = np.take_along_axis(cut[rows], turn, 1).T
        if cuts == 1:
            parts += [np.stack([a, p, c], 1), np.stack([p, b, c], 1)]
        elif cuts == 2:
            parts += [np.stack([p, b, q], 1)]
            near = np.linalg.norm(state[p, :3] - state[c, :3], axis=1) < np.linalg.norm(
                state[a, :3] - state[q, :3], axis=1
            )
            parts += [np.where(near[:, None], np.stack([a, p, c], 1), np.stack([a, p, q], 1))]
            parts += [np.where(near[:, None], np.stack([p, q, c], 1), np.stack([a, q, c], 1))]
        else:
            parts += [np.stack(t, 1) for t in ((a, p, r), (p, b, q), (r, q, c), (p, q, r))]
    frozen = np.concatenate([patch.frozen, np.zeros(len(state) - len(patch.state), bool)])
    return Patch(state, np.ascontiguousarray(np.concatenate(parts)), frozen)


def _flipped(patch: Patch) -> Patch:
    edges, sides = unique_edges(patch.faces)
    count = len(patch.state)
    uses = np.bincount(sides.reshape(-1), minlength=len(edges))
    order = np.argsort(sides.reshape(-1), kind="stable")
    starts = np.cumsum(uses) - uses
    inner = np.flatnonzero(uses == 2)
    first, second = order[starts[inner]], order[starts[inner] + 1]
    a, b = patch.faces[first // 3, first % 3], patch.faces[first // 3, (first % 3 + 1) % 3]
    agree = patch.faces[second // 3, second % 3] == b
    c, d = (patch.faces[side // 3, (side % 3 + 2) % 3] for side in (first, second))
    pairs = np.stack([a, b, c, d], axis=1)[agree]
    chosen = np.zeros(len(pairs), bool)
    degrees = np.bincount(edges.reshape(-1), minlength=count)
    points = np.ascontiguousarray(patch.state[:, :3])
    around = _triangles_around(patch.faces, count)
    locked = patch.frozen | _border(edges, sides, count)
    choose_flips(points, patch.faces, *around, pairs, degrees, locked, chosen)
    faces = patch.faces.copy()
    a, b, c, d = pairs[chosen].T
    faces[(first // 3)[agree][chosen]] = np.stack([c, d, b], axis=1)
    faces[(second // 3)[agree][chosen]] = np.stack([d, c, a], axis=1)
    return Patch(patch.state, faces, patch.frozen)
