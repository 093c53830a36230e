"""Edits of a painted region: what moves, what stays, no triangle turned over, colours kept, undo."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import trimesh
from scipy import spatial

from edit_scenes import RADIUS, rough_ball, shell, textured
from maquette.app.editing import EditHistory, EditView, depth_normals, refine_region, smooth_region, view_picture
from maquette.app.page_edit import painted_region
from maquette.errors import InvalidInputError
from maquette.mesh import Mesh
from maquette.rendering import render
from maquette.surface.folds import folded
from maquette.surface.manifold import topology
from maquette.surface.recolor import recolored

SIZE = 128
FRONT = EditView(image_size=SIZE)


def disc(radius_px: float, size: int = SIZE) -> torch.Tensor:
    """A painted disc in the middle."""
    axis = torch.arange(size) + 0.5 - size / 2
    return (axis[:, None] ** 2 + axis[None, :] ** 2 < radius_px**2).float()


def on_screen(points: torch.Tensor, view: EditView) -> torch.Tensor:
    """Distance from the middle of the picture, in pixels."""
    camera = view.camera()
    seen = points @ camera.world_to_camera[0, :3, :3].T + camera.world_to_camera[0, :3, 3]
    return float(camera.intrinsics[0, 0, 0]) * (seen[:, :2] / seen[:, 2:]).norm(dim=1)


def check_shape(mesh: Mesh) -> None:
    points, index = np.unique(mesh.vertices.double().numpy(), axis=0, return_inverse=True)
    faces = index.reshape(-1)[mesh.faces.numpy()]
    assert topology(points, faces).watertight
    assert not folded(points, faces).any()


def roughness(vertices: torch.Tensor) -> float:
    return float(vertices.norm(dim=1).std())


def test_smoothing_takes_bumps_in_the_region_and_nothing_else() -> None:
    mesh, region = textured(rough_ball()), disc(24)
    smooth = smooth_region(mesh, region, FRONT, strength=4)
    away = on_screen(mesh.vertices, FRONT)
    inside, outside = (away < 16) & (mesh.vertices[:, 2] > 0), (away > 25) | (mesh.vertices[:, 2] < 0)
    assert int(inside.sum()) > 25
    assert float((smooth.vertices - mesh.vertices)[outside].norm(dim=1).max()) == 0
    assert roughness(smooth.vertices[inside]) < 0.35 * roughness(mesh.vertices[inside])
    assert float(smooth.vertices[inside].norm(dim=1).mean()) == pytest.approx(RADIUS, rel=0.01)  # it does not shrink
    assert torch.equal(smooth.faces, mesh.faces) and smooth.uvs is mesh.uvs
    assert smooth.materials[0].base_color_texture is mesh.materials[0].base_color_texture
    check_shape(smooth)
    before = np.asarray(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).face_normals)
    after = np.asarray(trimesh.Trimesh(smooth.vertices, smooth.faces, process=False).face_normals)
    assert (before * after).sum(axis=1).min() > 0
    assert smooth.normals is not None
    assert float((smooth.normals.norm(dim=1) - 1).abs().max()) < 1e-5


def test_strength_counts() -> None:
    mesh, region = textured(rough_ball(subdivisions=3)), disc(30)
    inside = (on_screen(mesh.vertices, FRONT) < 20) & (mesh.vertices[:, 2] > 0)
    left = [roughness(smooth_region(mesh, region, FRONT, strength=s).vertices[inside]) for s in (1, 8)]
    assert left[1] < left[0] < roughness(mesh.vertices[inside])


def test_only_what_the_view_sees_moves() -> None:
    """A region that covers the whole picture leaves the back alone; the view from the left sees +X."""
    mesh = textured(rough_ball())
    smooth = smooth_region(mesh, torch.ones(SIZE, SIZE), EditView(90.0, image_size=SIZE))
    moved = (smooth.vertices - mesh.vertices).norm(dim=1) > 1e-5
    assert moved[mesh.vertices[:, 0] > 0.25].float().mean() > 0.9
    assert not moved[mesh.vertices[:, 0] < 0].any()


def test_refinement_brings_back_what_the_gaussians_show() -> None:
    """A ball with a dent: in the region it becomes round again, as the Gaussians are; colours stay in place."""
    shape = rough_ball(0.0, 4)
    vertices = np.asarray(shape.vertices)
    dent = np.exp(-((vertices[:, 0] / 0.12) ** 2 + (vertices[:, 1] / 0.12) ** 2)) * (vertices[:, 2] > 0)
    mesh = textured(trimesh.Trimesh(vertices * (1 - 0.06 * dent)[:, None], shape.faces, process=False))
    told: list[int] = []
    refined = refine_region(
        mesh, shell(RADIUS), disc(30), FRONT, steps=25, finest=0.06, progress=lambda done, _: told.append(done)
    )
    assert told == list(range(1, 26))
    check_shape(refined)

    def dented(vertices: torch.Tensor) -> float:
        middle = (on_screen(vertices, FRONT) < 12) & (vertices[:, 2] > 0)
        radii = vertices[middle].norm(dim=1)
        return float(radii.max() - radii.min())

    assert dented(refined.vertices) < 0.6 * dented(mesh.vertices)
    far = (on_screen(mesh.vertices, FRONT) > 32) | (mesh.vertices[:, 2] < 0)
    distance, _ = spatial.cKDTree(refined.vertices.numpy()).query(mesh.vertices[far].numpy())
    assert distance.max() < 1e-6
    for view in (FRONT, EditView(180.0, 10.0, image_size=SIZE)):
        pictures = [render(m, view.camera(), lighting="unlit")[0] for m in (mesh, refined)]
        assert float((pictures[0] - pictures[1]).abs().mean()) < 0.01


def test_normals_of_depth_are_those_of_the_gaussians_surface() -> None:
    shape = rough_ball(0.0, 4)
    cameras = EditView(30.0, 20.0, image_size=SIZE).cameras_around()
    maps = depth_normals(shell(RADIUS), np.asarray(shape.vertices), np.asarray(shape.faces, np.int64), cameras)
    assert maps.normals.shape == (5, SIZE, SIZE, 3)
    origins, directions = cameras.rays()
    along = (origins * directions).sum(dim=-1)
    hit = along**2 - (origins**2).sum(dim=-1) + RADIUS**2
    points = origins + directions * (-along - hit.clamp_min(0).sqrt())[..., None]
    truth = torch.nn.functional.normalize(points, dim=-1)
    inner = hit > 0.1
    angle = (maps.normals * truth).sum(dim=-1)[inner].clamp(-1, 1).acos().rad2deg()
    assert float(angle.mean()) < 6 and float(angle.quantile(0.99)) < 15


def test_refinement_ignores_gaussians_that_are_elsewhere() -> None:
    """Depth far from the mesh is of something else: the normals are the mesh's own."""
    shape = rough_ball(0.0, 4)
    points, faces = np.asarray(shape.vertices), np.asarray(shape.faces, np.int64)
    camera = FRONT.camera()
    own, other = (depth_normals(shell(radius), points, faces, camera) for radius in (RADIUS, 0.3))
    seen = own.alpha[0] > 0
    exact = other.normals[0][seen]
    flat = depth_normals(shell(RADIUS).map(lambda value: value[:1]), points, faces, camera).normals[0][seen]
    assert torch.equal(exact, flat)


