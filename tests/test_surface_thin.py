"""Thin places: opposite sides found and kept apart, no false folds at rims, slabs and rods that refinement keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from maquette.cameras import Cameras
from maquette.mesh import Mesh
from maquette.surface.folds import folded
from maquette.surface.fusion import smooth_normals
from maquette.surface.manifold import topology
from maquette.surface.refine import RefineOptions, refine
from maquette.surface.thickness import thin_places
from normal_map_scenes import maps_of


def box(extents: tuple[float, float, float], place: tuple[float, float, float], cuts: int) -> trimesh.Trimesh:
    shape = trimesh.creation.box(extents)
    for _ in range(cuts):
        shape = shape.subdivide()
    return shape.apply_translation(place)


def crumpled_slab(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, triangles and normals of a wavy slab about 0.1 thick."""
    shape = box((1, 0.1, 0.7), (0, 0, 0), 4)
    points = np.asarray(shape.vertices) + np.random.default_rng(seed).normal(0, 0.004, (len(shape.vertices), 3))
    points[:, 1] += 0.1 * np.sin(5 * points[:, 0])
    faces = np.asarray(shape.faces).astype(np.int64)
    return points, faces, smooth_normals(points, faces).astype(np.float64)


@pytest.mark.parametrize("seed", range(2))
def test_opposite_triangles_are_those_that_rays_meet(seed: int) -> None:
    points, faces, normals = crumpled_slab(seed)
    least = 0.02
    everywhere = np.ones(len(points), bool)
    found = thin_places(points, faces, normals, everywhere, least)
    corners = points[faces]
    crossed = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    unit = crossed / np.linalg.norm(crossed, axis=1, keepdims=True)
    numbers = 0
    for vertex in range(0, len(points), 7):
        way = -normals[vertex]
        facing = np.flatnonzero((unit @ way >= 0.3) & (faces != vertex).all(axis=1))
        # The point at a distance along the way, as a sum of corners: three unknown weights that make one.
        systems = np.concatenate([corners[facing].transpose(0, 2, 1), np.ones((len(facing), 1, 3))], axis=1)
        systems = np.concatenate([systems, np.append(-way, 0)[None, :, None].repeat(len(facing), 0)], axis=2)
        solved = np.linalg.solve(systems, np.append(points[vertex], 1)[None, :, None].repeat(len(facing), 0))[..., 0]
        met = (solved[:, :3] >= 0).all(axis=1) & (solved[:, 3] > 0) & (solved[:, 3] < 6 * least)
        if not met.any():
            assert found.hit[vertex] < 0
            continue
        nearest = np.flatnonzero(met)[solved[met, 3].argmin()]
        assert found.hit[vertex] == facing[nearest]
        np.testing.assert_allclose(found.weights[vertex], solved[nearest, :3], atol=1e-9)
        numbers += 1
    assert numbers > 50


def test_moves_leave_the_least_thickness_and_others_are_not_changed() -> None:
    points, faces, normals = crumpled_slab(3)
    least = 0.05
    everywhere = np.ones(len(points), bool)
    found = thin_places(points, faces, normals, everywhere, least)
    inner = (found.hit >= 0) & (np.abs(points[:, 0]) < 0.4) & (np.abs(points[:, 2]) < 0.25)
    assert inner.sum() > 100

    def thickness(places: np.ndarray) -> np.ndarray:
        opposite = (places[faces[found.hit]] * found.weights[..., None]).sum(axis=1)
        return ((places - opposite) * normals).sum(axis=1)[inner]

    # Both sides pass through each other.
    shift = -0.08 * normals
    assert thickness(points + shift).max() < 0
    kept = points + found.kept(points, shift)
    assert thickness(kept).min() > 0.5 * least and np.median(thickness(kept)) > 0.9 * least
    thick_enough = thin_places(points, faces, normals, everywhere, 1e-4)
    np.testing.assert_array_equal(thick_enough.kept(points, -shift), -shift)
    np.testing.assert_array_equal(found.kept(points, shift, np.zeros((len(points), 1))), shift)


def test_the_rim_of_a_sheet_is_no_fold_however_it_is_cut() -> None:
    # A lens with a sharp rim: one triangle of the upper side, large ones and small ones alike, has two corners there.
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    rim = np.stack([np.cos(angles), np.zeros(8), np.sin(angles)], axis=1)
    points = np.concatenate([rim, [[0.75, 0.02, 0], [0, -0.02, 0]]])
    around = [(i, (i + 1) % 8) for i in range(8)]
    faces = np.array([(b, a, 8) for a, b in around] + [(a, b, 9) for a, b in around])
    assert topology(points, faces).volume > 0
    assert not folded(points, faces).any()
    crossed = np.cross(points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]])
    by_area = smooth_normals(points, faces)  # with these, small triangles of the upper side seem to face away
    assert (crossed[:, None] * by_area[faces]).sum(axis=(1, 2)).min() < 0
    slab = box((1, 0.1, 0.7), (0, 0, 0), 4)
    pulled, faces = np.asarray(slab.vertices).copy(), np.asarray(slab.faces)
    assert not folded(pulled, faces).any()
    pulled[np.linalg.norm(pulled - [0.1, 0.05, 0.1], axis=1).argmin(), 0] += 0.15
    assert folded(pulled, faces).any()


def scene(slab: float, rod: float, cuts: int) -> tuple[trimesh.Trimesh, list[trimesh.Trimesh]]:
    """A block with a slab and a rod of these thicknesses before it, and all three alone."""
    parts = [
        box((0.8, 0.5, 0.2), (0, 0.1, -0.35), cuts),
        box((0.8, slab, 0.35), (0, -0.3, 0.2), cuts),
        box((0.8, rod, rod), (0, 0.2, 0.3), cuts),
    ]
    return trimesh.util.concatenate(parts), parts


def test_thin_parts_stay_when_pictures_show_them() -> None:
    start, _ = scene(0.05, 0.07, 4)
    truth, parts = scene(0.004, 0.05, 0)
    cameras = Cameras.orbit([45.0 * i for i in range(8)], [-30.0, 45.0] * 4, height=128, width=128)
    first = Mesh(torch.tensor(np.asarray(start.vertices)).float(), torch.tensor(np.asarray(start.faces)).long())
    made = refine(first, maps_of(truth, cameras), RefineOptions(steps=40, edge_lengths=(0.05, 0.15)))
    points, faces = made.vertices.double().numpy(), made.faces.numpy()
    assert topology(points, faces).watertight and not folded(points, faces).any()
    solids = trimesh.Trimesh(points, faces, process=False).split(only_watertight=False)
    assert len(solids) == 3
    for part in parts:
        solid = min(solids, key=lambda s: float(np.linalg.norm(s.bounds - part.bounds)))
        np.testing.assert_allclose(solid.bounds, part.bounds, atol=0.02)
        assert solid.area > 0.8 * part.area
        assert solid.volume > 0.6 * part.volume
