"""Meshes in `.ply`: vertices, normals, 8-bit vertex colours and triangles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from maquette.errors import FileFormatError, InvalidInputError
from maquette.io.atomic import atomic_path
from maquette.io.ply import PlyElement, is_gaussian_header, read_ply_header, read_ply_table
from maquette.mesh import Mesh

_Columns = Callable[..., NDArray[np.float32]]


def read_file(path: str | Path) -> Mesh:
    """Reads vertices, normals and colours when present, and faces (polygons of one size become fans).

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: a Gaussian file or point cloud, truncated, malformed, or NaN or infinite values.
        UnsupportedError: polygons of different sizes.
    """
    header = read_ply_header(path)
    if is_gaussian_header(header):
        raise FileFormatError(f"{path}: holds Gaussians, not a mesh; see `maquette convert --help`")
    vertex, face = header.element("vertex"), header.element("face")
    if vertex is None or face is None or not vertex.count or not face.count:
        raise FileFormatError(f"{path}: a .ply mesh needs elements 'vertex' and 'face', both not empty")
    names = {p.name for p in vertex.properties if p.count_type is None}
    lists = [p.name for p in face.properties if p.count_type is not None]
    if not {"x", "y", "z"} <= names or not lists:
        raise FileFormatError(f"{path}: a .ply mesh needs vertex properties x, y, z and a list of indices per face")
    table = read_ply_table(path, header, "vertex")

    def columns(*wanted: str) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            values = np.stack([table[name].astype(np.float32) for name in wanted], axis=1)
        bad = int((~np.isfinite(values).all(axis=1)).sum())
        if bad:
            raise FileFormatError(f"{path}: {wanted[0]} of {bad:,} of {len(values):,} vertices is NaN or infinite")
        return values

    normals = columns("nx", "ny", "nz") if {"nx", "ny", "nz"} <= names else None
    colors = _colors(vertex, columns) if {"red", "green", "blue"} <= names else None
    faces = _triangles(path, read_ply_table(path, header, "face")[lists[0]], vertex.count)
    return Mesh(
        torch.from_numpy(columns("x", "y", "z")),
        torch.from_numpy(faces),
        normals=None if normals is None else torch.nn.functional.normalize(torch.from_numpy(normals), dim=1),
        vertex_colors=None if colors is None else torch.from_numpy(colors),
    )


def _colors(vertex: PlyElement, columns: _Columns) -> NDArray[np.float32]:
    channels = ["red", "green", "blue"] + (["alpha"] if "alpha" in vertex.names else [])
    stored = next(p.type for p in vertex.properties if p.name == "red")
    maximum = 1.0 if stored.startswith("f") else float(np.iinfo(stored).max)
    colors = columns(*channels) / np.float32(maximum)
    if len(channels) == 3:
        colors = np.concatenate([colors, np.ones((len(colors), 1), np.float32)], axis=1)
    return colors.clip(0, 1)


def _triangles(path: str | Path, polygons: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    if polygons.ndim != 2 or polygons.shape[1] < 3:
        raise FileFormatError(f"{path}: faces have fewer than 3 corners")
    if not (polygons >= 0).all() or not (polygons < count).all():
        raise FileFormatError(f"{path}: a face refers to a vertex outside the {count:,} in the file")
    corners = polygons.astype(np.int64)
    fans = [corners[:, [0, i, i + 1]] for i in range(1, corners.shape[1] - 1)]
    return np.stack(fans, axis=1).reshape(-1, 3)


def write_file(path: str | Path, mesh: Mesh) -> None:
    """Writes vertices, normals, vertex colours and faces as binary PLY, atomically; materials are lost.

    Raises:
        InvalidInputError: no faces, or non-finite vertices.
    """
    if mesh.num_faces == 0 or not bool(torch.isfinite(mesh.vertices).all()):
        raise InvalidInputError("the mesh has no faces, or NaN or infinite vertices; nothing written")
    fields: list[tuple[str, str]] = [(name, "<f4") for name in ("x", "y", "z")]
    columns = [mesh.vertices.detach().float().cpu().numpy()]
    if mesh.normals is not None:
        fields += [(name, "<f4") for name in ("nx", "ny", "nz")]
        columns.append(mesh.normals.detach().float().cpu().numpy())
    if mesh.vertex_colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue", "alpha")]
        columns.append(np.rint(mesh.vertex_colors.detach().float().cpu().numpy().clip(0, 1) * 255))
    vertices = np.empty(mesh.num_vertices, np.dtype(fields))
    for (name, _), column in zip(fields, np.concatenate(columns, axis=1).T, strict=True):
        vertices[name] = column
    faces = np.empty(mesh.num_faces, np.dtype([("n", "u1"), ("i", "<i4", (3,))]))
    faces["n"], faces["i"] = 3, mesh.faces.cpu().numpy()
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property {'uchar' if code == 'u1' else 'float'} {name}" for name, code in fields]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write("\n".join(header).encode("ascii") + vertices.tobytes() + faces.tobytes())
