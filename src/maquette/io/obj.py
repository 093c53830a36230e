"""Meshes in Wavefront `.obj`: shape, normals, texture coordinates and vertex colours (`v x y z r g b`).

Material libraries are neither read nor written: a file cannot make the reader open another one.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from maquette.errors import FileFormatError, InvalidInputError
from maquette.io.atomic import atomic_write_text
from maquette.io.regular import read_limited
from maquette.mesh import Mesh

_MAX_FILE_BYTES = 512 << 20
Corner = tuple[int, int, int]


class _Content:
    """Rows of an OBJ file while it is read."""

    def __init__(self) -> None:
        self.vertices: list[list[float]] = []
        self.uvs: list[list[float]] = []
        self.normals: list[list[float]] = []
        self.corners: dict[Corner, int] = {}
        self.faces: list[Corner] = []

    def add(self, words: list[str]) -> None:
        """Takes one line; raises ValueError when it is malformed."""
        kind = words[0]
        if kind == "v":
            self.vertices.append(_numbers(words[1:], 3))
        elif kind == "vt":
            self.uvs.append(_numbers(words[1:], 1))
        elif kind == "vn":
            self.normals.append(_numbers(words[1:], 3))
        elif kind == "f":
            polygon = [self._corner(word) for word in words[1:]]
            if len(polygon) < 3:
                raise ValueError("a face needs at least 3 corners")
            self.faces += [(polygon[0], b, c) for b, c in itertools.pairwise(polygon[1:])]

    def _corner(self, word: str) -> int:
        parts = [*word.split("/"), "", ""][:3]
        sizes = (len(self.vertices), len(self.uvs), len(self.normals))
        indices = [_index(part, size) for part, size in zip(parts, sizes, strict=True)]
        if indices[0] < 0:
            raise ValueError(f"corner '{word[:40]}' has no vertex")
        return self.corners.setdefault((indices[0], indices[1], indices[2]), len(self.corners))


def _numbers(words: list[str], minimum: int) -> list[float]:
    values = [float(word) for word in words[:7]]
    if len(values) < minimum:
        raise ValueError(f"expected at least {minimum} numbers, got {len(values)}")
    return values


def _index(part: str, size: int) -> int:
    """Position from 0, or -1 for an empty part; negative numbers count from the end."""
    if not part:
        return -1
    value = int(part)
    position = value - 1 if value > 0 else size + value
    if not 0 <= position < size:
        raise ValueError(f"index {value} is outside the {size} rows before it")
    return position


def read_file(path: str | Path) -> Mesh:
    """Reads a mesh; polygons become fans, corners with different normals or uv become vertices of their own.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: malformed lines (numbered), no faces, or NaN or infinite values.
    """
    text = read_limited(path, "a .obj file", _MAX_FILE_BYTES).decode("utf-8", errors="replace")
    content = _Content()
    for number, line in enumerate(io.StringIO(text), start=1):
        words = line.split()
        if not words:
            continue
        try:
            content.add(words)
        except ValueError as error:
            raise FileFormatError(f"{path}, line {number}: {error}") from error
    if not content.faces:
        raise FileFormatError(f"{path}: holds no faces")
    return _to_mesh(path, content)


def _to_mesh(path: str | Path, content: _Content) -> Mesh:
    corners = np.array(list(content.corners), dtype=np.int64)
    vertices = _rows(path, [row[:3] for row in content.vertices], 3)[corners[:, 0]]
    normals = uvs = colors = None
    if content.normals and (corners[:, 2] >= 0).all():
        stored = torch.from_numpy(_rows(path, [row[:3] for row in content.normals], 3)[corners[:, 2]])
        normals = torch.nn.functional.normalize(stored, dim=1)
    if content.uvs and (corners[:, 1] >= 0).all():
        bottom_up = _rows(path, [[*row, 0.0][:2] for row in content.uvs], 2)[corners[:, 1]]
        uvs = torch.from_numpy(np.stack([bottom_up[:, 0], 1 - bottom_up[:, 1]], axis=1))
    if all(len(row) >= 6 for row in content.vertices):
        rgb = _rows(path, [row[3:6] for row in content.vertices], 3)[corners[:, 0]].clip(0, 1)
        colors = torch.from_numpy(np.concatenate([rgb, np.ones((len(rgb), 1), np.float32)], axis=1))
    faces = torch.tensor(content.faces, dtype=torch.int64)
    return Mesh(torch.from_numpy(vertices), faces, normals=normals, uvs=uvs, vertex_colors=colors)


def _rows(path: str | Path, rows: list[list[float]], width: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = np.array(rows, dtype=np.float64).reshape(-1, width).astype(np.float32)
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        raise FileFormatError(f"{path}: {bad:,} of {len(values):,} rows are NaN or infinite")
    return values


def write_file(path: str | Path, mesh: Mesh) -> None:
    """Writes vertices (with colours), uv, normals and faces, atomically; materials and textures are lost.

    Raises:
        InvalidInputError: no faces, or non-finite vertices.
    """
    if mesh.num_faces == 0 or not bool(torch.isfinite(mesh.vertices).all()):
        raise InvalidInputError("the mesh has no faces, or NaN or infinite vertices; nothing written")
    rows = mesh.vertices.detach().double().cpu()
    if mesh.vertex_colors is not None:
        rows = torch.cat([rows, mesh.vertex_colors[:, :3].detach().double().cpu()], dim=1)
    lines = ["# maquette", *_lines("v", rows.tolist())]
    part = "{0}"
    if mesh.uvs is not None:
        u, v = mesh.uvs.detach().double().cpu().unbind(1)
        lines += _lines("vt", torch.stack([u, 1 - v], dim=1).tolist())
        part = "{0}/{0}"
    if mesh.normals is not None:
        lines += _lines("vn", mesh.normals.detach().double().cpu().tolist())
        part = "{0}/{0}/{0}" if mesh.uvs is not None else "{0}//{0}"
    for face in (mesh.faces.cpu() + 1).tolist():
        lines.append("f " + " ".join(part.format(index) for index in face))
    atomic_write_text(path, "\n".join(lines) + "\n")


def _lines(kind: str, rows: Sequence[Sequence[float]]) -> list[str]:
    return [kind + "".join(f" {value:.7g}" for value in row) for row in rows]
