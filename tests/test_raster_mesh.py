"""Mesh visibility: the reference against ray casting, the fast backends against the reference, hard cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError, UnsupportedError
from maquette.raster.mesh import MeshFragments, rasterize_mesh

FAST = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ALL = ["reference", *FAST]


def render(vertices: Tensor, faces: Tensor, cameras: Cameras, backend: str) -> MeshFragments:
    device = "cuda" if backend == "cuda" else "cpu"
    result = rasterize_mesh(vertices.to(device), faces.to(device), cameras.to(device), backend=backend)
    return MeshFragments(result.triangle_id.cpu(), result.barycentrics.cpu(), result.depth.cpu())


def pixel_camera(height: int, width: int) -> Cameras:
    """Looks along +z from the origin; a point at z = 1 lands on pixel coordinates (x, y) = (X, Y)."""
    return Cameras(torch.eye(4)[None], torch.eye(3)[None], height, width)


def soup(num_faces: int, seed: int, size: float = 0.4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(num_faces, 1, 3, generator=generator) * 1.2 - 0.6
    corners = centers + (torch.rand(num_faces, 3, 3, generator=generator) - 0.5) * size
    return corners.reshape(-1, 3), torch.arange(num_faces * 3).reshape(-1, 3)


def ray_cast(vertices: Tensor, faces: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Nearest hit by Moeller-Trumbore, an independent method: ids and z depth, `[V, H, W]`."""
    cameras = cameras.to(torch.float64)
    origins, directions = cameras.rays()
    forward = cameras.world_to_camera[:, 2, :3]
    a, b, c = vertices.double()[faces].unbind(1)
    edge1, edge2 = b - a, c - a
    p = torch.linalg.cross(directions[..., None, :], edge2.expand(*directions.shape[:-1], *edge2.shape))
    det = (p * edge1).sum(-1)
    offset = origins[..., None, :] - a
    u = (offset * p).sum(-1) / det
    q = torch.linalg.cross(offset, edge1.expand_as(offset))
    v = (directions[..., None, :] * q).sum(-1) / det
    t = (q * edge2).sum(-1) / det
    z = t * torch.einsum("vhwi,vi->vhw", directions, forward)[..., None]
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (z > 1e-3)
    z = torch.where(hit, z, torch.inf)
    depth, index = z.min(-1)
    return torch.where(depth.isfinite(), index, -1), torch.where(depth.isfinite(), depth, 0.0)


@pytest.mark.parametrize("backend", ALL)
def test_matches_ray_casting(backend: str) -> None:
    vertices, faces = soup(60, seed=1)
    cameras = Cameras.orbit([0, 75, 200], [0, 30, -50], height=40, width=52)
    result = render(vertices, faces, cameras, backend)
    ids, depth = ray_cast(vertices, faces, cameras)
    same = result.triangle_id == ids
    assert same.float().mean() > 0.999
    torch.testing.assert_close(result.depth[same], depth[same].float(), atol=1e-5, rtol=1e-5)
    assert (result.triangle_id >= 0).float().mean() > 0.3


@pytest.mark.parametrize("backend", ALL)
def test_barycentrics_rebuild_the_surface_point(backend: str) -> None:
    vertices, faces = soup(40, seed=2)
    cameras = Cameras.orbit([10, 130], [20, -5], height=33, width=33)
    result = render(vertices, faces, cameras, backend)
    seen = result.triangle_id >= 0
    corners = vertices[faces[result.triangle_id[seen].long()]]
    points = (corners * result.barycentrics[seen][..., None]).sum(1)
    origins, directions = cameras.rays()
    along = ((points - origins[seen]) * directions[seen]).sum(-1, keepdim=True)
    torch.testing.assert_close(origins[seen] + along * directions[seen], points, atol=2e-6, rtol=0)
    assert not result.barycentrics[~seen].any()
    torch.testing.assert_close(result.barycentrics[seen].sum(-1), torch.ones(int(seen.sum())))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("num_faces", "size"), [(300, 0.05), (80, 3.0)])
