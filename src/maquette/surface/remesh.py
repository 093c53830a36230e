"""Continuous remeshing: edges kept near a wanted length by splits, collapses and flips, while something optimises.

The rules follow Palfinger, "Continuous remeshing for inverse rendering" (2022): per vertex a wanted edge length, with a
tolerance; whatever belongs to a vertex (position, optimizer state) is averaged where a vertex is made. Stricter than
there, no pass may make a triangle turn over or a surface touch itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maquette.surface import mesh_kernels, remesh_kernels
from maquette.surface.manifold import Doubles, Faces, unique_edges

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
    _known: list[tuple[Faces, Faces]] = field(default_factory=list, repr=False, compare=False)

    def with_state(self, state: Doubles) -> Patch:
        """The same triangles, with other values at the vertices."""
        return Patch(state, self.faces, self.frozen, self._known)

    @property
    def points(self) -> Doubles:
        """Positions `[N, 3]`, contiguous."""
        return np.ascontiguousarray(self.state[:, :3])

    @property
    def edges(self) -> tuple[Faces, Faces]:
        """See `unique_edges`: found once for all patches of the same triangles."""
        if not self._known:
            self._known.append(unique_edges(self.faces))
        return self._known[0]


def remeshed(patch: Patch) -> Patch:
    """One pass: collapses, splits and flips."""
    return _flipped(_split(_collapsed(patch)))


def _wanted(patch: Patch) -> Doubles:
    return np.ascontiguousarray(patch.state[:, -1])


def _collapsed(patch: Patch) -> Patch:
    edges, sides = patch.edges
    points, relative = patch.points, np.empty(len(edges))
    remesh_kernels.edge_lengths(points, _wanted(patch), patch.faces, edges, sides, 1 - TOLERANCE, relative)
    todo = np.flatnonzero(relative < 1)
    if not len(todo):
        return patch
    order = todo[np.argsort(relative[todo], kind="stable")]
    count = len(patch.state)
    chosen, locked = np.zeros(len(edges), bool), patch.frozen.copy()
    remesh_kernels.lock_borders(edges, sides, locked)
    starts, around = np.zeros(count + 2, np.int64), np.empty(patch.faces.size, np.int64)
    mesh_kernels.triangles_around(patch.faces, starts, around)
    remesh_kernels.choose_collapses(points, patch.faces, starts[:-1], around, edges, order, locked, chosen)
    kept, gone = edges[chosen].T
    state = patch.state.copy()
    state[kept] = (state[kept] + state[gone]) / 2
    target, number, faces = np.arange(count), np.empty(count, np.int64), patch.faces.copy()
    target[gone] = kept
    triangles = remesh_kernels.renumber(faces, target, number)
    used = np.flatnonzero(number >= 0)
    return Patch(state[used], faces[:triangles], patch.frozen[used])


def _split(patch: Patch) -> Patch:
    count, faces = len(patch.state), patch.faces
    keys, where = np.empty(faces.size, np.int64), np.empty(faces.size, np.int64)
    long = remesh_kernels.long_sides(patch.points, _wanted(patch), faces, patch.frozen, 1 + TOLERANCE, keys, where)
    if not long:
        return patch
    edges, middle = np.unique(keys[:long], return_inverse=True)
    state = np.concatenate([patch.state, (patch.state[edges // count] + patch.state[edges % count]) / 2])
    cut = np.full(faces.shape, -1, np.int64)
    cut.reshape(-1)[where[:long]] = count + middle
    numbers = np.bincount((cut >= 0).sum(axis=1), minlength=4)
    rows = numbers * (1, 2, 3, 4)
    begins = np.stack([np.cumsum(rows) - rows, numbers], axis=1)
    result = np.empty((int(rows.sum()), 3), np.int64)
    remesh_kernels.cut_triangles(np.ascontiguousarray(state[:, :3]), faces, cut, begins, result)
    return Patch(state, result, np.concatenate([patch.frozen, np.zeros(len(edges), bool)]))


def _flipped(patch: Patch) -> Patch:
    edges, sides = patch.edges
    faces, locked = patch.faces.copy(), patch.frozen.copy()
    remesh_kernels.lock_borders(edges, sides, locked)
    remesh_kernels.flip(patch.points, patch.faces, edges, sides, locked, faces)
    return Patch(patch.state, faces, patch.frozen)
