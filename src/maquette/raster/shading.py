"""Differentiable shading of rasterized meshes: weights, interpolation, textures with mip levels, antialiasing.

`rasterize_mesh` decides which triangle every pixel sees and has no gradients. From there on everything has: the
weights move with the vertices, `interpolate` carries any vertex attribute to the pixels, `sample_texture` looks it up,
and `antialias` blends neighbouring pixels along silhouettes by how much of the step between their centres the nearer
surface covers, which gives vertices gradients from what appears and disappears. The design follows Laine et al.,
"Modular Primitives for High-Performance Differentiable Rendering" (2020); unlike theirs, the search for a silhouette
walks on over the neighbours of the triangle, so that triangles smaller than a pixel are handled too.

`shading_reference.py` (PyTorch, any device and dtype) specifies the results; `shading_cpu.py` and `antialias_cpu.py`
(Numba) and `shading_cuda.py` (CUDA C++ through NVRTC) are its fast forms.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError, UnsupportedError
from maquette.raster.mesh import MeshFragments, pinhole_parameters

ShadingBackend = Literal["reference", "cpu", "cuda"]


def surface_weights(
    vertices: Tensor,
    faces: Tensor,
    cameras: Cameras,
    fragments: MeshFragments,
    *,
    backend: ShadingBackend | None = None,
) -> Tensor:
    """Perspective-correct weights of the corners at every pixel centre, differentiable by vertex positions.

    Args:
        vertices: world positions `[N, 3]`.
        faces: `[M, 3]`, int64.
        cameras: `[V]`.
        fragments: of the same mesh and cameras.
        backend: None takes "cpu" (Numba) or "cuda" by the device of the tensors; "reference" runs anywhere.

    Returns:
        `[V, H, W, 3]`, in the dtype of the vertices, sum 1; 0 where nothing is seen.
    """
    points = _camera_points(vertices, cameras)
    weights: Tensor = _backend(backend, vertices).weights(
        points, faces, pinhole_parameters(cameras), fragments.triangle_id
    )
    return weights.to(vertices.dtype)


def interpolate(
    attributes: Tensor,
    faces: Tensor,
    triangle_id: Tensor,
    weights: Tensor,
    *,
    backend: ShadingBackend | None = None,
) -> Tensor:
    """Vertex attributes at surface points, differentiable by attributes and weights.

    Args:
        attributes: `[N, C]`.
        faces: `[M, 3]`, int64.
        triangle_id: `[...]`, -1 for nothing.
        weights: of the triangle's corners, `[..., 3]`.
        backend: see `surface_weights`.

    Returns:
        `[..., C]`, 0 where nothing is seen.
    """
    module = _backend(backend, attributes)
    flat: Tensor = module.interpolate(attributes, faces, triangle_id.reshape(-1), weights.reshape(-1, 3))
    return flat.reshape(*triangle_id.shape, attributes.shape[1])


def mip_pyramid(texture: Tensor) -> list[Tensor]:
    """The texture `[H, W, C]` and its averages at half the size, down to one texel."""
    levels = [texture]
    while max(levels[-1].shape[:2]) > 1:
        height, width = (max(1, n // 2) for n in levels[-1].shape[:2])
        smaller = functional.adaptive_avg_pool2d(levels[-1].permute(2, 0, 1)[None], (height, width))
        levels.append(smaller[0].permute(1, 2, 0))
    return levels


def sample_texture(
    texture: Tensor, uvs: Tensor, levels: Tensor | None = None, *, backend: ShadingBackend | None = None
) -> Tensor:
    """Looks a texture up: bilinear, and linear between mip levels; differentiable by texture and coordinates.

    Args:
        texture: `[H, W, C]`, row 0 on top.
        uvs: `[..., 2]`, (0, 0) is the top left corner of the texture; they wrap.
        levels: mip level of every point, `[...]`, 0 is the full size; values beyond the pyramid are clamped. None
            samples the full size.
        backend: see `surface_weights`.

    Returns:
        `[..., C]`.

    Raises:
        InvalidInputError: shapes disagree.
    """
    if texture.ndim != 3 or uvs.shape[-1] != 2 or (levels is not None and levels.shape != uvs.shape[:-1]):
        given = None if levels is None else list(levels.shape)
        raise InvalidInputError(
            f"texture must be [H, W, C], uvs [..., 2] and levels [...], got {list(texture.shape)}, "
            f"{list(uvs.shape)} and {given}"
        )
    pyramid = [texture] if levels is None else mip_pyramid(texture)
    sizes = torch.tensor([level.shape[:2] for level in pyramid], dtype=torch.int64)
    texels = torch.cat([level.reshape(-1, texture.shape[2]) for level in pyramid])
    flat = uvs.reshape(-1, 2)
    chosen = flat.new_zeros(len(flat)) if levels is None else levels.reshape(-1).to(flat.dtype)
    sampled: Tensor = _backend(backend, texture).texture(texels, sizes, flat, chosen.detach())
    return sampled.reshape(*uvs.shape[:-1], texture.shape[2])


def texture_levels(
    vertices: Tensor,
    faces: Tensor,
    uvs: Tensor,
    cameras: Cameras,
    fragments: MeshFragments,
    texture_size: tuple[int, int],
) -> Tensor:
    """Mip level at every pixel: half the logarithm (base 2) of the texels that its triangle has per pixel of its area.

    Args:
        vertices: `[N, 3]`; faces: `[M, 3]`; uvs: `[N, 2]`.
        cameras: `[V]`.
        fragments: of the same mesh and cameras.
        texture_size: height and width of the texture.

    Returns:
        `[V, H, W]`, without gradients; 0 where nothing is seen.
    """
    with torch.no_grad():
        screen = screen_points(vertices, cameras)[..., :2]
        seen = (fragments.triangle_id >= 0).nonzero()
        face = fragments.triangle_id[tuple(seen.T)].long()
        mapped = _double_area(uvs[faces]) * (texture_size[0] * texture_size[1])
        drawn = _double_area(screen[seen[:, 0, None], faces[face]])
        ratio = mapped[face].to(drawn) / drawn.clamp_min(1e-12)
        levels = vertices.new_zeros(fragments.triangle_id.shape)
        levels[tuple(seen.T)] = (0.5 * ratio.clamp_min(1.0).log2()).to(levels)
        return levels


def _double_area(corners: Tensor) -> Tensor:
    """Twice the area of flat triangles `[..., 3, 2]`."""
    first, second = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    return (first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]).abs()


def screen_points(vertices: Tensor, cameras: Cameras) -> Tensor:
    """Pixel coordinates and depth of vertices, `[V, N, 3]` float64, differentiable; z <= 0 is behind the camera."""
    x, y, z = _camera_points(vertices, cameras).unbind(-1)
    focal_x, focal_y, center_x, center_y = (value[:, None] for value in pinhole_parameters(cameras).unbind(-1))
    safe = torch.where(z.abs() > 1e-9, z, 1e-9)
    return torch.stack([focal_x * x / safe + center_x, focal_y * y / safe + center_y, z], dim=-1)


def _camera_points(vertices: Tensor, cameras: Cameras) -> Tensor:
    """As `maquette.raster.mesh.camera_points`, by a matrix product: fewer steps backwards, roundings of one device."""
    matrix = cameras.world_to_camera.to(torch.float64)
    return vertices.to(torch.float64) @ matrix[:, :3, :3].mT + matrix[:, None, :3, 3]


def face_neighbors(faces: Tensor) -> Tensor:
    """The triangle across every edge, `[M, 3]` int64; edge i runs from corner i to corner i + 1.

    It is -1 at borders, and where more than two triangles meet or two disagree on the side.
    """
    if not len(faces):
        return faces.clone()
    first, second = faces.reshape(-1), faces.roll(-1, dims=1).reshape(-1)
    count = faces.max() + 1
    forward, backward = first * count + second, second * count + first
    keys, order = torch.sort(forward)
    position = torch.searchsorted(keys, backward).clamp_max(len(keys) - 1)
    partner = order[position]
    same = keys[1:] == keys[:-1]
    repeated = torch.zeros_like(forward, dtype=torch.bool)
    repeated[order[1:][same]] = True
    repeated[order[:-1][same]] = True
    match = (keys[position] == backward) & (first != second) & ~repeated & ~repeated[partner]
    return torch.where(match, partner // 3, -1).reshape(-1, 3)


def antialias(
    color: Tensor,
    vertices: Tensor,
    faces: Tensor,
    cameras: Cameras,
    fragments: MeshFragments,
    *,
    neighbors: Tensor | None = None,
    backend: ShadingBackend | None = None,
) -> Tensor:
    """Blends neighbouring pixels across silhouettes by coverage, differentiable by colours and vertex positions.

    Args:
        color: anything per pixel, `[V, H, W, C]`, the background included.
        vertices: `[N, 3]`; faces: `[M, 3]`; cameras: `[V]`.
        fragments: of the same mesh and cameras.
        neighbors: `face_neighbors(faces)`, where it is known already.
        backend: see `surface_weights`.

    Returns:
        `[V, H, W, C]`. What one pixel of a pair loses is what the surface behind gains: for flat colours the sum over
        the picture is that of the exact coverage, up to the corners of the silhouette.

    Raises:
        InvalidInputError: the picture has not the size of the fragments.
    """
    if color.ndim != 4 or color.shape[:3] != fragments.triangle_id.shape:
        raise InvalidInputError(
            f"color must be {[*fragments.triangle_id.shape, 'C']}, got {list(color.shape)}: shade the same fragments"
        )
    neighbors = face_neighbors(faces) if neighbors is None else neighbors
    screen = screen_points(vertices, cameras)
    blended: Tensor = _backend(backend, color).antialias(
        color, screen, faces, neighbors, fragments.triangle_id, fragments.depth
    )
    return blended


def _backend(name: str | None, tensor: Tensor) -> ModuleType:
    device = tensor.device.type
    chosen = name or (device if device in ("cpu", "cuda") else "reference")
    if chosen not in ("reference", "cpu", "cuda"):
        raise InvalidInputError(f"backend must be 'reference', 'cpu', 'cuda' or None, got {name!r}")
    if chosen != "reference" and device != chosen:
        raise UnsupportedError(f"shading backend {chosen!r} needs {chosen.upper()} tensors, got {device}: leave it out")
    return importlib.import_module(f"maquette.raster.shading_{chosen}")
