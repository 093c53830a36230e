"""Loops of carving, remeshing and refinement beside plain forms of what they compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.raster.mesh import pinhole_parameters, rasterize_mesh
from maquette.raster.shading import antialias
from maquette.surface import carve_kernels, mesh_kernels, refine, refine_kernels
from maquette.surface.folds import cross_products, without_turning
from maquette.surface.manifold import topology
from maquette.surface.remesh import Patch, remesh_kernels
from maquette.surface.triangles import vertex_normals
from normal_map_scenes import maps_of

CAMERAS = Cameras.orbit([45.0 * i for i in range(8)], [-30.0, 45.0] * 4, height=48, width=48)


def random_ball(seed: int, noise: float = 0.03, subdivisions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A rough ball whose triangles come in any order."""
    shape, generator = trimesh.creation.icosphere(subdivisions, 0.5), np.random.default_rng(seed)
    points = np.asarray(shape.vertices) + generator.normal(0, noise, (len(shape.vertices), 3))
    return points, np.asarray(shape.faces).astype(np.int64)[generator.permutation(len(shape.faces))]


def patch_of(points: np.ndarray, faces: np.ndarray, lengths: np.ndarray) -> Patch:
    return Patch(np.concatenate([points, lengths[:, None]], axis=1), faces, np.zeros(len(points), bool))


