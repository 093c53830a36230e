"""Closed meshes of few triangles with textures: topology, decimation, fields, unwrapping, baking, the fit, reports."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

import maquette
from maquette.cameras import Cameras
from maquette.conversion import convert, report_path
from maquette.errors import InvalidInputError, UnsupportedError
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.rendering import render
from maquette.surface import SurfaceOptions, field_mesh, gaussians_to_asset
from maquette.surface.bake import chart_texels, dilate
from maquette.surface.decimate import decimate
from maquette.surface.fields import sample_field
from maquette.surface.manifold import separate_sheets, topology
from maquette.surface.report import likeness_to
from maquette.surface.unwrap import unwrap
from maquette.surface.volume import clean_volume

SIGMA = 0.018
SMALL = SurfaceOptions(resolution=64, num_faces=1500, texture_size=256, fast=True, fit_steps=0)


def sphere_gaussians(count: int = 7000) -> Gaussians:
    """Radius 0.5; the upper half red and the lower one blue."""
    points = torch.nn.functional.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    colors = torch.where(points[:, 1:2] > 0, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.8]))
    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4)
    return Gaussians(points * 0.5, quats, torch.full((count, 3), SIGMA), torch.full((count,), 0.95), colors)


def as_trimesh(vertices: np.ndarray, faces: np.ndarray) -> trimesh.Trimesh:
    return trimesh.Trimesh(vertices, faces, process=False)


def two_cubes(offset: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Two unit cubes whose vertices at one position are one vertex."""
    first, second = trimesh.creation.box(), trimesh.creation.box()
    second.apply_translation(offset)
    joined = trimesh.util.concatenate([first, second])
    points, index = np.unique(joined.vertices, axis=0, return_inverse=True)
    return points, index.reshape(-1)[joined.faces].astype(np.int64)


@pytest.mark.parametrize("offset", [(1.0, 1.0, 0.0), (1.0, 1.0, 1.0)], ids=["edge", "corner"])
def test_touching_cubes_become_manifold(offset: tuple[float, float, float]) -> None:
    vertices, faces = two_cubes(offset)
    before = topology(vertices, faces)
    assert not before.watertight
    points, triangles = separate_sheets(vertices, faces)
    after = topology(points, triangles)
    assert after.watertight and after.components == 2 and after.bad_edges == 0
    assert after.volume == pytest.approx(2, rel=0.05)
    solid = trimesh.Trimesh(points, triangles)  # merges what lies at one position
    assert solid.is_watertight and solid.body_count == 2


def test_doubled_walls_cancel_and_cubes_side_by_side_become_one_block() -> None:
    cube = trimesh.creation.box()
    mirrored = trimesh.Trimesh(cube.vertices * [-1, 1, 1] + [1, 0, 0], cube.faces[:, ::-1], process=False)
    joined = trimesh.util.concatenate([cube, mirrored])
    vertices, index = np.unique(joined.vertices, axis=0, return_inverse=True)
    points, triangles = separate_sheets(vertices, index.reshape(-1)[joined.faces].astype(np.int64))
    block = topology(points, triangles)
    assert block.watertight and block.components == 1
    assert block.volume == pytest.approx(2) and block.area == pytest.approx(10)


def test_ring_of_cubes_that_touch_in_edges_only() -> None:
    """Sheets that meet twice between the same two vertices need vertices on the edges."""
    cells = np.zeros((4, 4, 3), bool)
    cells[0, 0], cells[1, 1], cells[2, 0], cells[3, 1] = True, True, True, True
    cells[1, 0, 0] = cells[1, 0, 2] = True
    boxes = [trimesh.creation.box(transform=trimesh.transformations.translation_matrix(c)) for c in np.argwhere(cells)]
    joined = trimesh.util.concatenate(boxes)
    points, index = np.unique(joined.vertices, axis=0, return_inverse=True)
    fixed = separate_sheets(points, index.reshape(-1)[joined.faces].astype(np.int64))
    shape = topology(*fixed)
    assert shape.watertight
    assert shape.volume == pytest.approx(int(cells.sum()), rel=0.03)
    assert as_trimesh(*fixed).is_watertight


