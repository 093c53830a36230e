"""A mesh packed for shading: all textures in one buffer of mip levels, colours in linear light."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.data.color import srgb_to_linear
from maquette.mesh import Mesh
from maquette.raster.mesh import MeshFragments

_MAX_LEVELS = 12
_MIN_AREA = 1e-12


@dataclass(frozen=True)
class Surface:
    """A mesh on one device, ready to be looked up per pixel.

    Attributes:
        vertices: `[N, 3]`; faces: `[M, 3]`; face_normals: geometric unit normals `[M, 3]`.
        normals: unit vertex normals `[N, 3]` or None (flat).
        vertex_colors: linear RGB `[N, 3]` or None.
        face_materials: `[M]`; base_colors: linear RGB per material `[K, 3]`.
        uvs: `[N, 2]` or None when nothing is textured.
        texels: linear RGB of all mip levels of all textures, `[T, 3]`.
        levels: first texel, width and height of every level, `[K, L, 3]` int64 (missing levels repeat the last).
        num_levels: per material, 0 where it has no texture, `[K]`.
        texel_density: texels of level 0 per world unit of every face, `[M]` (0 where untextured).
    """

    vertices: Tensor
    faces: Tensor
    face_normals: Tensor
    normals: Tensor | None
    vertex_colors: Tensor | None
    face_materials: Tensor
    base_colors: Tensor
    uvs: Tensor | None
    texels: Tensor
    levels: Tensor
    num_levels: Tensor
    texel_density: Tensor

    @property
    def num_materials(self) -> int:
        """Number of materials (K)."""
        return int(self.base_colors.shape[0])

    def placed(self, center: tuple[float, float, float], scale: float) -> Surface:
        """The same surface with `center` moved to the origin, then scaled (> 0) about it."""
        vertices = (self.vertices - self.vertices.new_tensor(center)) * scale
        return dataclasses.replace(self, vertices=vertices, texel_density=self.texel_density / scale)

    def moved(self, vertices: Tensor, normals: Tensor | None) -> Surface:
        """The same surface with other positions `[N, 3]` and unit vertex normals `[N, 3]` of its vertices."""
        _, before = _normals_and_areas(self.vertices, self.faces)
        face_normals, after = _normals_and_areas(vertices, self.faces)
        density = self.texel_density * (before.clamp_min(_MIN_AREA) / after.clamp_min(_MIN_AREA)).sqrt()
        return dataclasses.replace(
            self, vertices=vertices, normals=normals, face_normals=face_normals, texel_density=density
        )


@dataclass(frozen=True)
class Samples:
    """What the covered pixels show.

    Attributes:
        index: flat positions in `[V * H * W]`, `[P]`.
        positions: world, `[P, 3]`.
        normals: unit, towards the camera, world axes, `[P, 3]`.
        albedo: base colour, linear RGB, `[P, 3]`.
        materials: `[P]`.
    """

    index: Tensor
    positions: Tensor
    normals: Tensor
    albedo: Tensor
    materials: Tensor


def pack_surface(mesh: Mesh, device: torch.device | str) -> Surface:
    """Packs a mesh; textures are decoded to linear light and get mip levels by 2 x 2 averages.

    Opacity of materials and textures is not kept: every face is opaque.
    """
    mesh = mesh.to(device)
    vertices, faces = mesh.vertices.float(), mesh.faces
    face_normals, area = _normals_and_areas(vertices, faces)
    materials = mesh.face_materials
    if materials is None:
        materials = torch.zeros(mesh.num_faces, dtype=torch.int64, device=faces.device)
    texels, levels, num_levels = _pack_textures(mesh)
    textured = mesh.uvs is not None and bool((num_levels > 0).any())
    density = torch.zeros_like(area)
    if mesh.uvs is not None and textured:
        edge = mesh.uvs.float()[faces]
        a, b = edge[:, 1] - edge[:, 0], edge[:, 2] - edge[:, 0]
        uv_area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs() * 0.5
        size = levels[materials, 0].float()
        density = (uv_area * size[:, 1] * size[:, 2] / area.clamp_min(_MIN_AREA)).sqrt()
    colors = torch.tensor([m.base_color[:3] for m in mesh.materials], dtype=torch.float32)
    return Surface(
        vertices=vertices,
        faces=faces,
        face_normals=face_normals,
        normals=None if mesh.normals is None else mesh.normals.float(),
        vertex_colors=None if mesh.vertex_colors is None else srgb_to_linear(mesh.vertex_colors[:, :3].float()),
        face_materials=materials,
        base_colors=srgb_to_linear(colors).to(device),
        uvs=mesh.uvs.float() if mesh.uvs is not None and textured else None,
        texels=texels,
        levels=levels,
        num_levels=num_levels,
        texel_density=density,
    )


def _normals_and_areas(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Geometric unit normals `[M, 3]` and areas `[M]` of triangles."""
    corners = vertices[faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return functional.normalize(normal, dim=-1), normal.norm(dim=-1) * 0.5


def _pack_textures(mesh: Mesh) -> tuple[Tensor, Tensor, Tensor]:
    device = mesh.device
    parts: list[Tensor] = []
    table = torch.zeros(len(mesh.materials), _MAX_LEVELS, 3, dtype=torch.int64)
    counts = torch.zeros(len(mesh.materials), dtype=torch.int64)
    packed: dict[int, int] = {}  # materials often share one texture
    offset = 0
    for index, material in enumerate(mesh.materials):
        texture = material.base_color_texture
        if texture is None or mesh.uvs is None:
            continue
        if id(texture) in packed:
            first = packed[id(texture)]
            table[index], counts[index] = table[first], counts[first]
            continue
        packed[id(texture)] = index
        image = srgb_to_linear(texture[..., :3].float())
        for level in range(_MAX_LEVELS):
            height, width = image.shape[:2]
            table[index, level:] = torch.tensor([offset, width, height])
            parts.append(image.reshape(-1, 3))
            offset += height * width
            counts[index] = level + 1
            if min(height, width) < 2:
                break
            image = functional.avg_pool2d(image.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)
    texels = torch.cat(parts) if parts else torch.zeros(1, 3, device=device)
    return texels, table.to(device), counts.to(device)


def sample_surface(surface: Surface, fragments: MeshFragments, cameras: Cameras) -> Samples:
    """Looks up positions, normals and base colours of all covered pixels of `[V]` cameras."""
    triangle = fragments.triangle_id.flatten()
    index = (triangle >= 0).nonzero().squeeze(1)
    triangle = triangle[index].long()
    weights = fragments.barycentrics.reshape(-1, 3)[index]
    corners = surface.faces[triangle]
    depth = fragments.depth.flatten()[index]
    view = index // (cameras.height * cameras.width)
    positions = _interpolate(surface.vertices, corners, weights)
    materials = surface.face_materials[triangle]
    albedo = surface.base_colors[materials]
    if surface.vertex_colors is not None:
        albedo = albedo * _interpolate(surface.vertex_colors, corners, weights)
    if surface.uvs is not None:
        uv = _interpolate(surface.uvs, corners, weights)
        focal = cameras.intrinsics[view, 1, 1]
        footprint = surface.texel_density[triangle] * depth / focal  # texels per pixel
        albedo = albedo * _lookup(surface, materials, uv, footprint)
    normals = _facing_normals(surface, triangle, corners, weights, positions - cameras.positions[view])
    return Samples(index, positions, normals, albedo, materials)


def _interpolate(values: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of corner values: `[N, C]`, `[P, 3]`, `[P, 3]` -> `[P, C]`."""
    result = values[corners[:, 0]] * weights[:, :1]
    result = torch.addcmul(result, values[corners[:, 1]], weights[:, 1:2])
    return torch.addcmul(result, values[corners[:, 2]], weights[:, 2:])


def _facing_normals(surface: Surface, triangle: Tensor, corners: Tensor, weights: Tensor, viewing: Tensor) -> Tensor:
    """Shading normals on the side that the camera sees, whatever the winding of the file."""
    flat = surface.face_normals[triangle]
    flat = torch.where((flat * viewing).sum(-1, keepdim=True) > 0, -flat, flat)
    if surface.normals is None:
        return flat
    smooth = functional.normalize(_interpolate(surface.normals, corners, weights), dim=-1)
    agreement = (smooth * flat).sum(-1, keepdim=True)
    smooth = torch.where(agreement < 0, -smooth, smooth)
    return torch.where(agreement == 0, flat, smooth)  # also where the file's normals are zero


def _lookup(surface: Surface, materials: Tensor, uv: Tensor, footprint: Tensor) -> Tensor:
    """Texture colours `[P, 3]`: nearest mip level, bilinear, REPEAT; 1 for materials without a texture."""
    count = surface.num_levels[materials]
    level = footprint.clamp_min(1.0).log2().round().long().minimum((count - 1).clamp_min(0))
    offset, width, height = surface.levels[materials, level].unbind(-1)
    width, height = width.clamp_min(1), height.clamp_min(1)
    uv = torch.nan_to_num(uv - uv.floor())
    x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
    left, top = x.floor(), y.floor()
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    x0, y0 = left.long() % width, top.long() % height
    x1, y1 = (x0 + 1) % width, (y0 + 1) % height
    row0, row1 = offset + y0 * width, offset + y1 * width
    upper = torch.lerp(surface.texels[row0 + x0], surface.texels[row0 + x1], fx)
    lower = torch.lerp(surface.texels[row1 + x0], surface.texels[row1 + x1], fx)
    color = torch.lerp(upper, lower, fy)
    return torch.where((count > 0)[:, None], color, 1.0)
