"""Triangles that are folded over or next to nothing: found, drawn flat, kept from appearing, and cut out.

Where a piece of surface has shrunk to a line or to nothing (a bridge or a speck that the pictures do not show), no
smoothing opens it again and no collapse may remove it, as the surface would touch itself. `cut_folds` takes such pieces
out and closes the holes, so the number of parts and handles can change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maquette.raster.cpu_jit import kernel_threads
from maquette.surface import mesh_kernels
from maquette.surface.manifold import Doubles, Faces, same_rows, topology, touching, unique_edges
from maquette.surface.remesh import Patch, remeshed
from maquette.surface.thickness import ThinGuard

_THIN = 0.02
"""Least height of a triangle, relative to its longest side."""
_AGREE, _AGREE_ON_SOLIDS = 0.05, 0.9
"""Least sum of the cosines between a triangle's normal and those of its corners; see `folded`."""
_PASSES, _ROUNDS = 12, 12
_LEAST_TRIANGLES = 16
_LEAST_VOLUME = 1e-5
"""Parts below this share of the whole volume are cut out with the folds."""
_GAP = 0.05
"""Copies of a vertex move this share of the way to their own neighbours."""


def cross_products(points: Doubles, faces: Faces) -> Doubles:
    """Cross products of the triangles' first two sides, `[M, 3]`: along the normals, twice the areas long."""
    crossed = np.empty((len(faces), 3))
    mesh_kernels.cross(np.ascontiguousarray(points), faces, crossed)
    return crossed


def neighbor_means(points: Doubles, edges: Faces) -> Doubles:
    """Mean of the neighbours of every vertex `[N, 3]`; 0 where there is none."""
    sums, count = np.zeros((len(points), 3)), np.zeros(len(points))
    mesh_kernels.edge_sums(np.ascontiguousarray(points), edges, sums, count)
    return sums / np.maximum(count, 1)[:, None]


