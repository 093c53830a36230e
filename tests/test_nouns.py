"""The four nouns: what their constructors refuse, and the conventions of cameras."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from maquette.cameras import Cameras, intrinsics_from_fov
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Material, Mesh
from maquette.views import Views


def gaussian_fields(*lead: int) -> dict[str, torch.Tensor]:
    quats = torch.zeros(*lead, 4)
    quats[..., 0] = 1
    return {
        "means": torch.zeros(*lead, 3),
        "quats": quats,
        "scales": torch.full((*lead, 3), 0.1),
        "opacities": torch.full(lead, 0.5),
        "colors": torch.full((*lead, 3), 0.5),
    }


@pytest.mark.parametrize("lead", [(5,), (2, 5), (2, 3, 5), (0,)])
def test_gaussian_shapes(lead: tuple[int, ...]) -> None:
    g = Gaussians(**gaussian_fields(*lead))
    assert g.num_gaussians == lead[-1] and g.batch_shape == lead[:-1] and g.sh_degree is None
    for degree in range(4):
        g = Gaussians(**gaussian_fields(*lead) | {"colors": torch.zeros(*lead, (degree + 1) ** 2, 3)})
        assert g.sh_degree == degree


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": torch.zeros(5, 2)}, "means must be [..., N, 3], got [5, 2]"),
        ({"means": torch.zeros(3)}, "means must be"),
        ({"quats": torch.zeros(5, 3)}, "quats must be [5, 4]"),
        ({"scales": torch.zeros(4, 3)}, "scales must be [5, 3]"),
        ({"opacities": torch.zeros(5, 1)}, "opacities must be [5]"),
        ({"colors": torch.zeros(5, 4)}, "colors must be"),
        ({"colors": torch.zeros(5, 5, 3)}, "K in [1, 4, 9, 16]"),
        ({"colors": torch.zeros(5, 3, dtype=torch.uint8)}, "floating-point"),
        ({"opacities": torch.zeros(5, device="meta")}, "meta"),
    ],
)
def test_gaussians_refuse(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        Gaussians(**gaussian_fields(5) | change)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("means", math.nan, "finite: 1 of 15"),
        ("colors", math.inf, "finite: 1 of 15"),
        ("scales", 0.0, "> 0: 1 of 15"),
        ("opacities", 1.5, "in 0..1: 1 of 5"),
        ("quats", 3.0, "of unit length: 1 of 5"),
    ],
)
def test_gaussian_values_are_counted(name: str, value: float, message: str) -> None:
    fields = gaussian_fields(5)
    assert Gaussians(**fields).check_values() is not None
    fields[name].reshape(-1)[0] = value
    with pytest.raises(InvalidInputError, match=re.escape(f"{name} must be {message}")):
        Gaussians(**fields).check_values()


def test_gaussian_selection_and_stacking() -> None:
    fields = gaussian_fields(5)
    fields["means"] = torch.arange(15.0).reshape(5, 3)
    g = Gaussians(**fields)
    assert g.select(torch.tensor([4, 0])).means[:, 0].tolist() == [12, 0]
    assert g.select(g.means[:, 0] > 5).num_gaussians == 3
    batch = Gaussians.stack([g, g.map(lambda t: t * 1.0)])
    assert batch.batch_shape == (2,) and torch.equal(batch[1].means, g.means)
    assert batch.to(torch.float64).means.dtype == torch.float64
    for bad in (lambda: g[0], lambda: batch.select(torch.tensor([0])), lambda: Gaussians.stack([])):
        with pytest.raises(InvalidInputError):
            bad()
    with pytest.raises(InvalidInputError, match=re.escape("N = [5, 2]")):
        Gaussians.stack([g, g.select(torch.tensor([0, 1]))])


def project(cameras: Cameras, point: list[float]) -> torch.Tensor:
    """Pixel coordinates of a world point, by hand."""
    local = cameras.world_to_camera[..., :3, :3] @ torch.tensor(point) + cameras.world_to_camera[..., :3, 3]
    pixels = (cameras.intrinsics @ local[..., None])[..., 0]
    return pixels[..., :2] / pixels[..., 2:]


def test_orbit_conventions() -> None:
    cameras = Cameras.orbit([0, 90, 180, 0], [0, 0, 0, 90], radius=2.0, height=100, width=200)
    expected = torch.tensor([[0.0, 0, 2], [2, 0, 0], [0, 0, -2], [0, 2, 0]])
    torch.testing.assert_close(cameras.positions, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(project(cameras, [0.0, 0, 0]), torch.tensor([100.0, 50]).expand(4, 2), atol=1e-4, rtol=0)
    front = project(cameras[0], [0.1, 0.2, 0.0])
    assert front[0] > 100 and front[1] < 50, "seen from the front, +X is right and +Y is up"
    side = project(cameras[1], [0.0, 0.0, 0.1])
    assert side[0] < 100, "seen from +X, the front (+Z) is on the left"
    tan = math.tan(math.radians(49.1) / 2)
    torch.testing.assert_close(project(cameras[0], [0.0, 2 * tan, 0.0])[1], torch.tensor(0.0), atol=1e-4, rtol=0)


def test_opengl_border() -> None:
    cameras = Cameras.orbit([30, 200], [20, -40], radius=1.7)
    poses = cameras.opengl_poses()
    torch.testing.assert_close(poses[:, :3, 3], cameras.positions)
    backward = torch.nn.functional.normalize(cameras.positions, dim=-1)
    torch.testing.assert_close(poses[:, :3, 2], backward, atol=1e-6, rtol=0)
    assert bool((poses[:, 1, 1] > 0).all()), "the up column points up"
    again = Cameras.from_opengl_poses(poses, 49.1, 256, 256)
    torch.testing.assert_close(again.world_to_camera, cameras.world_to_camera, atol=1e-6, rtol=0)
    identity = cameras.camera_to_world @ cameras.world_to_camera
    torch.testing.assert_close(identity, torch.eye(4).expand(2, 4, 4), atol=1e-6, rtol=0)


def test_rays_meet_projection() -> None:
    cameras = Cameras.orbit([10, 100], [5, -30], height=6, width=8)
    origins, directions = cameras.rays()
    assert origins.shape == directions.shape == (2, 6, 8, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2, 6, 8))
    point = origins[1, 2, 5] + 3.3 * directions[1, 2, 5]
    torch.testing.assert_close(project(cameras[1], point.tolist()), torch.tensor([5.5, 2.5]), atol=1e-4, rtol=0)


def test_resizing_keeps_the_picture() -> None:
    small = Cameras.orbit([45], 10.0, height=64, width=64)
    large = small.resized(128, 256)
    a, b = project(small, [0.2, 0.1, -0.3]), project(large, [0.2, 0.1, -0.3])
    torch.testing.assert_close(b, a * torch.tensor([4.0, 2.0]))
    assert (large.height, large.width) == (128, 256)


def test_mirrored_cameras_see_mirrored_points_at_mirrored_pixels() -> None:
    cameras = Cameras.orbit([25.0, 140.0], 20.0, height=40, width=64)
    cameras.intrinsics[..., 0, 2] += 3.0
    points = torch.rand(50, 3) - 0.5

    def pixels(seen_by: Cameras, at: torch.Tensor) -> torch.Tensor:
        local = at @ seen_by.world_to_camera[:, :3, :3].mT + seen_by.world_to_camera[:, None, :3, 3]
        there = local @ seen_by.intrinsics.mT
        return there[..., :2] / there[..., 2:]

    straight, mirrored = pixels(cameras, points), pixels(cameras.mirrored(), points * torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(mirrored, torch.stack([64 - straight[..., 0], straight[..., 1]], -1), atol=1e-4, rtol=0)


def test_cameras_refuse() -> None:
    good = Cameras.orbit([0, 90])
    assert good.reshape(1, 2).batch_shape == (1, 2) and Cameras.stack([good, good]).batch_shape == (2, 2)
    cases: list[tuple[Any, str]] = [
        (lambda: Cameras(torch.eye(3), torch.eye(3), 4, 4), "world_to_camera must be"),
        (lambda: Cameras(torch.eye(4).expand(2, 4, 4), torch.eye(3), 4, 4), "intrinsics must be [2, 3, 3]"),
        (lambda: Cameras(torch.eye(4), torch.eye(3), 0, 4), "0 x 4"),
        (lambda: Cameras(torch.eye(4).long(), torch.eye(3).long(), 4, 4), "floating-point"),
        (lambda: Cameras.orbit([0], radius=0), "radius must be > 0"),
        (lambda: Cameras.orbit([0], 91.0), "[-90, 90]"),
        (lambda: intrinsics_from_fov(180, 4, 4), "(0, 180)"),
        (lambda: Cameras.stack([good, good.resized(8, 8)]), "one image size"),
        (lambda: Cameras.stack([]), "at least one"),
    ]
    for build, message in cases:
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            build()


def test_views() -> None:
    cameras = Cameras.orbit([0, 90], height=4, width=6)
    images = torch.zeros(2, 4, 4, 6)
    images[:, 0], images[:, 3] = 0.8, 0.25
    views = Views(images, cameras)
    assert views.num_views == 2 and views.to(torch.float64).images.dtype == torch.float64
    over = views.composited((1.0, 0.5, 0.0))
    assert over.shape == (2, 3, 4, 6)
    torch.testing.assert_close(over[0, :, 0, 0], torch.tensor([0.8 * 0.25 + 0.75, 0.375, 0.0]))
    cases: list[tuple[Any, str]] = [
        (lambda: Views(images[:, :3], cameras), "RGBA"),
        (lambda: Views(images[0], cameras), "RGBA"),
        (lambda: Views(images.byte(), cameras), "floating point"),
        (lambda: Views(images[:1], cameras), "batch"),
        (lambda: Views(images, cameras.resized(6, 4)), "images are 4 x 6"),
    ]
    for build, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            build()


def test_mesh() -> None:
    vertices, faces = torch.eye(3), torch.tensor([[0, 1, 2]])
    texture = torch.zeros(2, 2, 4)
    mesh = Mesh(vertices, faces, materials=(Material(), Material(base_color_texture=texture)))
    moved = mesh.transformed(2.0, (0.0, 1.0, 0.0))
    assert moved.vertices[1].tolist() == [0, 3, 0] and moved.to("cpu").num_faces == 1
    assert Mesh(vertices[:0], faces[:0]).num_vertices == 0
    cases: list[tuple[Any, str]] = [
        (lambda: Mesh(vertices[:, :2], faces), "vertices must be float"),
        (lambda: Mesh(vertices, faces.int()), "int64"),
        (lambda: Mesh(vertices, faces + 1), "index the 3 vertices"),
        (lambda: Mesh(vertices, faces - 1), "index the 3 vertices"),
        (lambda: Mesh(vertices, faces, normals=torch.zeros(2, 3)), "normals must be [3, 3]"),
        (lambda: Mesh(vertices, faces, uvs=torch.zeros(3, 3)), "uvs must be [3, 2]"),
        (lambda: Mesh(vertices, faces, vertex_colors=torch.zeros(3, 3)), "vertex_colors must be [3, 4]"),
        (lambda: Mesh(vertices, faces, materials=()), "at least one"),
        (lambda: Mesh(vertices, faces, face_materials=torch.tensor([1])), "index the 1 materials"),
        (lambda: Mesh(vertices, faces, face_materials=torch.tensor([0, 0])), "int64 [1]"),
        (lambda: mesh.transformed(0.0), "scale must be > 0"),
        (lambda: Material(base_color_texture=torch.zeros(2, 2, 3)), "[H, W, 4]"),
        (lambda: Material(base_color=(1.0, 1.0, 1.0)), "4 values"),
    ]
    for build, message in cases:
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            build()
