"""Depth from normal maps and the carved hull; passes over meshes beside their plain forms; regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from scipy import sparse
from scipy.sparse import csgraph
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.raster.mesh import rasterize_mesh
from maquette.surface.carve import carved_mesh
from maquette.surface.depths import depth_maps
from maquette.surface.folds import folded
from maquette.surface.hull import hull_mesh
from maquette.surface.manifold import same_rows, topology, unique_edges
from maquette.surface.normal_maps import NormalMaps
from maquette.surface.unwrap import regions, unwrap
from normal_map_scenes import maps_of

CAMERAS = Cameras.orbit([45.0 * i for i in range(8)], [-30.0, 45.0] * 4, height=192, width=192)


def pot() -> trimesh.Trimesh:
    """A square tray: sides 0.7, floor at -0.1, walls up to 0.15; its hollow is 0.5 wide."""
    outer, inner, low, floor, top = 0.35, 0.25, -0.2, -0.1, 0.15
    return trimesh.creation.revolve(
        np.array([[0, low], [outer, low], [outer, top], [inner, top], [inner, floor], [0, floor]]), sections=4
    ).apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))


def volume(mesh: object) -> float:
    shape = topology(mesh.vertices.double().numpy(), mesh.faces.numpy())
    assert shape.watertight
    return shape.volume


def test_depth_of_a_hollow_is_found() -> None:
    shape = pot()
    maps = maps_of(shape, CAMERAS)
    hull = hull_mesh(maps)
    front = rasterize_mesh(hull.vertices, hull.faces, CAMERAS).depth
    true = rasterize_mesh(
        torch.tensor(np.asarray(shape.vertices)).float(), torch.tensor(np.asarray(shape.faces)).long(), CAMERAS
    ).depth
    found = depth_maps(maps, front)
    known = (found > 0) & (true > 0)
    wrong = (found - true).abs()[known] > 0.03
    assert known.sum() > 0.5 * (true > 0).sum()
    assert wrong.float().mean() < 0.08
    # The floor of the hollow, which the hull hides by 0.1 and more.
    floor = (maps.normals[..., 1] > 0.9) & (true - front > 0.08) & known
    assert floor.sum() > 300
    assert (found - front)[floor].median() > 0.08


def test_a_hollow_that_the_hull_fills_is_carved() -> None:
    shape = pot()
    hull, carved = hull_mesh(maps_of(shape, CAMERAS)), carved_mesh(maps_of(shape, CAMERAS), resolution=64)
    filled, left = volume(hull) - shape.volume, volume(carved) - shape.volume
    assert filled > shape.volume
    # Places that fewer than two views confirm stay filled.
    assert 0 < left < 0.65 * filled


def test_a_ball_is_not_carved() -> None:
    shape = trimesh.creation.icosphere(4, 0.4)
    carved = carved_mesh(maps_of(shape, CAMERAS), resolution=64)
    radius = carved.vertices.norm(dim=1)
    assert radius.min() > 0.385
    assert volume(carved) > 0.98 * shape.volume


def test_maps_that_fit_no_surface_leave_the_hull() -> None:
    maps = maps_of(pot(), CAMERAS)
    noise = functional.normalize(torch.randn(maps.normals.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    carved = carved_mesh(NormalMaps(CAMERAS, noise, maps.alpha), resolution=72)
    assert volume(carved) == pytest.approx(volume(hull_mesh(maps)), rel=1e-3)
    with pytest.raises(InvalidInputError, match=r"16\.\.256"):
        carved_mesh(maps, resolution=300)


def random_mesh(seed: int) -> tuple[np.ndarray, np.ndarray]:
    shape = trimesh.creation.icosphere(3)
    generator = np.random.default_rng(seed)
    points = np.asarray(shape.vertices) + generator.normal(0, 0.08, (len(shape.vertices), 3))
    return points, np.asarray(shape.faces).astype(np.int64)[generator.permutation(len(shape.faces))]


def test_passes_over_meshes_give_what_numpy_gives() -> None:
    points, faces = random_mesh(1)
    edges, sides = unique_edges(faces)
    directed = np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2)
    wanted, inverse = np.unique(np.sort(directed, axis=1), axis=0, return_inverse=True)
    assert (edges == wanted).all()
    assert (sides == inverse.reshape(-1, 3)).all()
    crossed = np.cross(points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]])
    length = np.linalg.norm(crossed, axis=1)
    normals = trimesh.Trimesh(points, faces, process=False).vertex_normals  # weighted by angles
    agreement = (crossed[:, None] * normals[faces]).sum(axis=(1, 2)) / length
    longest = np.linalg.norm(points[faces] - points[np.roll(faces, -1, axis=1)], axis=2).max(axis=1)
    flat = length <= 0.02 * longest**2
    assert (folded(points, faces) == (agreement <= 0.05) | flat).all()
    sheets = points[:, 0] > 0
    on_solid = ~sheets[faces].any(axis=1)
    assert (folded(points, faces, sheets) == (agreement <= np.where(on_solid, 0.9, 0.05)) | flat).all()
    assert (on_solid & (agreement > 0.05) & (agreement < 0.9)).any()
    assert 0 < folded(points, faces).sum() < len(faces)
    rows = np.random.default_rng(2).integers(0, 4, (200, 3)).astype(np.float64)
    assert (same_rows(rows) == np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)).all()


def test_regions_are_connected_and_alike_in_size() -> None:
    parts = [trimesh.creation.icosphere(4), trimesh.creation.box().subdivide().apply_translation([3, 0, 0])]
    both = trimesh.util.concatenate(parts)
    points, faces = np.asarray(both.vertices), np.asarray(both.faces).astype(np.int64)
    region = regions(points, faces, 12)
    sizes = np.bincount(region)
    assert 12 <= len(sizes) <= 14
    assert sizes.max() < 3 * len(faces) / 12
    pairs = both.face_adjacency[region[both.face_adjacency[:, 0]] == region[both.face_adjacency[:, 1]]]
    graph = sparse.coo_matrix((np.ones(len(pairs)), tuple(pairs.T)), shape=(len(faces), len(faces)))
    assert csgraph.connected_components(graph, directed=False)[0] == len(sizes)
    cut = unwrap(points, faces, 512)
    assert (cut.origins[cut.faces] == faces).all()
    assert cut.uvs.min() >= 0
    assert cut.uvs.max() <= 1
