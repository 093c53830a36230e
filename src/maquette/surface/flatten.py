"""The last stage of refinement: every triangle that the maps see takes the normal that they show there.

The gradient of a picture blurs over an edge's length; here each triangle gets one wanted normal, the one that the maps
show in its middle, and vertices move until the triangles have them: the vertex update of Sun et al., "Fast
and effective feature-preserving mesh denoising" (2007). Flat places become flat and creases sharp, in linear time.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from maquette.raster.mesh import rasterize_mesh
from maquette.surface import mesh_kernels
from maquette.surface.folds import cross_products, mended, without_folding
from maquette.surface.manifold import Doubles, Faces
from maquette.surface.normal_maps import NormalMaps
from maquette.surface.remesh import Patch, remeshed
from maquette.surface.thickness import ThinGuard

_COVERED = 0.99
_MOST_TURN = 0.3
"""Least cosine of a triangle's normal with the wanted one: beyond, the pixels show something else."""
_PASSES = 8
_RIM, _KEEN, _SHARPER = 1e-3, 20.0, 2
_SPREAD, _LEAST_PIXELS = 0.02, 4
"""A triangle of so many pixels shows several normals if their mean is shorter than 1 by more than this."""
_SHORTER = 0.6


def flattened(
    patch: Patch, maps: NormalMaps, freedom: int, rounds: int, shortest: float, guard: ThinGuard | None = None
) -> Patch:
    """Moves vertices until the triangles have the normals that the maps show, and refines the mesh at creases.

    Args:
        patch: with the position in the first three columns of its state and the wanted edge length in the last one.
        maps: wanted normals.
        freedom: column of the state with the share of the way that a vertex may move, 0..1.
        rounds: in each, what the maps see is looked up anew, >= 0; all but the last two refine at creases.
        shortest: no edge is wanted shorter there, in world units.
        guard: keeps thin places.
    """
    for number in range(rounds):
        faces, points = patch.faces, patch.state[:, :3].copy()
        wanted, mixed = wanted_normals(points, faces, maps)
        free = patch.state[:, freedom, None]
        places, sheets = (None, None) if guard is None else (guard.places(patch), guard.sheets(patch))
        for _ in range(_PASSES):
            shift = free * _towards(points, faces, wanted)
            if places is not None:
                shift = places.kept(points, shift, free)
            points = without_folding(points, shift, faces, sheets)
        state = patch.state.copy()
        state[:, :3] = points
        patch = patch.with_state(state)
        if number < rounds - 2 and mixed.any():
            corners = np.unique(faces[mixed])
            state[corners, -1] = np.minimum(state[corners, -1], np.maximum(_SHORTER * state[corners, -1], shortest))
            patch = mended(remeshed(patch), guard)
    return patch


def wanted_normals(points: Doubles, faces: Faces, maps: NormalMaps) -> tuple[Doubles, NDArray[np.bool_]]:
    """Unit normals that the maps show in the middle of every triangle, `[M, 3]`, and which triangles show several.

    A triangle has its own normal where the maps show none or quite another.
    """
    device = maps.cameras.device
    fragments = rasterize_mesh(torch.from_numpy(points).to(device), torch.from_numpy(faces).to(device), maps.cameras)
    chosen = (fragments.triangle_id >= 0) & (maps.alpha > _COVERED)
    ids, shown = fragments.triangle_id[chosen].cpu().numpy(), maps.normals[chosen].cpu().double().numpy()
    weights = fragments.barycentrics[chosen].cpu().double().numpy()
    middle = (27 * weights[:, 0] * weights[:, 1] * weights[:, 2]) ** 2 + _RIM
    own = _unit(cross_products(points, faces))
    similar = _cosines(ids, shown, own) > _MOST_TURN
    ids, shown, middle = ids[similar], shown[similar], middle[similar]

    def mean(weights: Doubles) -> Doubles:
        sums = np.zeros((len(faces), 3))
        mesh_kernels.add_at(ids, weights, shown, sums)
        return sums

    # Where two normals meet in a triangle, that of its middle wins: a mean would be a bevel.
    normals = _unit(mean(middle))
    for _ in range(_SHARPER):
        normals = _unit(mean(middle * np.exp(_KEEN * (_cosines(ids, shown, normals) - 1))))
    pixels = np.bincount(ids, minlength=len(faces))
    together = np.linalg.norm(mean(np.ones(len(ids))), axis=1)
    mixed: NDArray[np.bool_] = (pixels >= _LEAST_PIXELS) & (together < (1 - _SPREAD) * pixels)
    return np.where((pixels > 0)[:, None], normals, own), mixed


def _cosines(ids: NDArray[np.int32], vectors: Doubles, normals: Doubles) -> Doubles:
    """Products of vectors `[P, 3]` with the normals of their triangles, `[P]`."""
    cosines = np.empty(len(ids))
    mesh_kernels.dot_at(ids, vectors, normals, cosines)
    return cosines


def _towards(points: Doubles, faces: Faces, wanted: Doubles) -> Doubles:
    """Shift of every vertex: mean, by area, of its ways to the wanted planes through the triangles' middles."""
    area = np.linalg.norm(cross_products(points, faces), axis=1)
    sums, total = np.zeros_like(points), np.zeros(len(points))
    mesh_kernels.shift_to_planes(points, faces, area, wanted, sums, total)
    return sums / np.maximum(total, 1e-300)[:, None]


def _unit(vectors: Doubles) -> Doubles:
    unit: Doubles = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    return unit
