"""Meshes in `.stl`: triangles without colours; binary and ASCII are read, binary is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from maquette.errors import FileFormatError, InvalidInputError
from maquette.io.atomic import atomic_path
from maquette.io.regular import checked_file_size, read_limited
from maquette.mesh import Mesh

_HEADER_BYTES = 84
_TRIANGLE = np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_MAX_FILE_BYTES = 1 << 30


def read_file(path: str | Path) -> Mesh:
    """Reads triangles; equal corners are joined, so that the mesh is connected. Flat-shaded.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: truncated, malformed, or NaN or infinite corners.
    """
    size = checked_file_size(path, "a .stl file")
    with Path(path).open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    count = int.from_bytes(head[80:84], "little")
    if len(head) == _HEADER_BYTES and size == _HEADER_BYTES + count * _TRIANGLE.itemsize:
        corners = np.fromfile(path, _TRIANGLE, offset=_HEADER_BYTES)["corners"].reshape(-1, 3)
    elif head.lstrip().startswith(b"solid"):
        corners = _ascii_corners(path)
    else:
        claimed = _HEADER_BYTES + count * _TRIANGLE.itemsize
        raise FileFormatError(f"{path}: {count:,} triangles need {claimed:,} bytes, the file has {size:,}")
    if len(corners) == 0 or len(corners) % 3:
        raise FileFormatError(f"{path}: holds {len(corners)} corners, expected 3 for each triangle")
    bad = int((~np.isfinite(corners).all(axis=1)).sum())
    if bad:
        raise FileFormatError(f"{path}: {bad:,} of {len(corners):,} corners are NaN or infinite")
    vertices, inverse = np.unique(corners, axis=0, return_inverse=True)
    faces = inverse.reshape(-1, 3).astype(np.int64)
    return Mesh(torch.from_numpy(np.ascontiguousarray(vertices, np.float32)), torch.from_numpy(faces))


def _ascii_corners(path: str | Path) -> NDArray[np.float32]:
    lines = read_limited(path, "a .stl file", _MAX_FILE_BYTES).split(b"\n")
    words = [line.split() for line in lines]
    try:
        rows = [[float(w) for w in row[1:4]] for row in words if row and row[0] == b"vertex"]
        with np.errstate(over="ignore"):
            return np.array(rows, dtype=np.float64).astype(np.float32).reshape(-1, 3)
    except ValueError as error:
        raise FileFormatError(f"{path}: malformed ASCII STL: {error}") from error


def write_file(path: str | Path, mesh: Mesh) -> None:
    """Writes the shape as binary STL, atomically; colours and materials are lost.

    Raises:
        InvalidInputError: no faces, or non-finite vertices.
    """
    if mesh.num_faces == 0 or not bool(torch.isfinite(mesh.vertices).all()):
        raise InvalidInputError("the mesh has no faces, or NaN or infinite vertices; nothing written")
    corners = mesh.vertices.detach().float()[mesh.faces].cpu().numpy()
    crossed = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(crossed, axis=1, keepdims=True)
    triangles = np.zeros(len(corners), _TRIANGLE)
    triangles["normal"] = crossed / np.where(length > 0, length, 1)
    triangles["corners"] = corners
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(b"maquette".ljust(80, b" ") + len(triangles).to_bytes(4, "little"))
        stream.write(triangles.tobytes())