def test_recoloring_without_a_texture_keeps_vertex_colors() -> None:
    shape = rough_ball(0.0, 2)
    colors = torch.rand(len(shape.vertices), 4, generator=torch.Generator().manual_seed(0))
    like = Mesh(torch.from_numpy(shape.vertices).float(), torch.from_numpy(shape.faces).long(), vertex_colors=colors)
    moved = recolored(np.asarray(shape.vertices) * 1.01, np.asarray(shape.faces, np.int64), like)
    assert moved.vertex_colors is not None and torch.equal(moved.vertex_colors, colors)
    plain = recolored(
        np.asarray(shape.vertices), np.asarray(shape.faces, np.int64), dataclasses.replace(like, vertex_colors=None)
    )
    assert plain.vertex_colors is None and plain.uvs is None


def test_history_undoes_in_order_and_forgets_the_oldest() -> None:
    meshes = [textured(rough_ball(subdivisions=1)) for _ in range(4)]
    history = EditHistory((meshes[0],), limit=3)
    for mesh in meshes[1:]:
        history = history.edited(mesh)
    assert history.num_undos == 2 and history.mesh is meshes[3]
    assert history.undone().mesh is meshes[2] and history.undone().undone().mesh is meshes[1]
    with pytest.raises(InvalidInputError, match="no edit to undo"):
        history.undone().undone().undone()


def test_pictures_of_views() -> None:
    mesh = textured(rough_ball(0.0))
    colors = view_picture(mesh, EditView(0.0, 0.0, "color", SIZE))
    assert colors.shape == (3, SIZE, SIZE) and float(colors[:, 0, 0].min()) == 1
    right, left = colors[:, 64, 90], colors[:, 64, 38]  # +X is on the right of the picture from the front
    assert (left[0] > left[2] and right[2] > right[0]) or (left[2] > left[0] and right[0] > right[2])
    normals = view_picture(mesh, FRONT)
    assert normals[:, 64, 64].tolist() == pytest.approx([0.5, 0.5, 1.0], abs=0.02)
    assert float(normals[0, 64, 95]) > 0.7 and float(normals[1, 33, 64]) > 0.7


def test_what_is_wrong_is_said() -> None:
    mesh = textured(rough_ball(subdivisions=2))
    corner = torch.zeros(SIZE, SIZE)
    corner[:8, :8] = 1
    with pytest.raises(InvalidInputError, match="not seen in it"):
        smooth_region(mesh, corner, FRONT)
    with pytest.raises(InvalidInputError, match="not seen in it"):
        refine_region(mesh, shell(RADIUS, 100), corner, FRONT)
    with pytest.raises(InvalidInputError, match="128 x 128"):
        smooth_region(mesh, torch.ones(9, 9), FRONT)
    with pytest.raises(InvalidInputError, match=r"1\.\.10, got 0"):
        smooth_region(mesh, disc(20), FRONT, strength=0)
    for wrong in ({"elevation_deg": 91.0}, {"shows": "bones"}, {"image_size": 5000}):
        with pytest.raises(InvalidInputError):
            EditView(**wrong)  # type: ignore[arg-type]


def test_regions_come_from_what_the_brush_left() -> None:
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[10:20, 30:40, 3] = 150
    empty = np.zeros_like(layer)
    region = painted_region({"layers": [empty, layer]}, 128)
    assert region.shape == (128, 128) and float(region.sum()) == 20 * 20
    assert float(region[20:40, 60:80].min()) == 1
    for nothing in (None, {}, {"layers": []}, {"layers": [empty]}):
        with pytest.raises(InvalidInputError, match="nothing is painted"):
            painted_region(nothing)
