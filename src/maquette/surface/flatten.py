"""The last stage of refinement: every triangle that the maps see takes the normal that they show there.

The gradient of a picture blurs over an edge's length; here each triangle gets one wanted normal, the mean of the maps
over the pixels that show it, and vertices move until the triangles have them: the vertex update of Sun et al., "Fast
and effective feature-preserving mesh denoising" (2007). Flat places become flat and creases sharp, in linear time.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from maquette.raster.mesh import rasterize_mesh
from maquette.surface.folds import cross_products, without_folding
from maquette.surface.manifold import Doubles, Faces
from maquette.surface.normal_maps import NormalMaps
from maquette.surface.remesh import Patch

_COVERED = 0.99
_MOST_TURN = 0.3
"""Least cosine of a triangle's normal with the wanted one: beyond, the pixels show something else."""
_PASSES = 8


def flattened(patch: Patch, maps: NormalMaps, freedom: NDArray[np.float64], rounds: int) -> Patch:
    """Moves vertices until the triangles have the normals that the maps show.

    Args:
        patch: with the position in the first three columns of its state.
        maps: wanted normals.
        freedom: share of the way that every vertex may move, 0..1, `[N]`.
        rounds: in each, what the maps see is looked up anew, >= 0.
    """
    points, faces = patch.state[:, :3].copy(), patch.faces
    for _ in range(rounds):
        wanted = wanted_normals(points, faces, maps)
        for _ in range(_PASSES):
            points = without_folding(points, freedom[:, None] * _towards(points, faces, wanted), faces)
    state = patch.state.copy()
    state[:, :3] = points
    return Patch(state, faces, patch.frozen)


def wanted_normals(points: Doubles, faces: Faces, maps: NormalMaps) -> Doubles:
    """Unit normals that the maps show of every triangle, `[M, 3]`; its own where they show none or quite another."""
    device = maps.cameras.device
    fragments = rasterize_mesh(
        torch.from_numpy(points).to(device), torch.from_numpy(faces).to(device), maps.cameras
    )
    chosen = (fragments.triangle_id >= 0) & (maps.alpha > _COVERED)
    ids = fragments.triangle_id[chosen].cpu().numpy()
    shown = maps.normals[chosen].double().cpu().numpy()
    sums = np.stack([np.bincount(ids, shown[:, i], len(faces)) for i in range(3)], axis=1)
    own = _unit(cross_products(points, faces))
    wanted = _unit(sums)
    used = (wanted * own).sum(axis=1) > _MOST_TURN
    return np.where(used[:, None], wanted, own)


def _towards(points: Doubles, faces: Faces, wanted: Doubles) -> Doubles:
    """Shift of every vertex: mean, by area, of its ways to the wanted planes through the triangles' middles."""
    area = np.linalg.norm(cross_products(points, faces), axis=1)
    middles = points[faces].mean(axis=1)
    sums, total = np.zeros_like(points), np.zeros(len(points))
    for corner in faces.T:
        way = (area * ((middles - points[corner]) * wanted).sum(axis=1))[:, None] * wanted
        for axis in range(3):
            sums[:, axis] += np.bincount(corner, way[:, axis], len(points))
        total += np.bincount(corner, area, len(points))
    return sums / np.maximum(total, 1e-300)[:, None]


def _unit(vectors: Doubles) -> Doubles:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