def folded(points: Doubles, faces: Faces, sheets: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Triangles that face away from the mean of their corners' normals, or whose sides are next to parallel, `[M]`.

    Normals are weighted by the triangles' angles (Baerentzen and Aanaes 2005), and so do not depend on how the surface
    is cut. Weighted by area, those at the rim of a thin sheet turn to the side that is cut into larger triangles, and
    the other side seems to face away.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`.
        sheets: vertices where the surface may be a thin sheet, `[N]`; when given, triangles elsewhere are wrong before
            they face away: on a solid, normals that differ so much come from a fold.
    """
    points = np.ascontiguousarray(points)
    crossed, sums, wrong = cross_products(points, faces), np.zeros((len(points), 3)), np.empty(len(faces), np.bool_)
    agree = np.full(len(points), _AGREE)
    if sheets is not None:
        agree[~sheets] = _AGREE_ON_SOLIDS
    weights = np.empty((len(faces), 3))
    with kernel_threads():
        mesh_kernels.angle_weights(points, faces, crossed, weights)
        mesh_kernels.weighted_corner_sums(faces, crossed, weights, sums)
        mesh_kernels.mark_folded(points, faces, crossed, sums, agree, _THIN, wrong)
    return wrong


def without_turning(points: Doubles, shift: Doubles, faces: Faces) -> Doubles:
    """Shifted points; corners of triangles that would turn by more than about 60 degrees or collapse stay behind."""
    crossed = cross_products(points, faces)
    moving = np.ones(len(points))
    for attempt in range(12):
        shifted: Doubles = points + moving[:, None] * shift
        if not mesh_kernels.hold_back(shifted, faces, crossed, 0.5, 0.1, 0.5 if attempt < 4 else 0.0, moving):
            return shifted
    return points


def without_folding(points: Doubles, shift: Doubles, faces: Faces, sheets: NDArray[np.bool_] | None = None) -> Doubles:
    """Shifted points, none of which turns a triangle far over; where a new fold would appear, all around stays.

    Args:
        points: `[N, 3]`; shift: `[N, 3]`; faces: `[M, 3]`; sheets: see `folded`.
    """
    before = folded(points, faces, sheets)
    shifted = without_turning(points, shift, faces)
    held = np.zeros(len(points), bool)
    for _ in range(12):
        wrong = folded(shifted, faces, sheets) & ~before
        if not wrong.any():
            return shifted
        # The verdict on a triangle depends on the normals of its corners, and so on the triangles around them.
        near = np.zeros(len(points), bool)
        near[faces[wrong].reshape(-1)] = True
        near[faces[touching(faces, near)].reshape(-1)] = True
        held |= near
        shifted = np.where(held[:, None], points, shifted)
    return points


def unfolded(patch: Patch, passes: int, guard: ThinGuard | None = None) -> Patch:
    """Draws corners of triangles that face away from the surface around them, or are next to nothing, to their middle.

    Args:
        patch: with the position in the first three columns of its state.
        passes: at most so many; it ends when nothing is folded.
        guard: knows thin sheets.
    """
    for _ in range(passes):
        points = patch.points
        wrong, around = folded(points, patch.faces, _sheets(patch, guard)), np.empty(len(points), np.bool_)
        if not mesh_kernels.around_wrong(patch.faces, wrong, patch.frozen, around):
            break
        state = patch.state.copy()
        state[around, :3] = (points[around] + neighbor_means(points, patch.edges[0])[around]) / 2
        patch = patch.with_state(state)
    return patch


def _sheets(patch: Patch, guard: ThinGuard | None) -> NDArray[np.bool_] | None:
    return None if guard is None else guard.sheets(patch)


def mended(patch: Patch, guard: ThinGuard | None = None) -> Patch:
    """Closed, and without a folded triangle wherever vertices are free: smoothed first, cut out where that fails."""
    for attempt in range(_ROUNDS):
        patch = unfolded(patch, _PASSES, guard)
        points = patch.state[:, :3]
        # Files keep positions as float32: vertices must not fall together there.
        single = points.astype(np.float32).astype(np.float64)
        wrong = folded(single, patch.faces, _sheets(patch, guard))
        wrong &= ~touching(patch.faces, patch.frozen)
        if not wrong.any() and topology(single, patch.faces).watertight:
            break
        patch = cut_folds(patch, attempt // 2, guard) if attempt % 2 else remeshed(patch)
    return patch


def cut_folds(patch: Patch, rings: int, guard: ThinGuard | None = None) -> Patch:
    """Takes folded triangles out, with rings of triangles around them, and closes the holes; specks vanish.

    Args:
        patch: closed. What touches a frozen vertex stays.
        rings: of triangles around every folded one that go too, >= 0.
        guard: knows thin sheets.
    """
    points = patch.state[:, :3]
    wrong = folded(points, patch.faces, _sheets(patch, guard))
    gone = np.logical_or(wrong, _at_shared_places(points, patch.faces))
    for _ in range(rings):
        touched = np.zeros(len(points), bool)
        touched[patch.faces[gone].reshape(-1)] = True
        gone = np.logical_or(gone, touching(patch.faces, touched))
    locked: NDArray[np.bool_] = patch.frozen[patch.faces].sum(axis=1) > 0
    specks = _specks(points, patch.faces, locked)
    gone = (gone | specks) & ~locked
    if not gone.any() or gone.all():
        return patch
    return _closed(_without_small_parts(Patch(patch.state, patch.faces[~gone], patch.frozen)))


def _at_shared_places(points: Doubles, faces: Faces) -> NDArray[np.bool_]:
    """Triangles with a corner where, in float32, another vertex lies too."""
    index = same_rows(points.astype(np.float32))
    several: NDArray[np.int64] = np.bincount(index)[index]
    shared: NDArray[np.bool_] = several[faces].max(axis=1) > 1
    return shared


def _parts(faces: Faces, count: int) -> tuple[int, NDArray[np.int64]]:
    """Number of connected parts, and the part of every triangle."""
    from scipy import sparse
    from scipy.sparse import csgraph

    first, second = faces[:, [0, 1]].reshape(-1), faces[:, [1, 2]].reshape(-1)
    graph = sparse.coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    number, labels = csgraph.connected_components(graph, directed=False)
    return int(number), labels[faces[:, 0]].astype(np.int64)


def _specks(points: Doubles, faces: Faces, locked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Triangles of parts without volume to speak of, none of whose triangles is locked."""
    number, part = _parts(faces, len(points))
    sixfold = (points[faces[:, 0]] * np.cross(points[faces[:, 1]], points[faces[:, 2]])).sum(axis=1)
    volume = np.bincount(part, sixfold, number)
    volume[part[locked]] = np.inf
    small: NDArray[np.bool_] = volume[part] < _LEAST_VOLUME * volume[np.isfinite(volume)].clip(min=0).sum()
    return small


def _without_small_parts(patch: Patch) -> Patch:
    number, part = _parts(patch.faces, len(patch.state))
    large = np.bincount(part, minlength=number) >= _LEAST_TRIANGLES
    frozen = np.zeros(number, bool)
    frozen[part[touching(patch.faces, patch.frozen)]] = True
    kept = (large | frozen)[part]
    return Patch(patch.state, patch.faces[kept], patch.frozen) if kept.any() else patch


def _closed(patch: Patch) -> Patch:
    """Every vertex one fan, and every hole closed by a fan around its middle."""
    from scipy import sparse
    from scipy.sparse import csgraph

    faces = patch.faces
    directed = np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2)
    count = np.int64(len(patch.state))
    keys, opposite = directed[:, 0] * count + directed[:, 1], directed[:, 1] * count + directed[:, 0]
    order = np.argsort(keys)
    position = np.searchsorted(keys, opposite, sorter=order).clip(max=len(keys) - 1)
    partner = order[position]
    paired = keys[partner] == opposite
    # Corners of two triangles belong to one copy of their vertex where the triangles share an edge at it.
    side, other = np.flatnonzero(paired), partner[paired]
    ends = other // 3 * 3 + (other % 3 + 1) % 3
    graph = sparse.coo_matrix((np.ones(len(side), np.int8), (side, ends)), shape=(len(keys), len(keys)))
    number, label = csgraph.connected_components(graph, directed=False)
    source = np.empty(number, np.int64)
    source[label] = faces.reshape(-1)
    state, frozen = patch.state[source].copy(), patch.frozen[source]
    faces = label.reshape(-1, 3).astype(np.int64)
    border = np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2)[~paired]
    copies = (np.bincount(source, minlength=len(patch.state))[source] > 1) & ~frozen
    edges, _ = unique_edges(faces)
    state[copies, :3] += _GAP * (neighbor_means(state[:, :3], edges) - state[:, :3])[copies]
    graph = sparse.coo_matrix((np.ones(len(border), np.int8), (border[:, 0], border[:, 1])), shape=(number, number))
    hole = csgraph.connected_components(graph, directed=False)[1][border[:, 0]]
    holes, hole = np.unique(hole, return_inverse=True)
    size = np.bincount(hole, minlength=len(holes))
    middles = (
        np.stack([np.bincount(hole, state[border[:, 0], k], len(holes)) for k in range(state.shape[1])], axis=1)
        / np.maximum(size, 1)[:, None]
    )
    fans = np.stack([border[:, 1], border[:, 0], number + hole], axis=1)
    return Patch(
        np.concatenate([state, middles]),
        np.concatenate([faces, fans]),
        np.concatenate([frozen, np.zeros(len(holes), bool)]),
    )