def test_topology_agrees_with_trimesh() -> None:
    torus = trimesh.creation.torus(0.5, 0.2)
    shape = topology(np.asarray(torus.vertices), np.asarray(torus.faces, np.int64))
    assert shape.watertight and shape.components == 1
    assert shape.volume == pytest.approx(torus.volume) and shape.area == pytest.approx(torus.area)
    opened = topology(np.asarray(torus.vertices), np.asarray(torus.faces[1:], np.int64))
    assert not opened.watertight and opened.boundary_edges == 3
    flipped = np.asarray(torus.faces, np.int64).copy()
    flipped[0] = flipped[0, ::-1]
    assert topology(np.asarray(torus.vertices), flipped).bad_edges == 3
    assert not topology(np.zeros((3, 3)), np.zeros((1, 3), np.int64)).watertight


def test_decimation_of_thin_random_solids_stays_watertight() -> None:
    """Thresholded noise: handles, thin bridges, touching sheets."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 40, 40)), 2).astype(np.float32)
    from maquette.surface.triangles import marching_cubes

    vertices, faces = marching_cubes(clean_volume(noise, 0.0), 0.0)
    whole = topology(*separate_sheets(vertices, faces))
    assert whole.watertight
    for target in (6000, 1500, 400):
        points, triangles = decimate(vertices, faces, target)
        assert len(triangles) <= target * 1.1
        solid = as_trimesh(points, triangles)
        assert solid.is_watertight and solid.is_winding_consistent
        assert topology(points, triangles).watertight
    points, triangles = decimate(vertices, faces, 6000)
    assert topology(points, triangles).volume == pytest.approx(whole.volume, rel=0.03)


def ring_field(points: torch.Tensor) -> torch.Tensor:
    """A torus: signed distance, positive inside."""
    around = torch.stack([points[:, [0, 2]].norm(dim=1) - 0.55, points[:, 1]], dim=1)
    return 0.2 - around.norm(dim=1)


def wavy_field(points: torch.Tensor) -> torch.Tensor:
    return 0.6 - points.norm(dim=1) + 0.05 * torch.sin(20 * points).sum(dim=1)


@pytest.mark.parametrize("field", [ring_field, wavy_field])
def test_hierarchical_queries_give_the_dense_surface(field: object) -> None:
    box = ((-1.0, -1.0, -1.0), (1.0, 0.8, 1.0))
    assert callable(field)
    dense, all_points = sample_field(field, *box, 97, levels=0)
    sparse, asked = sample_field(field, *box, 97, levels=3)
    assert dense.shape == sparse.shape == (97, 88, 97)
    assert np.array_equal(dense > 0, sparse > 0)
    assert asked < 0.15 * all_points
    full, fast = (field_mesh(field, *box, resolution=97, levels=levels) for levels in (0, 3))
    assert torch.equal(full.vertices, fast.vertices) and torch.equal(full.faces, fast.faces)


def test_field_mesh_has_the_volume_of_the_torus_without_hidden_interior() -> None:
    def hollow(points: torch.Tensor) -> torch.Tensor:
        shell = 0.06 - (ring_field(points) - 0.06).abs()  # walls only
        return torch.maximum(shell, 0.03 - (points - torch.tensor([0.0, 0.9, 0.0])).norm(dim=1))  # and a speck

    mesh = field_mesh(hollow, resolution=128)
    solid = as_trimesh(mesh.vertices.numpy(), mesh.faces.numpy())
    assert solid.is_watertight and solid.body_count == 1 and solid.euler_number == 0
    assert solid.volume == pytest.approx(2 * np.pi**2 * 0.55 * 0.2**2, rel=0.01)
    with pytest.raises(InvalidInputError, match="no surface"):
        field_mesh(lambda points: -torch.ones(len(points)), resolution=32)
    with pytest.raises(InvalidInputError, match="resolution"):
        field_mesh(ring_field, resolution=4)


def test_unwrapped_charts_do_not_overlap_and_texels_lie_on_the_surface() -> None:
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    vertices, faces = np.asarray(ball.vertices), np.asarray(ball.faces, np.int64)
    cut = unwrap(vertices, faces, 256)
    assert np.array_equal(cut.origins[cut.faces], faces)
    assert cut.uvs.min() >= 0 and cut.uvs.max() <= 1
    points, normals = torch.tensor(vertices[cut.origins]).float(), torch.tensor(vertices[cut.origins] * 2).float()
    charts = chart_texels(points, normals, torch.from_numpy(cut.uvs), torch.from_numpy(cut.faces), 256)
    mapped = cut.uvs[cut.faces]
    first, second = mapped[:, 1] - mapped[:, 0], mapped[:, 2] - mapped[:, 0]
    used = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).sum() / 2
    assert charts.covered.mean() == pytest.approx(used, abs=0.02)  # overlaps would cover less than they use
    assert used > 0.4
    radius = np.linalg.norm(charts.points, axis=1)
    assert radius.min() > 0.49 and radius.max() < 0.5001
    assert (charts.points / radius[:, None] * charts.normals).sum(axis=1).min() > 0.999


def test_dilation_takes_the_nearest_texel() -> None:
    texture, covered = np.zeros((5, 6, 1), np.float32), np.zeros((5, 6), bool)
    texture[2, 1], texture[2, 4] = 1, 2
    covered[2, 1] = covered[2, 4] = True
    spread = dilate(texture, covered)[..., 0]
    assert (spread[:, :2] == 1).all() and (spread[:, 4:] == 2).all()


def test_textured_sphere_and_its_report() -> None:
    result = gaussians_to_asset(sphere_gaussians(), SMALL)
    mesh, report = result.mesh, result.report
    assert mesh.uvs is not None and mesh.normals is not None and mesh.vertex_colors is None
    material = mesh.materials[0]
    assert material.metallic == 0 and material.roughness == 1
    assert material.base_color_texture is not None and material.base_color_texture.shape == (256, 256, 4)
    radius = float(mesh.vertices.norm(dim=1).mean())
    assert radius == pytest.approx(0.5 + 2 * SIGMA, abs=SIGMA)
    assert report.triangles == mesh.num_faces <= 1500 and report.watertight and report.components == 1
    assert report.volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)
    assert report.area == pytest.approx(4 * np.pi * radius**2, rel=0.03)
    assert report.psnr_db is not None and report.psnr_limit_db is not None
    assert 15 < report.psnr_db < report.psnr_limit_db
    assert list(report.seconds) == [
        f"mesh: {name}" for name in ("render", "surface", "simplify", "pictures", "unwrap", "bake", "measure")
    ]
    up, down = Cameras.orbit([0.0], 89.0, height=64, width=64), Cameras.orbit([0.0], -89.0, height=64, width=64)
    for camera, color in ((up, (0.9, 0.1, 0.1)), (down, (0.1, 0.2, 0.8))):
        picture = render(mesh, camera, lighting="unlit")[0, :, 24:40, 24:40]
        torch.testing.assert_close(picture.mean(dim=(1, 2)), torch.tensor(color), atol=0.03, rtol=0)


def test_likeness_is_what_the_supersampling_renderer_sees() -> None:
    given = sphere_gaussians()
    mesh = gaussians_to_asset(given, dataclasses.replace(SMALL, measure=False)).mesh
    measured, _ = likeness_to(given, mesh, torch.tensor([0.1, 0.0, 0.0]), 0.6)
    azimuths, elevations = [22.5 + 45 * i for i in range(8)], [-10.0, 0, 10, 20, 30, 20, 10, 0]
    fov = 2 * float(np.degrees(np.arcsin(1.03 / 3)))
    cameras = Cameras.orbit(
        azimuths, elevations, radius=1.8, fov_deg=fov, height=512, width=512, target=(0.1, 0.0, 0.0)
    )
    error = (render(mesh, cameras, lighting="unlit") - render(given, cameras)).square().flatten(1).mean(dim=1)
    assert measured == pytest.approx(float((-10 * error.log10()).mean()), abs=0.3)


def test_fit_comes_nearer_to_the_pictures_and_stays_closed() -> None:
    given = sphere_gaussians()
    plain = gaussians_to_asset(given, SMALL)
    fitted = gaussians_to_asset(
        given, SurfaceOptions(resolution=64, num_faces=1500, texture_size=256, fit_steps=25, watertight=True)
    )
    assert plain.report.psnr_db is not None and fitted.report.psnr_db is not None
    assert fitted.report.psnr_db > plain.report.psnr_db + 0.1
    assert fitted.report.watertight and fitted.report.triangles == plain.report.triangles
    assert "mesh: fit" in fitted.report.seconds


def test_a_fit_that_does_not_help_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    given, options = sphere_gaussians(), dataclasses.replace(SMALL, measure=False)
    monkeypatch.setattr(
        "maquette.surface.convert.fit_vertices", lambda captures, points, faces, colors, **_: points * 0.9
    )
    spoiled = gaussians_to_asset(given, dataclasses.replace(options, fit_steps=1)).mesh
    torch.testing.assert_close(spoiled.vertices, gaussians_to_asset(given, options).mesh.vertices)


def test_conversions_write_reports(tmp_path: Path) -> None:
    source = tmp_path / "ball.ply"
    maquette.write_gaussians(source, sphere_gaussians(3000))
    for suffix in (".glb", ".obj", ".stl"):
        target = tmp_path / f"ball{suffix}"
        convert(source, target, options=dataclasses.replace(SMALL, measure=False))
        report = json.loads(report_path(target).read_text())
        solid = trimesh.load(target, force="mesh")
        solid.merge_vertices(merge_tex=True, merge_norm=True)
        assert solid.is_watertight and len(solid.faces) == report["triangles"]
        assert solid.volume == pytest.approx(report["volume"], rel=1e-3)
        assert report["source"] == "ball.ply" and report["gaussians"] == 3000 and report["watertight"]
    assert maquette.read_mesh(tmp_path / "ball.glb").materials[0].base_color_texture is not None
    colored = maquette.read_mesh(tmp_path / "ball.obj").vertex_colors
    assert colored is not None and float(colored[:, 0].max()) > 0.8
    convert(source, tmp_path / "mesh.ply", options=SMALL, as_mesh=True)
    assert maquette.read_mesh(tmp_path / "mesh.ply").vertex_colors is not None
    convert(source, tmp_path / "copy.splat")
    assert json.loads(report_path(tmp_path / "copy.splat").read_text())["gaussians"] == 3000


def test_meshes_are_simplified_and_checked(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(subdivisions=4)
    ball.export(tmp_path / "ball.stl")
    convert(tmp_path / "ball.stl", tmp_path / "small.ply", options=SurfaceOptions(num_faces=500, watertight=True))
    small = maquette.read_mesh(tmp_path / "small.ply")
    assert small.num_faces <= 500
    assert as_trimesh(small.vertices.numpy(), small.faces.numpy()).volume == pytest.approx(ball.volume, rel=0.03)
    trimesh.Trimesh(ball.vertices, ball.faces[1:]).export(tmp_path / "open.stl")
    with pytest.raises(InvalidInputError, match="not watertight"):
        convert(tmp_path / "open.stl", tmp_path / "closed.glb", options=SurfaceOptions(watertight=True))
    convert(tmp_path / "open.stl", tmp_path / "open.glb")
    assert json.loads(report_path(tmp_path / "open.glb").read_text())["watertight"] is False
    textured = tmp_path / "textured.glb"
    maquette.write_mesh(textured, gaussians_to_asset(sphere_gaussians(2000), SMALL).mesh)
    with pytest.raises(UnsupportedError, match="textures"):
        convert(textured, tmp_path / "x.glb", options=SurfaceOptions(num_faces=100))


def test_bad_input_is_refused_or_survived() -> None:
    one = sphere_gaussians(1)
    result = gaussians_to_asset(one, SMALL)
    assert result.report.watertight and result.report.volume is not None and result.report.volume > 0
    fog = Gaussians(*(getattr(sphere_gaussians(500), name) for name in ("means", "quats", "scales")),
                    torch.full((500,), 0.025), torch.ones(500, 3))  # fmt: skip
    for bad in (fog, one.select(torch.zeros(1, dtype=torch.bool))):
        with pytest.raises(InvalidInputError, match="no surface"):
            gaussians_to_asset(bad, SMALL)
    with pytest.raises(InvalidInputError, match="batch"):
        gaussians_to_asset(Gaussians.stack([one, one]), SMALL)
    for wrong in ({"num_faces": 3}, {"texture_size": 9}, {"fit_steps": -1}, {"resolution": 4}, {"method": "magic"}):
        with pytest.raises(InvalidInputError):
            SurfaceOptions(**wrong)  # type: ignore[arg-type]


def test_opaque_fog_is_a_solid_blob() -> None:
    generator = torch.Generator().manual_seed(0)
    count = 400
    cloud = Gaussians(
        torch.rand(count, 3, generator=generator) - 0.5,
        torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4),
        torch.full((count, 3), 0.1),
        torch.ones(count),
        torch.rand(count, 3, generator=generator),
    )
    report = gaussians_to_asset(cloud, SMALL).report
    assert report.watertight and report.volume is not None and 0.7 < report.volume < 3


def test_mesh_of_the_density_is_closed_too() -> None:
    result = gaussians_to_asset(sphere_gaussians(), SurfaceOptions("density", 64, 1500, "vertices", fast=True))
    assert isinstance(result.mesh, Mesh) and result.mesh.vertex_colors is not None and result.mesh.uvs is None
    assert result.report.watertight and result.report.vertices == result.report.triangles // 2 + 2