def test_fast_backends_equal_the_reference(backend: str, num_faces: int, size: float) -> None:
    vertices, faces = soup(num_faces, seed=3, size=size)
    cameras = Cameras.orbit([0, 45, 190, 300], [0, 60, -30, 10], height=48, width=64)
    expected, result = (render(vertices, faces, cameras, name) for name in ("reference", backend))
    assert torch.equal(result.triangle_id, expected.triangle_id)
    torch.testing.assert_close(result.depth, expected.depth, atol=0, rtol=0)
    torch.testing.assert_close(result.barycentrics, expected.barycentrics, atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", ALL)
def test_shared_edges_through_pixel_centres_have_one_owner(backend: str) -> None:
    # A 4 x 4 grid of quads in screen space, every edge and diagonal exactly on pixel centres, mixed winding.
    steps = torch.arange(5) * 2.0 + 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    vertices = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
    corner = (torch.arange(4)[:, None] * 5 + torch.arange(4)).reshape(-1)
    faces = torch.stack([corner, corner + 1, corner + 6, corner, corner + 6, corner + 5], -1).reshape(-1, 3)
    faces[::3] = faces[::3].flip(1)
    covered = torch.zeros(12, 12, dtype=torch.int64)
    for face in faces:
        covered += (render(vertices, face[None], pixel_camera(12, 12), backend).triangle_id[0] >= 0).long()
    assert int(covered[:8, :8].min()) == 1 and int(covered.max()) == 1  # rows and columns 0..7: left and top owned
    assert not covered[8:].any() and not covered[:, 8:].any()


@pytest.mark.parametrize("backend", ALL)
def test_equal_depth_goes_to_the_smaller_id(backend: str) -> None:
    vertices = torch.tensor([[-20.0, -20, 1], [50, -20, 1], [-20, 50, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 1, 2], [2, 1, 0]])
    result = render(vertices, faces, pixel_camera(6, 7), backend)
    assert not result.triangle_id.any()
    assert torch.equal(result.depth, torch.ones(1, 6, 7))


@pytest.mark.parametrize("backend", ALL)
def test_triangles_through_the_near_plane(backend: str) -> None:
    # A floor from far behind the camera to far in front of it: v = cy + fy * height / z.
    vertices = torch.tensor([[-100.0, 1, -50], [100, 1, -50], [0, 1, 150], [0.0, 0, -1]])
    faces = torch.tensor([[0, 1, 2], [3, 3, 0]])
    intrinsics = torch.tensor([[[16.0, 0, 16], [0, 16, 16], [0, 0, 1]]])
    result = render(vertices, faces, Cameras(torch.eye(4)[None], intrinsics, 32, 32), backend)
    assert (result.triangle_id[0, :16] == -1).all()
    assert (result.triangle_id[0, 17:] == 0).all()
    expected = 16.0 / (torch.arange(17, 32) + 0.5 - 16)
    torch.testing.assert_close(result.depth[0, 17:, 16], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", ALL)
def test_poison_and_degenerate_triangles_are_skipped(backend: str) -> None:
    good = torch.tensor([[-9.0, -9, 1], [40, -9, 1], [-9, 40, 1]])
    bad = torch.tensor([[math.nan, 0, 1], [math.inf, 0, 1], [3e38, -3e38, 3e38], [0, 0, -5], [0, 0, 0]])
    vertices = torch.cat([good, bad])
    faces = torch.tensor([[0, 1, 3], [0, 4, 1], [0, 0, 1], [6, 6, 6], [7, 7, 7], [0, 1, 2], [4, 4, 3]])
    result = render(vertices, faces, pixel_camera(8, 8), backend)
    assert (result.triangle_id == 5).all()
    assert result.depth.isfinite().all() and result.barycentrics.isfinite().all()


@pytest.mark.parametrize("backend", ALL)
def test_near_limit_and_points_behind(backend: str) -> None:
    plane = torch.tensor([[-1e3, -1e3, 1.0], [3e3, -1e3, 1.0], [-1e3, 3e3, 1.0]])
    faces = torch.tensor([[0, 1, 2]])
    for z, seen in ((-1.0, False), (0.9e-3, False), (1.1e-3, True)):
        result = render(plane * z, faces, pixel_camera(4, 4), backend)
        assert bool((result.triangle_id == 0).all()) is seen
        assert bool((result.triangle_id == -1).all()) is not seen


@pytest.mark.parametrize("backend", ALL)
def test_empty_inputs(backend: str) -> None:
    cameras = Cameras.orbit([0, 90], height=5, width=4)
    none = render(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), cameras, backend)
    assert none.triangle_id.shape == (2, 5, 4) and (none.triangle_id == -1).all() and not none.depth.any()
    vertices, faces = soup(3, seed=4)
    no_views = render(vertices, faces, cameras[:0], backend)
    assert no_views.barycentrics.shape == (0, 5, 4, 3)


def test_errors_name_what_is_wrong() -> None:
    vertices, faces = soup(2, seed=5)
    cameras = Cameras.orbit([0.0], height=4, width=4)
    with pytest.raises(InvalidInputError, match="int64"):
        rasterize_mesh(vertices, faces.int(), cameras)
    with pytest.raises(InvalidInputError, match="index"):
        rasterize_mesh(vertices, faces + 1, cameras)
    with pytest.raises(InvalidInputError, match="'reference', 'cpu', 'cuda'"):
        rasterize_mesh(vertices, faces, cameras, backend="metal")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="CUDA tensors"):
        rasterize_mesh(vertices, faces, cameras, backend="cuda")
    with pytest.raises(InvalidInputError, match=r"\[V\]"):
        rasterize_mesh(vertices, faces, cameras.reshape(1, 1))
