"""Meshes as they travel in a page: plain vertex arrays, one list of triangles per material, pictures as files.

- `vertices`, float32 `[N, 3]`; `faces`, uint32 `[M, 3]`, sorted by material.
- `normals`, int8 `[N, 4]`: unit normals times 127, and a zero; where the mesh has them.
- `colors`, uint8 `[N, 4]`: sRGB; where the mesh has them.
- `uvs`, float32 `[N, 2]`: (0, 0) is the top left corner; where a material has a texture.
- `texture0`, `texture1`, ..., uint8: a JPEG file, or a PNG file of a texture with holes.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maquette.errors import InvalidInputError
from maquette.mesh import Material, Mesh
from maquette.viewer.payload import Array, Payload

MAX_TRIANGLES = 4_000_000
"""More than a browser turns smoothly."""

_MAX_TEXTURE = 4096
_JPEG_QUALITY = 92


def pack_mesh(mesh: Mesh) -> Payload:
    """Prepares a mesh for a page.

    Raises:
        InvalidInputError: no faces, more than `MAX_TRIANGLES`, or values that are not finite.
    """
    mesh = mesh.to("cpu")
    _check(mesh)
    corners = mesh.vertices[mesh.faces.flatten()].double()
    low, high = corners.amin(0), corners.amax(0)
    middle = (low + high) / 2
    radius = float((corners - middle).norm(dim=1).max())
    if radius <= 0:
        raise InvalidInputError("the mesh has no extent: all its points are one")
    arrays: dict[str, Array] = {"vertices": mesh.vertices.float().numpy()}
    faces, groups = _grouped_faces(mesh)
    arrays["faces"] = faces.numpy().astype(np.uint32)
    if mesh.normals is not None:
        unit = torch.nn.functional.normalize(mesh.normals.float(), dim=-1).nan_to_num(0.0)
        codes = (unit * 127).round().to(torch.int8)
        arrays["normals"] = torch.cat([codes, torch.zeros_like(codes[:, :1])], dim=1).numpy()
    if mesh.vertex_colors is not None:
        arrays["colors"] = _bytes(mesh.vertex_colors).numpy()
    textures = _textures(mesh)
    materials = [_material(material, list(textures)) for material in mesh.materials]
    if textures and mesh.uvs is not None:
        arrays["uvs"] = mesh.uvs.float().numpy()
        for number, texture in enumerate(textures.values()):
            arrays[f"texture{number}"] = np.frombuffer(_encoded(texture), np.uint8)
    x, y, z = middle.tolist()
    return Payload("mesh", mesh.num_faces, (x, y, z), radius, arrays, {"groups": groups, "materials": materials})


def _check(mesh: Mesh) -> None:
    if not mesh.num_faces:
        raise InvalidInputError("the mesh has no faces, there is nothing to show")
    if mesh.num_faces > MAX_TRIANGLES:
        raise InvalidInputError(
            f"{mesh.num_faces:,} triangles are too many for a page: at most {MAX_TRIANGLES:,}; "
            "simplify the mesh with maquette convert --faces"
        )
    for name in ("vertices", "normals", "uvs", "vertex_colors"):
        value: Tensor | None = getattr(mesh, name)
        if value is not None and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value).all(dim=1)).sum())
            raise InvalidInputError(f"{name} of {bad:,} of {len(value):,} vertices are NaN or infinite")


def _grouped_faces(mesh: Mesh) -> tuple[Tensor, list[dict[str, int]]]:
    """Faces sorted by material, and for every material in use its first index and number of indices."""
    if mesh.face_materials is None:
        return mesh.faces, [{"material": 0, "first": 0, "count": 3 * mesh.num_faces}]
    order = mesh.face_materials.argsort(stable=True)
    counts = torch.bincount(mesh.face_materials, minlength=len(mesh.materials)).tolist()
    groups, first = [], 0
    for material, count in enumerate(counts):
        if count:
            groups.append({"material": material, "first": 3 * first, "count": 3 * count})
        first += count
    return mesh.faces[order], groups


def _textures(mesh: Mesh) -> dict[int, Tensor]:
    """The different textures by their identity; materials often share one."""
    if mesh.uvs is None:
        return {}
    found = [material.base_color_texture for material in mesh.materials]
    return {id(texture): texture for texture in found if texture is not None}


def _material(material: Material, textures: list[int]) -> dict[str, Any]:
    texture = material.base_color_texture
    number = textures.index(id(texture)) if id(texture) in textures else None
    return {"color": list(material.base_color[:3]), "texture": number}


def _bytes(values: Tensor) -> Tensor:
    return (values.float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)


def _encoded(texture: Tensor) -> bytes:
    """A texture `[H, W, 4]` as a file, at most 4096 pixels a side."""
    pixels = _bytes(texture)
    holes = bool((pixels[..., 3] < 255).any())
    picture = Image.fromarray(pixels.numpy() if holes else pixels[..., :3].contiguous().numpy())
    picture.thumbnail((_MAX_TEXTURE, _MAX_TEXTURE), Image.Resampling.BOX)
    stream = io.BytesIO()
    if holes:
        picture.save(stream, "PNG")
    else:
        picture.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return stream.getvalue()
