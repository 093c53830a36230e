"""Meshes in .obj, .stl and .ply: round trips, trimesh as the other side, malformed files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from maquette.errors import FileFormatError, UnsupportedError
from maquette.gaussians import Gaussians
from maquette.io import asset_kind, read_gaussians, read_mesh, write_gaussians, write_mesh
from maquette.mesh import Mesh

SUFFIXES = [".obj", ".stl", ".ply", ".glb"]


def pyramid() -> Mesh:
    vertices = torch.tensor([[-1.0, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1], [0, 1.5, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [1, 0, 4], [2, 1, 4], [3, 2, 4], [0, 3, 4]])
    g = torch.Generator().manual_seed(0)
    colors = torch.cat([torch.rand(5, 3, generator=g), torch.ones(5, 1)], dim=1)
    normals = torch.nn.functional.normalize(vertices - torch.tensor([0, 0.5, 0]), dim=1)
    return Mesh(vertices, faces, normals=normals, uvs=torch.rand(5, 2, generator=g), vertex_colors=colors)


def volume(mesh: Mesh) -> float:
    a, b, c = mesh.vertices.double()[mesh.faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    given = pyramid()
    path = tmp_path / f"a{suffix}"
    write_mesh(path, given)
    assert asset_kind(path) == "mesh"
    got = read_mesh(path)
    torch.testing.assert_close(got.vertices[got.faces], given.vertices[given.faces], atol=1e-6, rtol=0)
    assert volume(got) == pytest.approx(2.0)
    assert got.num_vertices == 5
    if suffix == ".stl":
        return
    assert got.vertex_colors is not None and given.vertex_colors is not None and got.normals is not None
    tolerance = 0.5 / 255 + 1e-6 if suffix == ".ply" else 1e-3
    torch.testing.assert_close(got.vertex_colors[got.faces], given.vertex_colors[given.faces], atol=tolerance, rtol=0)
    if suffix == ".obj":
        assert got.uvs is not None and given.uvs is not None
        torch.testing.assert_close(got.uvs[got.faces], given.uvs[given.faces], atol=1e-6, rtol=0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_trimesh_reads_what_we_write(tmp_path: Path, suffix: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    write_mesh(tmp_path / f"a{suffix}", pyramid())
    loaded = trimesh.load(tmp_path / f"a{suffix}", force="mesh")
    loaded.merge_vertices(merge_tex=True, merge_norm=True)
    assert loaded.volume == pytest.approx(2.0, rel=1e-5) and len(loaded.faces) == 6
    if suffix == ".ply":
        given = pyramid()
        assert given.vertex_colors is not None
        expected = (given.vertex_colors * 255).round().numpy()
        np.testing.assert_array_equal(np.sort(loaded.visual.vertex_colors, 0), np.sort(expected, 0))


@pytest.mark.parametrize("suffix", [".obj", ".stl", ".ply"])
def test_we_read_what_trimesh_writes(tmp_path: Path, suffix: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball.visual.vertex_colors = np.random.default_rng(0).integers(0, 256, (len(ball.vertices), 4))
    ball.export(tmp_path / f"a{suffix}")
    mesh = read_mesh(tmp_path / f"a{suffix}")
    assert mesh.num_faces == len(ball.faces) and volume(mesh) == pytest.approx(ball.volume, rel=1e-5)
    if suffix != ".stl":
        assert mesh.vertex_colors is not None
        order = torch.cdist(torch.from_numpy(ball.vertices).float(), mesh.vertices).argmin(1)
        expected = np.asarray(ball.visual.vertex_colors)[:, :3] / 255
        np.testing.assert_allclose(mesh.vertex_colors[order, :3], expected, atol=1e-4)


def test_ascii_stl_and_ply(tmp_path: Path) -> None:
    facet = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
    (tmp_path / "a.stl").write_text(f"solid thing\n{facet}endsolid\n")
    assert read_mesh(tmp_path / "a.stl").num_faces == 1
    head = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    head += "element face 1\nproperty list uchar int vertex_index\nend_header\n"
    (tmp_path / "a.ply").write_text(head + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n")
    mesh = read_mesh(tmp_path / "a.ply")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]] and mesh.normals is None
    mixed = head.replace("face 1", "face 2") + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n3 0 1 2 3\n"
    (tmp_path / "a.ply").write_text(mixed)
    with pytest.raises(UnsupportedError, match="triangulate"):
        read_mesh(tmp_path / "a.ply")


def test_obj_polygons_negative_indices_and_split_corners(tmp_path: Path) -> None:
    text = "mtllib ../../etc/passwd\nusemtl x\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0.5 0.25\n"
    (tmp_path / "a.obj").write_text(text + "f 1/1 2/2 3/3 4/1\nf -4/2 -3/2 -2/3\n")
    mesh = read_mesh(tmp_path / "a.obj")
    assert mesh.num_faces == 3 and mesh.num_vertices == 5 and mesh.uvs is not None
    corners = mesh.uvs[mesh.faces]
    assert corners[0].tolist() == [[0, 1], [1, 1], [0.5, 0.75]] and corners[2, 0].tolist() == [1, 1]


BAD = {
    "words.obj": b"v a b c\nf 1 2 3\n",
    "outside.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n",
    "zero.obj": b"v 0 0 0\nf 0 0 0\n",
    "two.obj": b"v 0 0 0\nv 0 0 1\nf 1 2\n",
    "points.obj": b"v 0 0 0\n",
    "nan.obj": b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
    "overflow.obj": b"v 1e300 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
    "empty.obj": b"",
    "claims.stl": bytes(80) + struct.pack("<I", 10**9) + bytes(50),
    "nan.stl": bytes(80) + struct.pack("<I", 1) + struct.pack("<12fH", *[0] * 3, *[float("nan")] * 9, 0),
    "none.stl": bytes(84),
    "ascii.stl": b"solid\nvertex 1 2\n",
    "short.stl": b"solid",
    "cloud.ply": b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n",
}


@pytest.mark.parametrize("name", BAD)
def test_malformed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(FileFormatError, match=name.replace(".", r"\.")):
        read_mesh(tmp_path / name)


def test_malformed_ply_faces(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    write_mesh(path, pyramid())
    good = path.read_bytes()
    for bad in (
        good.replace(b"element face 6", b"element face 600000000"),
        good.replace(b"element vertex 5", b"element vertex 4"),
        good[:-4] + struct.pack("<i", 5),
        good[:-4] + struct.pack("<i", -1),
        good[:-1],
        good.replace(b"uchar int", b"float float"),
    ):
        path.write_bytes(bad)
        with pytest.raises((FileFormatError, UnsupportedError), match=r"a\.ply"):
            read_mesh(path)


def test_mesh_and_gaussian_ply_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    write_mesh(path, pyramid())
    with pytest.raises(FileFormatError, match="no Gaussians"):
        read_gaussians(path)
    one = torch.ones(1, 3)
    write_gaussians(path, Gaussians(one, torch.tensor([[1.0, 0, 0, 0]]), one, torch.ones(1), one))
    with pytest.raises(FileFormatError, match="holds Gaussians"):
        read_mesh(path)
