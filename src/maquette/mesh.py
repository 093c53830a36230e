"""`Mesh`: triangles with optional normals, texture coordinates, vertex colours and materials."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maquette.errors import InvalidInputError


@dataclass(frozen=True)
class Material:
    """Metallic-roughness material of a group of faces.

    Attributes:
        base_color: RGBA factor, sRGB-encoded 0..1 (glTF files store it linear; `io` converts).
        base_color_texture: `[H, W, 4]`, sRGB-encoded 0..1, row 0 on top, or None. Multiplied with the factor
            in linear light. Coordinates wrap (REPEAT).
        metallic, roughness: 0..1.
    """

    base_color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    base_color_texture: Tensor | None = None
    metallic: float = 0.0
    roughness: float = 1.0

    def __post_init__(self) -> None:
        texture = self.base_color_texture
        if len(self.base_color) != 4:
            raise InvalidInputError(f"base_color must have 4 values (RGBA), got {len(self.base_color)}")
        if texture is not None and (texture.ndim != 3 or texture.shape[-1] != 4 or texture.numel() == 0):
            raise InvalidInputError(f"base_color_texture must be [H, W, 4], got {list(texture.shape)}")


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in world units, Y up, front +Z, counter-clockwise faces seen from outside.

    Attributes:
        vertices: `[N, 3]`, float.
        faces: vertex indices `[M, 3]`, int64.
        normals: unit vertex normals `[N, 3]`, or None: faces are shaded flat.
        uvs: texture coordinates `[N, 2]`, (0, 0) is the TOP left corner of the texture as in glTF, or None.
        vertex_colors: RGBA, sRGB-encoded 0..1, `[N, 4]`, or None. Multiplies the material's base colour.
        materials: at least one.
        face_materials: index into `materials` per face, `[M]`, int64; None means material 0 everywhere.

    Raises:
        InvalidInputError: shapes or dtypes disagree or a face index is out of range.
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor | None = None
    uvs: Tensor | None = None
    vertex_colors: Tensor | None = None
    materials: tuple[Material, ...] = field(default_factory=lambda: (Material(),))
    face_materials: Tensor | None = None

    def __post_init__(self) -> None:
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3 or not self.vertices.is_floating_point():
            raise InvalidInputError(f"vertices must be float [N, 3], got {list(self.vertices.shape)}")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3 or self.faces.dtype != torch.int64:
            raise InvalidInputError(f"faces must be int64 [M, 3], got {self.faces.dtype} {list(self.faces.shape)}")
        count = int(self.vertices.shape[0])
        if self.faces.numel() and (int(self.faces.min()) < 0 or int(self.faces.max()) >= count):
            raise InvalidInputError(f"faces must index the {count} vertices, found an index outside")
        for name, width in (("normals", 3), ("uvs", 2), ("vertex_colors", 4)):
            value: Tensor | None = getattr(self, name)
            if value is not None and tuple(value.shape) != (count, width):
                raise InvalidInputError(f"{name} must be {[count, width]}, got {list(value.shape)}")
        if not self.materials:
            raise InvalidInputError("materials must hold at least one material")
        self._check_face_materials()

    def _check_face_materials(self) -> None:
        index = self.face_materials
        if index is None:
            return
        if tuple(index.shape) != (self.num_faces,) or index.dtype != torch.int64:
            raise InvalidInputError(f"face_materials must be int64 [{self.num_faces}], got {list(index.shape)}")
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(self.materials)):
            raise InvalidInputError(f"face_materials must index the {len(self.materials)} materials")

    @property
    def num_vertices(self) -> int:
        """Number of vertices (N)."""
        return int(self.vertices.shape[0])

    @property
    def num_faces(self) -> int:
        """Number of triangles (M)."""
        return int(self.faces.shape[0])

    @property
    def device(self) -> torch.device:
        """Device of the vertices."""
        return self.vertices.device

    def to(self, device: torch.device | str) -> Mesh:
        """Moves every tensor, textures included, to a device."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        materials = tuple(dataclasses.replace(m, base_color_texture=move(m.base_color_texture)) for m in self.materials)
        return Mesh(
            self.vertices.to(device),
            self.faces.to(device),
            move(self.normals),
            move(self.uvs),
            move(self.vertex_colors),
            materials,
            move(self.face_materials),
        )

    def transformed(self, scale: float = 1.0, translation: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Mesh:
        """The mesh scaled about the origin (scale > 0), then moved."""
        if scale <= 0:
            raise InvalidInputError(f"scale must be > 0, got {scale}")
        return dataclasses.replace(self, vertices=self.vertices * scale + self.vertices.new_tensor(translation))
