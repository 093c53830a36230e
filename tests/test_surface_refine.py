"""Remeshing and refinement by normals: topology, volumes, no fold, regions that stay, files, errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy import spatial
from torch.nn import functional

import maquette
from maquette import cli
from maquette.cameras import Cameras
from maquette.errors import FileFormatError, InvalidInputError
from maquette.mesh import Mesh
from maquette.raster.mesh import rasterize_mesh
from maquette.raster.shading import interpolate
from maquette.surface.folds import folded
from maquette.surface.manifold import topology, unique_edges
from maquette.surface.normal_maps import NormalMaps, read_normal_maps
from maquette.surface.refine import RefineOptions, refine
from maquette.surface.remesh import Patch, remeshed
from maquette.views import Views

ANGLES = ([0.0, 60, 120, 180, 240, 300, 30, 200], [0.0, 30, -20, 10, 40, -30, 80, -80])


def to_mesh(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(torch.tensor(np.asarray(shape.vertices)).float(), torch.tensor(np.asarray(shape.faces)).long())


def ball(radius: float = 0.5, subdivisions: int = 3) -> Mesh:
    return to_mesh(trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius))


def ellipsoid() -> trimesh.Trimesh:
    shape = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    shape.apply_scale([0.7, 1.1, 0.9])
    return shape


def maps_of(shape: trimesh.Trimesh, size: int = 64) -> NormalMaps:
    cameras = Cameras.orbit(*ANGLES, height=size, width=size)
    vertices, faces = torch.tensor(np.asarray(shape.vertices)).float(), torch.tensor(np.asarray(shape.faces)).long()
    fragments = rasterize_mesh(vertices, faces, cameras)
    normals = torch.tensor(np.asarray(shape.vertex_normals)).float()
    shown = interpolate(normals, faces, fragments.triangle_id, fragments.barycentrics)
    return NormalMaps(cameras, functional.normalize(shown, dim=-1), (fragments.triangle_id >= 0).float())


def checked(mesh: Mesh) -> trimesh.Trimesh:
    """Closed, without folds or triangles without area."""
    points, faces = mesh.vertices.double().numpy(), mesh.faces.numpy()
    assert topology(points, faces).watertight
    assert not folded(points, faces).any()
    solid = trimesh.Trimesh(points, faces, process=False)
    assert solid.is_watertight and solid.is_winding_consistent and solid.area_faces.min() > 0
    assert (solid.vertex_normals[faces] * solid.face_normals[:, None]).sum(axis=-1).mean(axis=1).min() > 0
    return solid


def patch_of(shape: trimesh.Trimesh, length: float) -> Patch:
    points = np.asarray(shape.vertices, np.float64)
    return Patch(
        np.concatenate([points, np.full((len(points), 1), length)], axis=1),
        np.asarray(shape.faces, np.int64),
        np.zeros(len(points), bool),
    )


@pytest.mark.parametrize("length", [0.06, 0.14])
def test_remeshing_reaches_the_wanted_length_and_keeps_the_shape(length: float) -> None:
    shape = trimesh.creation.torus(0.5, 0.2, major_sections=40, minor_sections=16)
    patch = patch_of(shape, length)
    for _ in range(25):
        patch = remeshed(patch)
    edges, _ = unique_edges(patch.faces)
    lengths = np.linalg.norm(patch.state[edges[:, 0], :3] - patch.state[edges[:, 1], :3], axis=1)
    assert np.median(lengths) == pytest.approx(length, rel=0.5)
    assert (lengths < 1.55 * length).mean() > 0.99 and (lengths > 0.4 * length).mean() > 0.95
    result = trimesh.Trimesh(patch.state[:, :3], patch.faces, process=False)
    assert result.is_watertight and result.euler_number == 0 and result.is_winding_consistent
    assert result.volume == pytest.approx(shape.volume, rel=0.02 if length < 0.1 else 0.15)


def test_frozen_vertices_keep_their_edges() -> None:
    patch = patch_of(trimesh.creation.icosphere(subdivisions=3), 0.05)
    frozen = patch.state[:, 0] > 0
    kept = patch.faces[frozen[patch.faces].all(axis=1)]
    corners = patch.state[kept, :3]
    for _ in range(4):
        patch = remeshed(Patch(patch.state, patch.faces, frozen if len(frozen) == len(patch.state) else patch.frozen))
    assert len(patch.faces) > 2 * 1280 * 0.6
    after = {tuple(np.round(c, 12).ravel()) for c in patch.state[patch.faces, :3]}
    assert all(
        any(tuple(np.round(np.roll(c, -turn, axis=0), 12).ravel()) in after for turn in range(3)) for c in corners
    )


def test_refinement_of_a_ball_towards_an_ellipsoid() -> None:
    goal = ellipsoid()
    steps: list[int] = []
    mesh = refine(ball(), maps_of(goal), RefineOptions(steps=35), progress=lambda done, _: steps.append(done))
    assert steps == list(range(1, 36))
    solid = checked(mesh)
    assert solid.euler_number == 2
    assert solid.volume == pytest.approx(goal.volume, rel=0.05)
    scaled = np.asarray(solid.vertices) / [0.35, 0.55, 0.45]
    before = np.asarray(ball().vertices) / [0.35, 0.55, 0.45]
    error, start = (np.abs(np.linalg.norm(v, axis=1) - 1).mean() for v in (scaled, before))
    assert error < start / 5


def test_corners_of_a_cube_appear_without_folds() -> None:
    cube = trimesh.creation.box((0.7, 0.7, 0.7))
    cube.unmerge_vertices()
    solid = checked(refine(ball(), maps_of(cube), RefineOptions(steps=35)))
    assert solid.volume == pytest.approx(0.343, rel=0.12)
    assert solid.extents == pytest.approx([0.7, 0.7, 0.7], abs=0.08)


def test_region_changes_and_nothing_else_does() -> None:
    start, maps = ball(subdivisions=4), maps_of(ellipsoid(), 96)
    region = torch.zeros(96, 96)
    region[30:60, 30:60] = 1
    edited = refine(start, maps, RefineOptions(steps=15), region=region, region_view=0)
    checked(edited)
    pixels = maps.cameras.world_to_camera[0, :3, :3] @ start.vertices.T + maps.cameras.world_to_camera[0, :3, 3:]
    focal = float(maps.cameras.intrinsics[0, 0, 0])
    u, v = focal * pixels[0] / pixels[2] + 48, focal * pixels[1] / pixels[2] + 48
    outside = (u < 29) | (u > 61) | (v < 29) | (v > 61) | (start.vertices[:, 2] < 0)
    tree = spatial.cKDTree(edited.vertices.numpy())
    assert float(tree.query(start.vertices[outside].numpy())[0].max()) < 1e-6
    inside = ~outside & (start.vertices[:, 2] > 0.3)
    assert float(tree.query(start.vertices[inside].numpy())[0].max()) > 0.01
    for wrong, view, message in (
        (torch.zeros(96, 96), 0, "empty"),
        (torch.ones(9, 9), 0, "size"),
        (region, 8, "must lie in"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            refine(start, maps, RefineOptions(steps=1), region=wrong, region_view=view)


def test_halved_maps_keep_coverage_and_unit_normals_and_project_the_same() -> None:
    maps = maps_of(ellipsoid(), 64)
    half = maps.halved()
    assert half.alpha.shape[1:] == (32, 32)
    torch.testing.assert_close(half.alpha.mean(), maps.alpha.mean())
    torch.testing.assert_close(half.normals.norm(dim=-1)[half.alpha > 0], torch.ones(int((half.alpha > 0).sum())))
    torch.testing.assert_close(half.cameras.intrinsics[:, :2] * 2, maps.cameras.intrinsics[:, :2])


def test_open_meshes_and_wrong_options_are_refused() -> None:
    closed = ball(subdivisions=1)
    with pytest.raises(InvalidInputError, match="closed mesh"):
        refine(Mesh(closed.vertices, closed.faces[1:]), maps_of(ellipsoid()))
    fin = torch.cat([closed.faces, torch.tensor([[*closed.faces[0, :2].tolist(), len(closed.vertices)]])])
    with pytest.raises(InvalidInputError, match="1 of more than two triangles"):
        refine(Mesh(torch.cat([closed.vertices, torch.tensor([[0.0, 1, 0]])]), fin), maps_of(ellipsoid()))
    for wrong in ({"steps": 0}, {"rate": 2.0}, {"edge_lengths": (0.2, 0.1)}, {"laplacian": -1.0}):
        with pytest.raises(InvalidInputError):
            RefineOptions(**wrong)  # type: ignore[arg-type]


def test_two_bodies_that_touch_in_one_vertex_are_refined_soundly() -> None:
    one = ball(subdivisions=1)
    top = int(one.vertices[:, 1].argmax())
    other = torch.where(one.faces == top, top, one.faces + len(one.vertices))  # the second body hangs on the first
    mirrored = one.vertices * torch.tensor([1.0, -1, 1]) + torch.tensor([0, 2 * float(one.vertices[top, 1]), 0])
    vertices = torch.cat([one.vertices, mirrored]) * 0.4
    made = refine(Mesh(vertices, torch.cat([one.faces, other.flip(1)])), maps_of(ellipsoid()), RefineOptions(steps=3))
    assert bool(torch.isfinite(made.vertices).all()) and made.num_faces > 0


def write_maps(folder: Path, maps: NormalMaps, axes: str) -> None:
    images = torch.cat([torch.full_like(maps.normals, 0.5).permute(0, 3, 1, 2), maps.alpha[:, None]], dim=1)
    maquette.write_views(folder, Views(images, maps.cameras))
    content = json.loads((folder / "transforms.json").read_text())
    content["normal_axes"] = axes
    normals = maps.normals
    if axes == "camera":
        turned = torch.einsum("vij,vhwj->vhwi", maps.cameras.world_to_camera[:, :3, :3], normals)
        normals = turned * torch.tensor([1.0, -1, -1])
    (folder / "normal").mkdir()
    for index, frame in enumerate(content["frames"]):
        frame["normal_file_path"] = f"normal/{index}.png"
        pixels = ((normals[index] + 1) * 127.5).round().byte().numpy()
        Image.fromarray(pixels).save(folder / "normal" / f"{index}.png")
    (folder / "transforms.json").write_text(json.dumps(content))


@pytest.mark.parametrize("axes", ["world", "camera"])
def test_normal_maps_are_read(tmp_path: Path, axes: str) -> None:
    maps = maps_of(ellipsoid(), 32)
    write_maps(tmp_path / "maps", maps, axes)
    read = read_normal_maps(tmp_path / "maps", frames=[2, 5])
    chosen = torch.tensor([2, 5])
    seen = maps.alpha[chosen] > 0
    torch.testing.assert_close(read.alpha, maps.alpha[chosen])
    torch.testing.assert_close(read.normals[seen], maps.normals[chosen][seen], atol=0.01, rtol=0)
    content = json.loads((tmp_path / "maps" / "transforms.json").read_text())
    del content["frames"][0]["normal_file_path"]
    (tmp_path / "maps" / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match="normal_file_path"):
        read_normal_maps(tmp_path / "maps")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_maps(tmp_path / "maps", maps_of(ellipsoid(), 32), "world")
    maquette.write_mesh(tmp_path / "ball.stl", ball(subdivisions=2))
    target = tmp_path / "out.glb"
    words = ["refine", str(tmp_path / "ball.stl"), "--normals", str(tmp_path / "maps"), "-o", str(target)]
    assert cli.main([*words, "--steps", "3", "--finest", "0.1"]) == 0
    assert "triangles" in capsys.readouterr().out
    checked(maquette.read_mesh(target))
    from_hull = ["refine", "--normals", str(tmp_path / "maps"), "-o", str(tmp_path / "hull.stl"), "--finest", "0.1"]
    assert cli.main([*from_hull, "--steps", "2"]) == 0
    assert checked(maquette.read_mesh(tmp_path / "hull.stl")).volume == pytest.approx(ellipsoid().volume, rel=0.3)
    assert cli.main([*words, "--frames", "x"]) == 1
    assert "--frames" in capsys.readouterr().err
