"""Shading of rasterized meshes: backends against each other, finite differences, exact areas, torch's own sampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError, UnsupportedError
from maquette.raster.mesh import MeshFragments, rasterize_mesh
from maquette.raster.shading import (
    antialias,
    face_neighbors,
    interpolate,
    mip_pyramid,
    sample_texture,
    screen_points,
    surface_weights,
    texture_levels,
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ball(subdivisions: int = 2, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """An ellipsoid of an octahedron's triangles, cut in four again and again."""
    points = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    faces = torch.tensor([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    for _ in range(subdivisions + 1):
        corners = points[faces]
        middles = functional.normalize(corners + corners.roll(-1, dims=1), dim=2)
        (a, b, c), (p, q, r) = corners.unbind(1), middles.unbind(1)
        triangles = torch.cat([torch.stack(t, 1) for t in ((a, p, r), (p, b, q), (r, q, c), (p, q, r))])
        _, index = torch.unique((triangles.reshape(-1, 3) * 1e9).round().long(), dim=0, return_inverse=True)
        points = torch.zeros(int(index.max()) + 1, 3, dtype=torch.float64).index_copy(
            0, index, triangles.reshape(-1, 3)
        )
        faces = index.reshape(-1, 3)
    return (points * 0.4 * torch.tensor([1.0, 1.3, 0.7])).to(device), faces.to(device)


def coverage(vertices: Tensor, faces: Tensor, cameras: Cameras) -> Tensor:
    fragments = rasterize_mesh(vertices, faces, cameras)
    return antialias((fragments.triangle_id >= 0)[..., None].to(vertices), vertices, faces, cameras, fragments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fast_backends_agree_with_the_reference(dtype: torch.dtype, device: str) -> None:
    vertices, faces = ball()
    cameras = Cameras.orbit([0.0, 40, 100], [10.0, -20, 30], height=40, width=48)
    fragments = rasterize_mesh(vertices, faces, cameras)
    generator = torch.Generator().manual_seed(0)
    uvs, texture = torch.rand(len(vertices), 2, generator=generator), torch.rand(16, 8, 3, generator=generator)
    factors = torch.rand(3, 40, 48, 3, generator=generator)
    results = []
    for backend, kind, where in (("reference", torch.float64, "cpu"), (None, dtype, device)):
        inputs = [value.to(where, kind).clone().requires_grad_() for value in (vertices, uvs, texture)]
        points, coordinates, texels = inputs
        triangles, seen_from = faces.to(where), cameras.to(where)
        shown = MeshFragments(
            fragments.triangle_id.to(where), fragments.barycentrics.to(where), fragments.depth.to(where)
        )
        weights = surface_weights(points, triangles, seen_from, shown, backend=backend)  # type: ignore[arg-type]
        place = interpolate(coordinates, triangles, shown.triangle_id, weights, backend=backend)  # type: ignore[arg-type]
        levels = texture_levels(points, triangles, coordinates, seen_from, shown, (16, 8))
        assert float(levels.max()) > 1
        color = sample_texture(texels, place, levels, backend=backend)  # type: ignore[arg-type]
        picture = torch.where((shown.triangle_id >= 0)[..., None], color, torch.ones((), dtype=kind, device=where))
        drawn = antialias(picture, points, triangles, seen_from, shown, backend=backend)  # type: ignore[arg-type]
        torch.autograd.backward((drawn * factors.to(where, kind)).sum())
        results.append([weights.detach(), drawn.detach(), *(value.grad for value in inputs)])
    for wanted, got in zip(*results, strict=True):
        assert wanted is not None and got is not None
        scale = float(wanted.abs().max())
        assert scale > 0
        tolerance = 1e-11 if dtype == torch.float64 else 3e-6
        assert float((got.cpu().double() - wanted).abs().max()) < tolerance * scale


def test_gradients_on_the_cpu_do_not_depend_on_the_number_of_threads() -> None:
    vertices, faces = (value.to(torch.float32) if value.is_floating_point() else value for value in ball())
    cameras = Cameras.orbit([0.0, 100.0], height=64, width=64)
    fragments = rasterize_mesh(vertices, faces, cameras)
    generator = torch.Generator().manual_seed(0)
    uvs, texture = torch.rand(len(vertices), 2, generator=generator), torch.rand(16, 8, 3, generator=generator)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            inputs = [value.clone().requires_grad_() for value in (vertices, uvs, texture)]
            weights = surface_weights(inputs[0], faces, cameras, fragments)
            color = sample_texture(inputs[2], interpolate(inputs[1], faces, fragments.triangle_id, weights))
            drawn = antialias(color, inputs[0], faces, cameras, fragments)
            results.append(torch.autograd.grad(drawn.square().sum(), inputs))
    finally:
        torch.set_num_threads(before)
    assert all(a.any() and torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_weights_are_those_of_the_rasterizer_and_move_with_the_vertices(device: str) -> None:
    vertices, faces = ball(device=device)
    cameras = Cameras.orbit([30.0], height=32, width=32).to(device).to(torch.float64)
    fragments = rasterize_mesh(vertices, faces, cameras)
    weights = surface_weights(vertices, faces, cameras, fragments)
    torch.testing.assert_close(weights.float(), fragments.barycentrics, atol=1e-6, rtol=0)
    factors = torch.rand(weights.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    direction = torch.randn(vertices.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)

    def total(shift: float) -> Tensor:
        return (surface_weights(vertices + shift * direction, faces, cameras, fragments) * factors).sum()

    moved = vertices.clone().requires_grad_()
    torch.autograd.backward((surface_weights(moved, faces, cameras, fragments) * factors).sum())
    assert moved.grad is not None
    numeric = (total(1e-6) - total(-1e-6)) / 2e-6
    assert float((moved.grad * direction).sum()) == pytest.approx(float(numeric), rel=1e-6)


def test_texture_is_what_grid_sample_gives_and_wraps(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(6, 5, 2, generator=generator, dtype=torch.float64).to(device)
    uvs = (torch.rand(200, 2, generator=generator, dtype=torch.float64) * 0.6 + 0.2).to(device)
    sampled = sample_texture(texture, uvs)
    grid = (uvs * 2 - 1)[None, None]
    oracle = functional.grid_sample(texture.permute(2, 0, 1)[None], grid, align_corners=False)[0, :, 0].T
    torch.testing.assert_close(sampled, oracle)
    torch.testing.assert_close(sample_texture(texture, uvs + torch.tensor([3.0, -2.0], device=device)), sampled)
    assert torch.autograd.gradcheck(sample_texture, (texture.requires_grad_(), uvs.requires_grad_()), nondet_tol=1e-12)


def test_mip_levels_keep_the_mean() -> None:
    texture = torch.rand(16, 8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pyramid = mip_pyramid(texture)
    assert [tuple(level.shape[:2]) for level in pyramid] == [(16, 8), (8, 4), (4, 2), (2, 1), (1, 1)]
    uvs = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    last = sample_texture(texture, uvs, torch.tensor([99.0], dtype=torch.float64))[0]
    torch.testing.assert_close(last, texture.mean(dim=(0, 1)))
    middle = sample_texture(texture, uvs, torch.tensor([1.5], dtype=torch.float64))
    torch.testing.assert_close(middle, (sample_texture(pyramid[1], uvs) + sample_texture(pyramid[2], uvs)) / 2)


def test_level_of_a_square_seen_from_the_front() -> None:
    """A square of 64 pixels that holds 256 texels a side: four texels per pixel and axis, level 2."""
    vertices = torch.tensor([[-0.5, 0.5, 0.0], [0.5, 0.5, 0], [0.5, -0.5, 0], [-0.5, -0.5, 0]])
    faces, uvs = torch.tensor([[0, 2, 1], [0, 3, 2]]), torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    intrinsics = torch.tensor([[[64.0, 0, 40], [0, 64, 40], [0, 0, 1]]])
    pose = torch.tensor([[[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 1], [0, 0, 0, 1]]])
    cameras = Cameras(pose, intrinsics, 80, 80)
    fragments = rasterize_mesh(vertices, faces, cameras)
    levels = texture_levels(vertices, faces, uvs, cameras, fragments, (256, 256))
    seen = fragments.triangle_id >= 0
    assert int(seen.sum()) == 64 * 64
    torch.testing.assert_close(levels[seen], torch.full((64 * 64,), 2.0))


def exact_area(vertices: Tensor, faces: Tensor, cameras: Cameras) -> float:
    """Area of the silhouette in pixels: convex hull of the projected vertices of a convex body."""
    from scipy import spatial

    return float(spatial.ConvexHull(screen_points(vertices, cameras)[0, :, :2].cpu().numpy()).volume)


@pytest.mark.parametrize("subdivisions", [1, 2, 4])
def test_antialiased_coverage_sums_to_the_area(subdivisions: int, device: str) -> None:
    vertices, faces = ball(subdivisions, device)
    cameras = Cameras.orbit([20.0], [10.0], height=64, width=64).to(device).to(torch.float64)
    exact = exact_area(vertices, faces, cameras)
    smooth = float(coverage(vertices, faces, cameras).sum())
    assert smooth == pytest.approx(exact, rel=1.5e-3)


def test_silhouette_gradient_is_the_derivative_of_the_area(device: str) -> None:
    vertices, faces = ball(device=device)
    cameras = Cameras.orbit([20.0], [10.0], height=64, width=64).to(device).to(torch.float64)
    moved = vertices.clone().requires_grad_()
    torch.autograd.backward(coverage(moved, faces, cameras).sum())
    assert moved.grad is not None
    step = 1e-4
    larger, smaller = (exact_area(vertices * (1 + s), faces, cameras) for s in (step, -step))
    assert float((moved.grad * vertices).sum()) == pytest.approx((larger - smaller) / (2 * step), rel=0.02)


def test_silhouette_loss_by_finite_differences(device: str) -> None:
    """A square slides over a picture: the gradient is exact as long as no pixel centre is crossed."""
    vertices = torch.tensor([[-0.31, 0.3, 0.0], [0.3, 0.33, 0], [0.31, -0.3, 0], [-0.32, -0.3, 0]]).double()
    vertices, faces = vertices.to(device), torch.tensor([[0, 2, 1], [0, 3, 2]], device=device)
    cameras = Cameras.orbit([0.0], height=24, width=24).to(device).to(torch.float64)
    wanted = torch.rand(1, 24, 24, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)

    def loss(points: Tensor) -> Tensor:
        return (coverage(points, faces, cameras) - wanted).square().sum()

    moved = vertices.clone().requires_grad_()
    torch.autograd.backward(loss(moved))
    assert moved.grad is not None
    checked = 0
    for vertex in range(4):
        for axis in (0, 1):
            shift = torch.zeros_like(vertices)
            shift[vertex, axis] = 1e-6
            numeric = float((loss(vertices + shift) - loss(vertices - shift)) / 2e-6)
            checked += abs(numeric) > 1
            assert float(moved.grad[vertex, axis]) == pytest.approx(numeric, rel=1e-4, abs=1e-4)
    assert checked >= 6


def test_antialiasing_conserves_energy_over_any_background(device: str) -> None:
    """What a pixel of a flat object loses is what the background behind it gains, and nothing moves inside."""
    vertices, faces = ball(device=device)
    cameras = Cameras.orbit([20.0], height=48, width=48).to(device).to(torch.float64)
    fragments = rasterize_mesh(vertices, faces, cameras)
    seen = (fragments.triangle_id >= 0)[..., None]
    front, back = 0.7, 0.2
    drawn = antialias(torch.where(seen, front, back).double(), vertices, faces, cameras, fragments)
    cover = coverage(vertices, faces, cameras)
    torch.testing.assert_close(drawn, back + (front - back) * cover)
    assert float(drawn.min()) >= back - 1e-9 and float(drawn.max()) <= front + 1e-9
    flat = torch.full_like(drawn, 0.4)
    torch.testing.assert_close(antialias(flat, vertices, faces, cameras, fragments), flat)


def test_neighbors_are_those_of_trimesh_and_borders_have_none() -> None:
    trimesh = pytest.importorskip("trimesh")
    shape = trimesh.creation.icosphere(subdivisions=2)
    neighbors = face_neighbors(torch.tensor(shape.faces, dtype=torch.int64))
    pairs = {tuple(sorted(pair)) for pair in shape.face_adjacency.tolist()}
    ours = {tuple(sorted((face, int(n)))) for face, row in enumerate(neighbors) for n in row}
    assert ours == pairs
    open_faces = torch.tensor([[0, 1, 2], [2, 1, 3], [1, 2, 4], [0, 1, 5]])
    assert face_neighbors(open_faces).tolist() == [[-1, -1, -1], [-1, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert face_neighbors(open_faces[:2]).tolist() == [[-1, 1, -1], [0, -1, -1]]


def test_empty_mesh_and_wrong_shapes() -> None:
    cameras = Cameras.orbit([0.0], height=8, width=8)
    vertices, faces = torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)
    fragments = rasterize_mesh(vertices, faces, cameras)
    color = torch.rand(1, 8, 8, 3)
    assert torch.equal(antialias(color, vertices, faces, cameras, fragments), color)
    assert not surface_weights(vertices, faces, cameras, fragments).any()
    with pytest.raises(InvalidInputError, match="color must be"):
        antialias(color[:, :4], vertices, faces, cameras, fragments)
    with pytest.raises(InvalidInputError, match="texture must be"):
        sample_texture(torch.rand(4, 4), torch.rand(3, 2))
    with pytest.raises(InvalidInputError, match="backend"):
        sample_texture(torch.rand(4, 4, 1), torch.rand(3, 2), backend="triton")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="needs CUDA tensors"):
        sample_texture(torch.rand(4, 4, 1), torch.rand(3, 2), backend="cuda")
