"""Gaussians to mesh: size, orientation, colours, closedness, parts, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.surface.extract import extract_density

SIGMA = 0.015


def shell(points: torch.Tensor, colors: torch.Tensor, opacity: float = 0.6, sigma: float = SIGMA) -> Gaussians:
    n = len(points)
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=torch.Generator().manual_seed(7)), dim=1)
    return Gaussians(points, quats, torch.full((n, 3), sigma), torch.full((n,), opacity), colors)


def sphere(count: int = 8000, radius: float = 0.5, opacity: float = 0.6) -> Gaussians:
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(points, dim=1)
    return shell(unit * radius, unit * 0.4 + 0.5, opacity)


def box(count: int = 16000) -> Gaussians:
    """A box of size 1 x 0.6 x 0.4, each side of its own colour: +x red, -x dark red, +y green, ..."""
    g = torch.Generator().manual_seed(0)
    half = torch.tensor([0.5, 0.3, 0.2])
    points = (torch.rand(count, 3, generator=g) * 2 - 1) * half
    area = torch.stack([half[1] * half[2], half[0] * half[2], half[0] * half[1]]).repeat_interleave(2)
    side = torch.multinomial(area, count, replacement=True, generator=g)
    axis, positive = side // 2, side % 2 == 0
    points[torch.arange(count), axis] = torch.where(positive, half[axis], -half[axis])
    colors = torch.nn.functional.one_hot(axis, 3) * torch.where(positive, 0.9, 0.4)[:, None]
    return shell(points, colors)


def signed_volume(mesh: Mesh) -> float:
    a, b, c = mesh.vertices.double()[mesh.faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def is_closed(mesh: Mesh) -> bool:
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    forward = {(int(a), int(b)) for a, b in edges}
    return len(forward) == len(edges) and all((b, a) in forward for a, b in forward)


@pytest.mark.parametrize("opacity", [0.9, 0.05])
def test_sphere(opacity: float) -> None:
    mesh = extract_density(sphere(opacity=opacity), resolution=72)
    radius = mesh.vertices.norm(dim=1)
    outward = mesh.vertices / radius[:, None]
    assert float(radius.min()) > 0.5 - SIGMA and float(radius.max()) < 0.5 + 3 * SIGMA
    assert float(radius.mean()) == pytest.approx(0.5 + SIGMA, abs=SIGMA)
    assert mesh.normals is not None and mesh.vertex_colors is not None
    assert float((mesh.normals * outward).sum(1).median()) > 0.98
    torch.testing.assert_close(mesh.normals.norm(dim=1), torch.ones(len(radius)))
    assert float((mesh.vertex_colors[:, :3] - (outward * 0.4 + 0.5)).abs().max()) < 0.05
    assert bool((mesh.vertex_colors[:, 3] == 1).all())
    # one outer surface, filled: not two walls, whose volumes would nearly cancel
    mean_radius = float(radius.mean())
    assert signed_volume(mesh) == pytest.approx(4 / 3 * torch.pi * mean_radius**3, rel=0.05)
    assert is_closed(mesh)


def test_box_orientation_and_colors() -> None:
    mesh = extract_density(box(), resolution=96)
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    expected = torch.tensor([0.5, 0.3, 0.2])
    assert float((high - expected).abs().max()) < 2.5 * SIGMA and float((low + expected).abs().max()) < 2.5 * SIGMA
    assert mesh.normals is not None and mesh.vertex_colors is not None
    for axis in range(3):
        for sign, value in ((1, 0.9), (-1, 0.4)):
            center = torch.zeros(3)
            center[axis] = sign * expected[axis]
            near = (mesh.vertices - center).norm(dim=1) < 0.1
            assert int(near.sum()) > 10
            color = mesh.vertex_colors[near, :3].mean(0)
            wanted = torch.zeros(3)
            wanted[axis] = value
            torch.testing.assert_close(color, wanted, atol=0.05, rtol=0)
            assert float(mesh.normals[near].mean(0)[axis]) * sign > 0.9
    assert signed_volume(mesh) == pytest.approx(0.24, rel=0.25)


def test_coordinates_are_those_of_the_gaussians() -> None:
    given = sphere(4000)
    offset = torch.tensor([3.0, -1.0, 0.5])
    moved = Gaussians(given.means * 2 + offset, given.quats, given.scales * 2, given.opacities, given.colors)
    mesh = extract_density(moved, resolution=64)
    torch.testing.assert_close((mesh.vertices.amin(0) + mesh.vertices.amax(0)) / 2, offset, atol=0.03, rtol=0)
    assert float((mesh.vertices - offset).norm(dim=1).mean()) == pytest.approx(1 + 2 * SIGMA, abs=2 * SIGMA)


def test_hole_in_the_shell_is_bridged_and_option_keeps_walls() -> None:
    full = sphere(12000)
    opened = full.select(full.means[:, 1] < 0.5 * 0.985)
    assert signed_volume(extract_density(opened, resolution=96)) > 0.45
    assert signed_volume(extract_density(opened, resolution=96, fill_interior=False)) < 0.3


def test_cup_stays_open() -> None:
    full = sphere(12000)
    cup = full.select(full.means[:, 1] < 0.1)
    mesh = extract_density(cup, resolution=96)
    assert signed_volume(mesh) < 0.2
    assert float((mesh.vertices.norm(dim=1) < 0.4).float().mean()) < 0.01


def test_small_parts_strays_and_poison_are_dropped() -> None:
    given = sphere(6000)
    extra = Gaussians(
        torch.tensor([[0.9, 0.9, 0.9], [40.0, 0, 0], [torch.nan, 0, 0], [0.0, 0, 0]]),
        torch.tensor([[1.0, 0, 0, 0]]).expand(4, 4),
        torch.tensor([[0.02], [0.02], [0.02], [5.0]]).expand(4, 3),
        torch.full((4,), 0.9),
        torch.ones(4, 3),
    )
    merged = Gaussians(
        *(
            torch.cat([getattr(given, n), getattr(extra, n)])
            for n in ("means", "quats", "scales", "opacities", "colors")
        )
    )
    mesh = extract_density(merged, resolution=64)
    assert float(mesh.vertices.norm(dim=1).max()) < 0.6


def test_harmonics_count_with_their_mean_color() -> None:
    plain = sphere(3000)
    harmonics = torch.zeros(3000, 4, 3)
    harmonics[:, 0] = (plain.colors - 0.5) / 0.28209479177387814
    harmonics[:, 1:] = 0.7
    spherical = Gaussians(plain.means, plain.quats, plain.scales, plain.opacities, harmonics)
    a, b = extract_density(plain, resolution=48), extract_density(spherical, resolution=48)
    assert a.vertex_colors is not None and b.vertex_colors is not None
    torch.testing.assert_close(a.vertex_colors, b.vertex_colors, atol=1e-4, rtol=0)


def no_surface() -> dict[str, Callable[[], Gaussians]]:
    def replaced(**values: torch.Tensor) -> Gaussians:
        fields = vars(sphere(100)) | values
        return Gaussians(**fields)

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
        extract_density(no_surface()[case](), resolution=32)


def test_sparse_shell_does_not_fall_into_beads() -> None:
    mesh = extract_density(sphere(1500), resolution=64)
    assert signed_volume(mesh) > 4 / 3 * torch.pi * 0.45**3
    assert float(mesh.vertices.norm(dim=1).min()) > 0.42


def test_options_are_checked() -> None:
    with pytest.raises(InvalidInputError, match="resolution"):
        extract_density(sphere(10), resolution=4)
    with pytest.raises(InvalidInputError, match="batch"):
        extract_density(Gaussians.stack([sphere(10), sphere(10)]))


def test_one_gaussian_is_an_ellipsoid() -> None:
    one = Gaussians(
        torch.zeros(1, 3),
        torch.tensor([[0.5**0.5, 0, 0, 0.5**0.5]]),  # a quarter turn about z: the long axis x points along y
        torch.tensor([[0.3, 0.1, 0.05]]),
        torch.tensor([0.9]),
        torch.tensor([[0.2, 0.4, 0.6]]),
    )
    mesh = extract_density(one, resolution=128)
    size = mesh.vertices.amax(0)
    expected = torch.tensor([0.1, 0.3, 0.05]) * (2 * torch.log(torch.tensor(2.0))).sqrt()
    torch.testing.assert_close(size, expected, atol=0.02, rtol=0.1)
