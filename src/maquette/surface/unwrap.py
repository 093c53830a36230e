"""Texture coordinates by xatlas, region by region: its time grows faster than the number of triangles, and regions take
threads of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maquette.surface.folds import cross_products
from maquette.surface.manifold import Doubles, Faces
from maquette.surface.triangles import Floats

_PADDING = 2
"""Texels between charts."""
_REGION_FACES = 600
_CREASE = 5.0
"""How many triangles a right-angled crease counts for."""


@dataclass(frozen=True)
class Unwrapped:
    """A mesh cut along seams.

    Attributes:
        origins: the vertex that every vertex was before, `[K]`.
        faces: indices into the new vertices, `[M, 3]`, in the old order.
        uvs: `[K, 2]`, (0, 0) is the top left corner of the texture.
    """

    origins: NDArray[np.int64]
    faces: Faces
    uvs: Floats


def unwrap(vertices: Doubles, faces: Faces, texture_size: int) -> Unwrapped:
    """Cuts a surface into charts and lays them out in a square texture.

    Args:
        vertices: `[N, 3]`; faces: `[M, 3]`.
        texture_size: in texels; charts keep a distance of two texels.
    """
    import xatlas

    atlas = xatlas.Atlas()
    # Charts are as large as the surface: coordinates of about 1 keep xatlas' thresholds meaningful.
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    scaled = ((vertices - low) / max(float((high - low).max()), 1e-30)).astype(np.float32)
    region = regions(scaled, faces, -(-len(faces) // _REGION_FACES))
    members = [np.flatnonzero(region == number) for number in range(int(region.max()) + 1)]
    used = []
    for rows in members:
        corners, index = np.unique(faces[rows], return_inverse=True)
        atlas.add_mesh(scaled[corners], index.reshape(-1, 3).astype(np.uint32))
        used.append(corners)
    pack = xatlas.PackOptions()
    pack.resolution = texture_size
    pack.padding = _PADDING
    atlas.generate(xatlas.ChartOptions(), pack)
    parts = [atlas[number] for number in range(len(members))]
    first = np.cumsum([0] + [len(part[0]) for part in parts])
    cut = np.empty((len(faces), 3), np.int64)
    for number, rows in enumerate(members):
        cut[rows] = parts[number][1].astype(np.int64).reshape(-1, 3) + first[number]
    origins = np.concatenate([corners[part[0]] for corners, part in zip(used, parts, strict=True)])
    return Unwrapped(origins.astype(np.int64), cut, np.concatenate([part[2] for part in parts]).astype(np.float32))


def regions(points: Floats, faces: Faces, count: int) -> NDArray[np.int64]:
    """Splits a surface into about so many connected regions of a like number of triangles, `[M]`, from 0 on.

    Regions grow from triangles that lie as far as can be from one another, along the surface; a crease lengthens the
    way, so that borders fall on creases. Parts that are not connected are never in one region.

    Args:
        points: `[N, 3]`; faces: `[M, 3]`; count: >= 1.
    """
    from scipy import sparse
    from scipy.sparse import csgraph

    sides = np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2)
    key = sides.min(axis=1) * np.int64(len(points)) + sides.max(axis=1)
    order = np.argsort(key, kind="stable")
    paired = np.flatnonzero(key[order[1:]] == key[order[:-1]])
    first, second = order[paired] // 3, order[paired + 1] // 3
    crossed = cross_products(points.astype(np.float64), faces)
    normals = crossed / np.maximum(np.linalg.norm(crossed, axis=1, keepdims=True), 1e-300)
    ways = 1 + _CREASE * (1 - (normals[first] * normals[second]).sum(axis=1))
    graph = sparse.coo_matrix((ways, (first, second)), shape=(len(faces), len(faces))).tocsr()
    seeds = np.unique(csgraph.connected_components(graph, directed=False)[1], return_index=True)[1].tolist()
    distance = csgraph.dijkstra(graph, directed=False, indices=seeds, min_only=True)
    while len(seeds) < count:
        seeds.append(int(distance.argmax()))
        reach = csgraph.dijkstra(graph, directed=False, indices=seeds[-1], limit=distance.max())
        distance = np.minimum(distance, reach)
    nearest = csgraph.dijkstra(graph, directed=False, indices=seeds, min_only=True, return_predecessors=True)[2]
    return np.unique(nearest, return_inverse=True)[1].astype(np.int64)
