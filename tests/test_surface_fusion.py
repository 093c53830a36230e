"""Gaussians to mesh by fusing rendered depth: size, orientation, colours, closedness, parts, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import trimesh

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.surface import gaussians_to_mesh
from maquette.surface.bench import compare_surfaces
from maquette.surface.fusion import fuse_gaussians

SIGMA = 0.012


def shell(points: torch.Tensor, colors: torch.Tensor, opacity: float = 0.9) -> Gaussians:
    n = len(points)
    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4)
    return Gaussians(points, quats, torch.full((n, 3), SIGMA), torch.full((n,), opacity), colors)


def sphere(count: int = 8000, opacity: float = 0.9) -> Gaussians:
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(points, dim=1)
    return shell(unit * 0.5, unit * 0.4 + 0.5, opacity)


def box(count: int = 20000) -> Gaussians:
    """1 x 0.6 x 0.4, each side of its own colour: +x red 0.9, -x red 0.4, +y green 0.9, ..."""
    g = torch.Generator().manual_seed(0)
    half = torch.tensor([0.5, 0.3, 0.2])
    points = (torch.rand(count, 3, generator=g) * 2 - 1) * half
    area = torch.stack([half[1] * half[2], half[0] * half[2], half[0] * half[1]]).repeat_interleave(2)
    side = torch.multinomial(area, count, replacement=True, generator=g)
    axis, positive = side // 2, side % 2 == 0
    points[torch.arange(count), axis] = torch.where(positive, half[axis], -half[axis])
    return shell(points, torch.nn.functional.one_hot(axis, 3) * torch.where(positive, 0.9, 0.4)[:, None])


def torus(count: int = 20000) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    u, v = torch.rand(2, count, generator=g) * 2 * torch.pi
    ring = 0.4 + 0.12 * v.cos()
    points = torch.stack([ring * u.cos(), 0.12 * v.sin(), ring * u.sin()], dim=1)
    return shell(points, torch.full((count, 3), 0.5))


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)


@pytest.mark.parametrize("opacity", [0.95, 0.2])
def test_sphere(opacity: float) -> None:
    mesh = fuse_gaussians(sphere(opacity=opacity), resolution=72)
    radius = mesh.vertices.norm(dim=1)
    outward = mesh.vertices / radius[:, None]
    assert float((radius - 0.5).abs().max()) < 3 * SIGMA
    assert float(radius.mean()) == pytest.approx(0.5 + SIGMA, abs=SIGMA)
    assert mesh.normals is not None and mesh.vertex_colors is not None
    assert float((mesh.normals * outward).sum(1).median()) > 0.98
    torch.testing.assert_close(mesh.normals.norm(dim=1), torch.ones(len(radius)))
    assert float((mesh.vertex_colors[:, :3] - (outward * 0.4 + 0.5)).abs().max()) < 0.12
    solid = as_trimesh(mesh)
    assert solid.is_watertight and solid.is_winding_consistent
    assert solid.volume == pytest.approx(4 / 3 * torch.pi * float(radius.mean()) ** 3, rel=0.03)


def test_box_orientation_and_colors() -> None:
    mesh = fuse_gaussians(box(), resolution=96)
    expected = torch.tensor([0.5, 0.3, 0.2])
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    assert float((high - expected).abs().max()) < 3 * SIGMA and float((low + expected).abs().max()) < 3 * SIGMA
    assert mesh.normals is not None and mesh.vertex_colors is not None
    for axis in range(3):
        for sign, value in ((1, 0.9), (-1, 0.4)):
            center = torch.zeros(3)
            center[axis] = sign * expected[axis]
            near = (mesh.vertices - center).norm(dim=1) < 0.1
            wanted = torch.zeros(3)
            wanted[axis] = value
            torch.testing.assert_close(mesh.vertex_colors[near, :3].mean(0), wanted, atol=0.04, rtol=0)
            assert float(mesh.normals[near].mean(0)[axis]) * sign > 0.95
    assert as_trimesh(mesh).is_watertight
    assert as_trimesh(mesh).volume == pytest.approx(0.271, rel=0.1)  # one SIGMA on each side


def test_torus_keeps_its_hole() -> None:
    solid = as_trimesh(fuse_gaussians(torus(), resolution=96))
    assert solid.is_watertight and solid.euler_number == 0
    assert solid.volume == pytest.approx(2 * torch.pi**2 * 0.4 * (0.12 + SIGMA) ** 2, rel=0.2)


def test_coordinates_are_those_of_the_gaussians() -> None:
    given = sphere(4000)
    offset = torch.tensor([30.0, -10.0, 5.0])
    moved = Gaussians(given.means * 20 + offset, given.quats, given.scales * 20, given.opacities, given.colors)
    mesh = fuse_gaussians(moved, resolution=64)
    torch.testing.assert_close((mesh.vertices.amin(0) + mesh.vertices.amax(0)) / 2, offset, atol=0.4, rtol=0)
    assert float((mesh.vertices - offset).norm(dim=1).mean()) == pytest.approx(10, abs=0.7)


def test_hole_in_the_shell_is_closed_but_a_cup_stays_open() -> None:
    full = sphere(12000)
    pierced = full.select(full.means[:, 1] < 0.495)
    assert as_trimesh(fuse_gaussians(pierced, resolution=72)).volume > 0.45
    cup = full.select(full.means[:, 1] < 0)
    mesh = fuse_gaussians(cup, resolution=72)
    assert as_trimesh(mesh).volume < 0.15
    assert as_trimesh(mesh).is_watertight


def test_one_gaussian_is_left_to_the_density() -> None:
    one = sphere(1)
    mesh = gaussians_to_mesh(one, resolution=64)
    size = (mesh.vertices - one.means).norm(dim=1)
    assert float(size.min()) > SIGMA and float(size.max()) < 3 * SIGMA
    assert as_trimesh(mesh).is_watertight


def test_entry_point_takes_fusion_by_default_and_checks_the_method() -> None:
    given = sphere(2000)
    default, fused = gaussians_to_mesh(given, resolution=48), fuse_gaussians(given, resolution=48)
    assert torch.equal(default.vertices, fused.vertices)
    assert gaussians_to_mesh(given, method="density", resolution=48).num_vertices != fused.num_vertices
    with pytest.raises(InvalidInputError, match="method"):
        gaussians_to_mesh(given, method=cast(Any, "magic"))


def no_surface() -> dict[str, Callable[[], Gaussians]]:
    def replaced(**values: torch.Tensor) -> Gaussians:
        return Gaussians(**(vars(sphere(100)) | values))

    return {
        "none": lambda: sphere(10).select(torch.zeros(10, dtype=torch.bool)),
        "transparent": lambda: replaced(opacities=torch.zeros(100)),
        "not finite": lambda: replaced(means=torch.full((100, 3), torch.inf)),
        "fog": lambda: sphere(6, opacity=0.021),
        "larger than the object": lambda: replaced(scales=torch.full((100, 3), 50.0)),
    }


@pytest.mark.parametrize("case", no_surface())
def test_no_surface_is_an_error(case: str) -> None:
    with pytest.raises(InvalidInputError, match="no surface"):
        fuse_gaussians(no_surface()[case](), resolution=32)


def test_options_are_checked() -> None:
    with pytest.raises(InvalidInputError, match="resolution"):
        fuse_gaussians(sphere(10), resolution=4)
    with pytest.raises(InvalidInputError, match="num_views"):
        fuse_gaussians(sphere(10), num_views=3)
    with pytest.raises(InvalidInputError, match="batch"):
        fuse_gaussians(Gaussians.stack([sphere(10), sphere(10)]))


def test_compare_surfaces_knows_the_distance_of_spheres() -> None:
    def ball(radius: float) -> Mesh:
        solid = trimesh.creation.icosphere(4, radius)
        return Mesh(torch.tensor(solid.vertices).float(), torch.tensor(solid.faces).long())

    chamfer, f_scores = compare_surfaces(ball(0.5), ball(0.53), samples=20_000)
    assert chamfer == pytest.approx(0.03, abs=0.002)
    assert f_scores == (0.0, 1.0)
    assert compare_surfaces(ball(0.5), ball(0.5), samples=20_000)[1][1] == 1.0