def test_depths_are_confirmed_as_point_by_point() -> None:
    generator = np.random.default_rng(0)
    maps = maps_of(trimesh.creation.icosphere(3, 0.4), CAMERAS)
    view, count, guesses = 2, 40, 5
    matrices, positions = CAMERAS.world_to_camera.double().numpy(), CAMERAS.positions.double().numpy()
    pinhole, possible = pinhole_parameters(CAMERAS).double().numpy(), (maps.alpha > 0).numpy()
    shown = maps.normals.double().numpy()
    normals = generator.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    rays = np.concatenate([generator.uniform(-0.3, 0.3, (count, 2)), np.ones((count, 1))], axis=1)
    depths = generator.uniform(1.0, 2.0, (guesses, count))
    # Some points lie on the surface, with its normal.
    rows, columns = np.nonzero(possible[view])
    some = generator.permutation(len(rows))[: count // 2]
    at = np.stack([columns[some] + 0.5, rows[some] + 0.5], axis=1)
    rays[: len(some), :2] = (at - pinhole[view, 2:]) / pinhole[view, :2]
    normals[: len(some)] = shown[view, rows[some], columns[some]]
    depths[0, : len(some)] = 1.5 - 0.4
    confirmed = np.empty((guesses, count))
    carve_kernels.confirm(view, rays, normals, depths, matrices, positions, pinhole, possible, shown, confirmed)
    wanted = np.empty((guesses, count))
    for guess, pixel in np.ndindex(guesses, count):
        local = np.array([*(rays[pixel] * depths[guess, pixel]), 1.0])
        point = np.linalg.inv(matrices[view]) @ local
        weights, agreed, outside = 0.0, 0.0, 0.0
        for other in set(range(8)) - {view}:
            x, y, z, _ = matrices[other] @ point
            column, row = (np.floor(pinhole[other, :2] * (x, y) / z + pinhole[other, 2:])).astype(int)
            seen = 0 <= column < 48 and 0 <= row < 48 and possible[other, row, column]
            way = positions[other] - point[:3]
            facing = way @ normals[pixel] / np.linalg.norm(way)
            if facing > 0.15:
                weights += facing
                alike = (shown[other, row, column] @ normals[pixel] - 0.9) / 0.09 if seen else 0.0
                agreed += facing * np.clip(alike, 0, 1)
            outside = max(outside, 1.0 - seen)
        wanted[guess, pixel] = agreed / max(weights, 1e-6) - outside
    np.testing.assert_allclose(confirmed, wanted, atol=1e-9)
    assert (confirmed > 0.5).any() and (confirmed == -1).any() and ((confirmed > -1) & (confirmed < 0)).any()


def test_what_is_known_spreads_by_means_of_27_cells() -> None:
    generator = torch.Generator().manual_seed(1)
    field, share = torch.randn(7, 9, 8, generator=generator), torch.rand(7, 9, 8, generator=generator) + 0.5
    unknown = torch.rand(7, 9, 8, generator=generator) > 0.6
    wanted = field.double()
    for _ in range(5):
        wanted = torch.where(unknown, functional.avg_pool3d(wanted[None, None], 3, 1, 1)[0, 0] / share, wanted)
    bordered = functional.pad(field, (1, 1, 1, 1, 1, 1)).numpy()
    cells = np.ascontiguousarray(unknown.nonzero().numpy() + 1)
    carve_kernels.spread(bordered, cells, share[unknown].numpy(), 5)
    np.testing.assert_allclose(bordered[1:-1, 1:-1, 1:-1], wanted.numpy(), atol=1e-6)
    assert np.pad(np.zeros((7, 9, 8)), 1, constant_values=1)[bordered == 0].all()


def test_splits_cut_triangles_in_all_ways_and_keep_the_surface() -> None:
    points, faces = random_ball(4, noise=0.02)
    lengths = np.random.default_rng(5).uniform(0.03, 0.12, len(points))
    frozen = points[:, 0] > 0.45
    keys, where = np.empty(faces.size, np.int64), np.empty(faces.size, np.int64)
    long = remesh_kernels.long_sides(points, lengths, faces, frozen, 1.5, keys, where)
    ends = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    sizes = np.linalg.norm(points[ends[0]] - points[ends[1]], axis=1)
    expected = (sizes > 0.75 * (lengths[ends[0]] + lengths[ends[1]])) & ~frozen[ends[0]] & ~frozen[ends[1]]
    assert (where[:long] == np.flatnonzero(expected)).all()
    assert (keys[:long] == np.minimum(*ends)[expected] * len(points) + np.maximum(*ends)[expected]).all()
    edges, middle = np.unique(keys[:long], return_inverse=True)
    more = np.concatenate([points, (points[edges // len(points)] + points[edges % len(points)]) / 2])
    cut = np.full(faces.shape, -1, np.int64)
    cut.reshape(-1)[where[:long]] = len(points) + middle
    numbers = np.bincount((cut >= 0).sum(axis=1), minlength=4)
    assert (numbers > 20).all()
    rows = numbers * np.arange(1, 5)
    result = np.full((rows.sum(), 3), -1, np.int64)
    begins = np.stack([np.cumsum(rows) - rows, numbers], axis=1)
    remesh_kernels.cut_triangles(more, faces, cut, begins, result)
    area = np.linalg.norm(cross_products(more, result), axis=1)
    assert area.sum() == pytest.approx(np.linalg.norm(cross_products(points, faces), axis=1).sum(), rel=1e-12)
    assert area.min() > 1e-6
    before, after = topology(points, faces), topology(more, result)
    assert after.watertight and after.volume == pytest.approx(before.volume, rel=1e-12)


def test_flips_make_degrees_more_even_and_turn_nothing_over() -> None:
    points, faces = random_ball(6, noise=0.0)
    locked = points[:, 1] > 0.3
    # A ball whose edges, here and there, join the wrong corners.
    generator = np.random.default_rng(0)
    for _ in range(400):
        one = int(generator.integers(len(faces)))
        a, b, c = faces[one]
        (two,) = np.flatnonzero((faces == a).any(axis=1) & (faces == b).any(axis=1) & (faces != c).all(axis=1))
        (d,) = set(faces[two].tolist()) - {a, b}
        if min(np.bincount(faces.reshape(-1))[[a, b]]) > 4 and not ((faces == c) | (faces == d)).sum(axis=1).max() > 1:
            faces[one], faces[two] = (c, d, b), (d, c, a)
    patch, flipped = patch_of(points, faces, np.full(len(points), 0.08)), faces.copy()
    remesh_kernels.flip(patch.points, faces, *patch.edges, locked.copy(), flipped)
    changed = (flipped != faces).any(axis=1)
    assert changed.sum() > 100 and not locked[faces[changed]].any()
    assert topology(points, flipped).watertight
    before, after = (((np.bincount(f.reshape(-1)) - 6) ** 2).sum() for f in (faces, flipped))
    assert after < 0.8 * before
    old, new = (cross_products(points, f[changed]) for f in (faces, flipped))
    outwards = points[flipped[changed]].mean(axis=1)
    assert ((new * outwards).sum(axis=1) > 0).all() and (old * points[faces[changed]].mean(axis=1)).sum() > 0


def test_edges_are_found_once() -> None:
    points, faces = random_ball(7, subdivisions=1)
    patch = patch_of(points, faces, np.ones(len(points)))
    moved = patch.with_state(patch.state + 1)
    assert moved.edges is patch.edges
    assert (moved.points == points + 1).all()


@pytest.mark.parametrize("step", [1, 7])
def test_step_of_the_optimizer(step: int) -> None:
    generator = np.random.default_rng(step)
    state = generator.normal(size=(50, 12))
    state[:, (3, 4, 11)] = generator.uniform(0.05, 1, (50, 3))
    state[:, 8] = generator.uniform(0, 1, 50)
    gradient, middle, normals = generator.normal(0, 3, (50, 3)), *generator.normal(size=(2, 50, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    parts, pull, pace = np.array([0.2 / (1 - 0.8**step), 0.3 / (1 - 0.7**step)]), 0.4, 0.25
    size = 1.5
    points, speed, freedom, length = state[:, :3], state[:, 4:5], state[:, 8:9], state[:, 11:]
    pulled = gradient + pull * size * speed * (points - middle)
    limit = 10 * np.abs(state[:, 5:8]) + 1e-30
    pulled = pulled.clip(-limit, limit) if step > 1 else pulled
    mean = state[:, 5:8] + parts[0] * (pulled - state[:, 5:8])
    squares = state[:, 3] + parts[1] * ((pulled**2).sum(axis=1) - state[:, 3])
    velocity = mean / np.sqrt(squares)[:, None]
    across = middle - points
    level = across - (across * normals).sum(axis=1, keepdims=True) * normals
    wanted = freedom * (-pace * length * velocity + 0.05 * level)
    after = state.copy()
    after[:, 3], after[:, 4], after[:, 5:8] = squares, np.linalg.norm(velocity, axis=1), mean
    after[:, 11] = (state[:, 11] * (1 + 0.1 * (after[:, 4] - 0.3))).clip(0.1, 0.9)
    shift = np.empty((50, 3))
    refine_kernels.advance(state, gradient, pull, size, middle, normals, parts, pace, 0.1, 0.9, shift)
    np.testing.assert_allclose(state, after, rtol=1e-12)
    np.testing.assert_allclose(shift, wanted, rtol=1e-9, atol=1e-12)


def test_gradient_of_flat_shading_is_that_of_an_index() -> None:
    points, faces = random_ball(8, subdivisions=4)
    maps, views = maps_of(trimesh.creation.box((0.6, 0.7, 0.8)), CAMERAS), torch.tensor([4, 1, 6])
    cameras = CAMERAS[views]
    wanted = torch.cat([maps.normals[views], maps.alpha[views][..., None]], dim=-1)
    patch = patch_of(points, faces, np.ones(len(points)))
    gradient, confirmed = refine._gradient(patch, cameras, wanted, flat=True)
    again, confirmed_again = refine._gradient(patch, cameras, wanted, flat=True)
    assert (again == gradient).all() and (confirmed_again == confirmed).all()
    vertices, corners = torch.from_numpy(points).float().requires_grad_(), torch.from_numpy(faces)
    a, b, c = vertices[corners].unbind(1)
    fragments = rasterize_mesh(vertices, corners, cameras)
    normals = functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
    seen = (fragments.triangle_id >= 0)[..., None]
    picture = torch.cat([normals[fragments.triangle_id.clamp_min(0).long()] * seen, seen.float()], dim=-1)
    (antialias(picture, vertices, corners, cameras, fragments) - wanted).abs().mean().backward()
    assert vertices.grad is not None and float(vertices.grad.abs().max()) > 0
    torch.testing.assert_close(torch.from_numpy(gradient).float(), vertices.grad, rtol=1e-4, atol=1e-8)
    ids = fragments.triangle_id[seen[..., 0]]
    alike = (picture[seen[..., 0]][:, :3] * wanted[seen[..., 0]][:, :3]).sum(dim=1).detach() > 0.8
    for row, which in enumerate(([1, -1], [1, 1])):
        votes = torch.where(alike, which[0], which[1]).double().numpy()
        np.testing.assert_array_equal(confirmed[:, row], np.bincount(ids.numpy(), votes, len(faces)))


def test_corners_of_triangles_that_turn_stay_behind() -> None:
    points, faces = random_ball(9, noise=0.01)
    shift = np.random.default_rng(10).normal(0, 0.03, points.shape)
    shifted = without_turning(points, shift, faces)
    moving = np.linalg.norm(shifted - points, axis=1) / np.linalg.norm(shift, axis=1)
    old, new, free = (cross_products(p, faces) for p in (points, shifted, points + shift))
    size = np.linalg.norm(old, axis=1)

    def turned(crossed: np.ndarray) -> np.ndarray:
        after = np.linalg.norm(crossed, axis=1)
        return ((old * crossed).sum(axis=1) < 0.5 * size * after) | (after < 0.1 * size)

    assert turned(free).any() and not turned(new).any()
    assert (moving[faces[turned(free)]] <= 0.5 + 1e-9).all()
    shares = np.array([1, 0.5, 0.25, 0.125, 0.0625, 0])
    assert np.abs(moving[:, None] - shares).min(axis=1).max() < 1e-9
    assert (np.abs(moving - 1) < 1e-9).any()


def test_sums_at_rows_and_vertex_normals() -> None:
    generator = np.random.default_rng(11)
    rows, weights = generator.integers(0, 20, 300).astype(np.int32), generator.uniform(size=300)
    values, others, sums, dots = generator.normal(size=(300, 3)), generator.normal(size=(20, 3)), *np.zeros((2, 1))
    sums, dots = np.zeros((20, 3)), np.empty(300)
    mesh_kernels.add_at(rows, weights, values, sums)
    mesh_kernels.dot_at(rows, values, others, dots)
    wanted = np.zeros((20, 3))
    np.add.at(wanted, rows, weights[:, None] * values)
    np.testing.assert_allclose(sums, wanted, rtol=1e-12)
    np.testing.assert_allclose(dots, np.einsum("pi,pi->p", values, others[rows]), rtol=1e-9, atol=1e-12)
    points, faces = random_ball(12, subdivisions=1)
    normals = vertex_normals(np.concatenate([points, [[0, 0, 9.0]]]), faces)
    crossed = np.cross(points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]])
    summed = np.zeros_like(points)
    np.add.at(summed, faces, crossed[:, None])
    np.testing.assert_allclose(normals[:-1], summed / np.linalg.norm(summed, axis=1, keepdims=True), atol=1e-6)
    assert normals[-1].tolist() == [0, 1, 0]


def test_what_lies_around_wrong_triangles() -> None:
    _, faces = random_ball(13)
    generator = np.random.default_rng(14)
    wrong, frozen = generator.random(len(faces)) < 0.02, generator.random(642) < 0.3
    around = np.empty(642, bool)
    number = mesh_kernels.around_wrong(faces, wrong, frozen, around)
    corners = {v for v in faces[wrong].ravel().tolist() if not frozen[v]}
    near = {v for face in faces.tolist() if corners & set(face) for v in face if not frozen[v]}
    assert set(np.flatnonzero(around).tolist()) == near
    assert number == len(near) > 0
