"""From a GLB document to one `Mesh`: node transforms, primitives, flat shading, merging."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maquette.errors import FileFormatError, UnsupportedError
from maquette.io.color_space import linear_to_srgb
from maquette.io.glb_container import GlbDocument
from maquette.io.glb_materials import MaterialReader
from maquette.mesh import Mesh

_MAX_ELEMENTS = 100_000_000
"""Vertices plus indices of all instances; a file can repeat a mesh in many nodes."""
_PRIMITIVE_COST = 100
"""What a primitive counts beside its elements, so that their number is bounded too."""
_TRIANGLES, _TRIANGLE_STRIP, _TRIANGLE_FAN = 4, 5, 6

Floats = NDArray[np.float32]


@dataclass
class _Part:
    """One primitive in world space."""

    vertices: Floats
    faces: NDArray[np.int64]
    normals: Floats | None
    uvs: Floats | None
    colors: Floats | None
    material: int


def read_scene(data: bytes, name: str) -> Mesh:
    """See `maquette.io.glb.read_glb_bytes`."""
    document = GlbDocument(data, name)
    instances = _mesh_instances(document)
    _check_budget(document, instances)
    materials = MaterialReader(document)
    parts: list[_Part] = []
    for mesh_index, matrix in instances:
        for primitive in _primitives(document, mesh_index):
            part = _read_primitive(document, primitive, materials)
            if part is not None:
                parts.append(_transformed(part, matrix))
    if not parts:
        raise document.fail("the scene has no triangles")
    return _merged(parts, materials)


def _mesh_instances(document: GlbDocument) -> list[tuple[int, NDArray[np.float64]]]:
    """Mesh index and world matrix of every node of the default scene that has a mesh."""
    pending = deque((root, np.eye(4)) for root in _root_nodes(document))
    visited: set[int] = set()
    instances: list[tuple[int, NDArray[np.float64]]] = []
    while pending:
        index, parent = pending.popleft()
        node = document.item("nodes", index)
        if index in visited:
            raise document.fail(f"nodes[{index}] has two parents or is its own ancestor")
        visited.add(index)
        world = parent @ _local_matrix(document, node)
        if not np.isfinite(world).all() or np.abs(world).max() > 1e30:
            raise document.fail(f"nodes[{index}] has a transform that overflows")
        if "mesh" in node:
            instances.append((document.index(node["mesh"], "node.mesh"), world))
        children = node.get("children", [])
        pending += [(child, world) for child in (children if isinstance(children, list) else [])]
    return instances


def _root_nodes(document: GlbDocument) -> list[Any]:
    nodes = document.json.get("nodes", [])
    if not isinstance(nodes, list):
        raise document.fail("'nodes' is not a list")
    if document.json.get("scenes"):
        roots = document.item("scenes", document.json.get("scene", 0)).get("nodes", [])
        return roots if isinstance(roots, list) else []
    children: set[int] = set()
    for node in nodes:
        listed = document.obj(node, "a node").get("children", [])
        children |= {c for c in (listed if isinstance(listed, list) else []) if isinstance(c, int)}
    return [i for i in range(len(nodes)) if i not in children]


def _local_matrix(document: GlbDocument, node: dict[str, Any]) -> NDArray[np.float64]:
    if "matrix" in node:
        return np.array(document.numbers(node["matrix"], 16, "node.matrix")).reshape(4, 4).T
    x, y, z, w = document.numbers(node.get("rotation", [0, 0, 0, 1]), 4, "node.rotation")
    norm = (x * x + y * y + z * z + w * w) ** 0.5
    if norm == 0:
        raise document.fail("node.rotation is a quaternion of length 0")
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * document.numbers(node.get("scale", [1, 1, 1]), 3, "node.scale")
    matrix[:3, 3] = document.numbers(node.get("translation", [0, 0, 0]), 3, "node.translation")
    return matrix


def _primitives(document: GlbDocument, mesh_index: int) -> list[dict[str, Any]]:
    primitives = document.item("meshes", mesh_index).get("primitives", [])
    if not isinstance(primitives, list):
        raise document.fail(f"meshes[{mesh_index}].primitives is not a list")
    return [document.obj(p, "a primitive") for p in primitives]


def _check_budget(document: GlbDocument, instances: list[tuple[int, NDArray[np.float64]]]) -> None:
    """Refuses files that repeat their data beyond all measure, before any of it is read."""
    sizes: dict[int, int] = {}
    total = 0
    for mesh_index, _ in instances:
        if mesh_index not in sizes:
            sizes[mesh_index] = sum(_claimed_elements(document, p) for p in _primitives(document, mesh_index))
        total += sizes[mesh_index]
        if total > _MAX_ELEMENTS:
            raise document.fail(f"more than {_MAX_ELEMENTS:,} vertices and indices; make the scene smaller")


def _claimed_elements(document: GlbDocument, primitive: dict[str, Any]) -> int:
    position = document.obj(primitive.get("attributes"), "primitive.attributes").get("POSITION")
    total = 0 if position is None else document.accessor_count(position)
    return (
        _PRIMITIVE_COST + total + (document.accessor_count(primitive["indices"]) if "indices" in primitive else total)
    )


def _read_primitive(document: GlbDocument, primitive: dict[str, Any], materials: MaterialReader) -> _Part | None:
    """Arrays of one primitive; None for points, lines and primitives without positions."""
    mode = document.index(primitive.get("mode", _TRIANGLES), "primitive.mode")
    attributes = document.obj(primitive.get("attributes"), "primitive.attributes")
    if mode not in (_TRIANGLES, _TRIANGLE_STRIP, _TRIANGLE_FAN) or "POSITION" not in attributes:
        return None
    if "KHR_draco_mesh_compression" in document.obj(primitive.get("extensions", {}), "extensions"):
        raise UnsupportedError(f"{document.name}: the mesh is compressed with Draco; export it without compression")
    vertices = _attribute(document, attributes, "POSITION", ("VEC3",), None)
    count = len(vertices)
    material = materials.index_of(primitive.get("material"))
    normals = uvs = colors = None
    if "NORMAL" in attributes:
        normals = _attribute(document, attributes, "NORMAL", ("VEC3",), count)
    if f"TEXCOORD_{materials.uv_set(material)}" in attributes:
        uvs = _attribute(document, attributes, f"TEXCOORD_{materials.uv_set(material)}", ("VEC2",), count)
        uvs = materials.transformed_uvs(material, uvs)
    if "COLOR_0" in attributes:
        linear = _attribute(document, attributes, "COLOR_0", ("VEC3", "VEC4"), count)
        alpha = np.ones((count, 1), np.float32)
        if linear.shape[1] == 4 and not materials.is_opaque(material):
            alpha = linear[:, 3:].clip(0, 1)
        colors = np.concatenate([linear_to_srgb(linear[:, :3]), alpha], axis=1)
    faces = _faces(document, primitive, mode, count)
    return _compacted(_Part(vertices, faces, normals, uvs, colors, material)) if len(faces) else None


def _attribute(
    document: GlbDocument, attributes: dict[str, Any], name: str, types: tuple[str, ...], count: int | None
) -> Floats:
    values = document.accessor(attributes[name], types).astype(np.float32)
    if count is not None and len(values) != count:
        raise document.fail(f"{name} has {len(values):,} elements, POSITION {count:,}")
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        raise document.fail(f"{name}: {bad:,} of {len(values):,} values are NaN or infinite")
    return values


def _faces(document: GlbDocument, primitive: dict[str, Any], mode: int, count: int) -> NDArray[np.int64]:
    if "indices" in primitive:
        stored = document.accessor(primitive["indices"], ("SCALAR",))
        if stored.dtype.kind != "u":
            raise document.fail("indices are not unsigned integers")
        indices = stored[:, 0].astype(np.int64)
        if int(indices.max()) >= count:
            raise document.fail(f"an index is {int(indices.max()):,}, there are {count:,} vertices")
    else:
        indices = np.arange(count, dtype=np.int64)
    if mode == _TRIANGLES:
        return indices[: len(indices) // 3 * 3].reshape(-1, 3)
    if len(indices) < 3:
        return np.empty((0, 3), np.int64)
    if mode == _TRIANGLE_FAN:
        first = np.broadcast_to(indices[:1], (len(indices) - 2,))
        return np.stack([indices[1:-1], indices[2:], first], axis=1)
    faces = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
    faces[1::2] = faces[1::2, ::-1]
    return faces


def _compacted(part: _Part) -> _Part:
    """The part without vertices that no face uses (primitives may share one large buffer)."""
    used = np.zeros(len(part.vertices), bool)
    used[part.faces] = True
    if used.all():
        return part
    renumbered = np.cumsum(used) - 1

    def pick(values: Floats | None) -> Floats | None:
        return None if values is None else values[used]

    return _Part(
        part.vertices[used],
        renumbered[part.faces],
        pick(part.normals),
        pick(part.uvs),
        pick(part.colors),
        part.material,
    )


def _transformed(part: _Part, matrix: NDArray[np.float64]) -> _Part:
    if (matrix == np.eye(4)).all():
        return part
    linear = matrix[:3, :3]
    part.vertices = (part.vertices @ linear.T + matrix[:3, 3]).astype(np.float32)
    if part.normals is not None:
        # The cofactor matrix is the inverse transpose up to a factor, and exists for singular transforms too.
        cofactors = np.stack([np.cross(linear[(i + 1) % 3], linear[(i + 2) % 3]) for i in range(3)])
        sign = -1.0 if np.linalg.det(linear) < 0 else 1.0
        part.normals = (part.normals @ (sign * cofactors).T).astype(np.float32)
    if np.linalg.det(linear) < 0:
        part.faces = part.faces[:, ::-1]
    return part


def _merged(parts: list[_Part], materials: MaterialReader) -> Mesh:
    """One mesh of all parts; missing attributes are filled when another part has them."""
    for part in parts:
        if not np.isfinite(part.vertices).all():
            raise FileFormatError("vertices overflow float32 after the node transforms")
    smooth = any(part.normals is not None for part in parts)
    mapped = any(part.uvs is not None for part in parts)
    colored = any(part.colors is not None for part in parts)
    if smooth:
        parts = [_flat_shaded(part) if part.normals is None else _unit_normals(part) for part in parts]
    starts = np.cumsum([0] + [len(part.vertices) for part in parts])

    def joined(values: list[Floats]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(values))

    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)])
    count = [len(part.vertices) for part in parts]
    normals = [part.normals for part in parts if part.normals is not None]
    uvs = [np.zeros((n, 2), np.float32) if p.uvs is None else p.uvs for p, n in zip(parts, count, strict=True)]
    colors = [np.ones((n, 4), np.float32) if p.colors is None else p.colors for p, n in zip(parts, count, strict=True)]
    face_materials = np.concatenate([np.full(len(part.faces), part.material, np.int64) for part in parts])
    listed = materials.materials()
    return Mesh(
        vertices=joined([part.vertices for part in parts]),
        faces=torch.from_numpy(faces),
        normals=joined(normals) if smooth else None,
        uvs=joined(uvs) if mapped else None,
        vertex_colors=joined(colors) if colored else None,
        materials=listed,
        face_materials=torch.from_numpy(face_materials) if len(listed) > 1 else None,
    )


def _face_normals(vertices: Floats, faces: NDArray[np.int64]) -> Floats:
    """Unit normals of faces `[M, 3]`; +Y for faces without area."""
    corners = vertices[faces].astype(np.float64)
    crossed = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(crossed, axis=1, keepdims=True)
    unit = np.divide(crossed, length, out=np.zeros_like(crossed), where=length > 0)
    unit[length[:, 0] == 0] = (0.0, 1.0, 0.0)
    normals: Floats = unit.astype(np.float32)
    return normals


def _flat_shaded(part: _Part) -> _Part:
    """Every face with vertices of its own and its face normal, as glTF asks where NORMAL is missing."""
    corner = part.faces.reshape(-1)
    normals = np.repeat(_face_normals(part.vertices, part.faces), 3, axis=0)
    return _Part(
        part.vertices[corner],
        np.arange(len(corner), dtype=np.int64).reshape(-1, 3),
        normals,
        None if part.uvs is None else part.uvs[corner],
        None if part.colors is None else part.colors[corner],
        part.material,
    )


def _unit_normals(part: _Part) -> _Part:
    """Normals of unit length; those of length 0 are replaced by the normal of a face at the vertex."""
    if part.normals is not None:
        normals = part.normals.astype(np.float64)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        fallback = np.zeros_like(normals)
        if (length == 0).any():
            fallback[part.faces.reshape(-1)] = np.repeat(_face_normals(part.vertices, part.faces), 3, axis=0)
        part.normals = np.where(length > 0, normals / np.where(length > 0, length, 1), fallback).astype(np.float32)
    return part
