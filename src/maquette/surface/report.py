"""How good a mesh is: shape, closedness, and likeness to the Gaussians it was made from."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.raster.api import render_gaussians
from maquette.raster.mesh import rasterize_mesh
from maquette.raster.shading import antialias, interpolate, sample_texture, surface_weights, texture_levels
from maquette.surface.manifold import topology

VIEW_SIZE = 512
"""Of the pictures that are compared, in pixels."""
_AZIMUTHS = tuple(22.5 + 45 * i for i in range(8))
_ELEVATIONS = (-10.0, 0.0, 10.0, 20.0, 30.0, 20.0, 10.0, 0.0)
_VIEWS_AT_ONCE = 2


@dataclass(frozen=True)
class SurfaceReport:
    """What a conversion made.

    Attributes:
        gaussians: number that it started from, 0 for a mesh.
        triangles, vertices: numbers in the file; along seams of a texture vertices are doubled.
        components: connected parts.
        watertight: closed, manifold, consistently oriented (vertices at one position being one).
        area: in squared units of the file.
        volume: in cubed units, or None when it is not watertight.
        psnr_db: of the mesh against the Gaussians' renders on white, mean of 8 views of 512 px, or None.
        psnr_limit_db: the same for the Gaussians' own pictures cut out at half coverage: what any opaque surface in the
            right colours can reach. None as above.
        seconds: stage to time, in order.
    """

    gaussians: int
    triangles: int
    vertices: int
    components: int
    watertight: bool
    area: float
    volume: float | None
    psnr_db: float | None
    psnr_limit_db: float | None
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain values, numbers rounded to six digits."""
        plain = dataclasses.asdict(self)
        return {name: _rounded(value) for name, value in plain.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: round(float(v), 3) for name, v in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def describe(
    mesh: Mesh,
    seconds: dict[str, float],
    gaussians: Gaussians | None = None,
    likeness: tuple[float, float] | None = None,
) -> SurfaceReport:
    """Report of a mesh.

    Args:
        mesh: as it is written.
        seconds: of the stages.
        gaussians: that it was made from.
        likeness: PSNR and its limit, from `likeness_to`.
    """
    shape = topology(mesh.vertices.detach().double().cpu().numpy(), mesh.faces.cpu().numpy())
    return SurfaceReport(
        0 if gaussians is None else gaussians.num_gaussians,
        mesh.num_faces,
        mesh.num_vertices,
        shape.components,
        shape.watertight,
        shape.area,
        shape.volume if shape.watertight else None,
        None if likeness is None else likeness[0],
        None if likeness is None else likeness[1],
        dict(seconds),
    )


def likeness_to(gaussians: Gaussians, mesh: Mesh, center: Tensor, radius: float) -> tuple[float, float]:
    """PSNR in dB of a mesh against the Gaussians' renders, and of the renders cut out at half coverage.

    Args:
        gaussians: `[N]`; mesh: with a texture or vertex colours, in the same coordinates.
        center: `[3]`, radius: of the sphere that the 8 views frame.
    """
    x, y, z = center.tolist()
    cameras = Cameras.orbit(
        _AZIMUTHS,
        _ELEVATIONS,
        radius=3 * radius,
        fov_deg=2 * math.degrees(math.asin(1.03 / 3)),
        height=VIEW_SIZE,
        width=VIEW_SIZE,
        target=(x, y, z),
    )
    errors, limits = [], []
    with torch.inference_mode():
        for start in range(0, len(_AZIMUTHS), _VIEWS_AT_ONCE):
            part = cameras[start : start + _VIEWS_AT_ONCE]
            black = render_gaussians(gaussians, part.to(gaussians.device), background=(0.0, 0.0, 0.0))
            alpha, color = black.alpha[..., None], black.color.permute(0, 2, 3, 1)
            wanted = (color + 1 - alpha).clamp(0, 1)
            cut = torch.where(alpha > 0.5, (color / alpha.clamp_min(1e-6)).clamp(0, 1), 1.0)
            errors.append(_psnr(draw(mesh, part.to(mesh.vertices.device)).to(wanted.device), wanted))
            limits.append(_psnr(cut, wanted))
    return float(torch.cat(errors).mean()), float(torch.cat(limits).mean())


def _psnr(pictures: Tensor, wanted: Tensor) -> Tensor:
    """Of each of the pictures `[V, H, W, 3]`, at most 100 dB."""
    return -10 * (pictures - wanted).square().flatten(1).mean(1).clamp_min(1e-10).log10()


def draw(mesh: Mesh, cameras: Cameras) -> Tensor:
    """Colours of a mesh with one material as they are stored, on white, antialiased, `[V, H, W, 3]`, where it is."""
    vertices, faces = mesh.vertices.detach().float(), mesh.faces
    fragments = rasterize_mesh(vertices, faces, cameras)
    seen = fragments.triangle_id >= 0
    ids = fragments.triangle_id[seen]
    weights = surface_weights(vertices, faces, cameras, fragments)[seen]
    color = vertices.new_ones(len(ids), 3)
    texture = mesh.materials[0].base_color_texture
    if texture is not None and mesh.uvs is not None:
        uvs, texture = mesh.uvs.float(), texture[..., :3].to(vertices).contiguous()
        size = (texture.shape[0], texture.shape[1])
        levels = texture_levels(vertices, faces, uvs, cameras, fragments, size)[seen]
        color = sample_texture(texture, interpolate(uvs, faces, ids, weights), levels)
    if mesh.vertex_colors is not None:
        color = color * interpolate(mesh.vertex_colors[:, :3].float().contiguous(), faces, ids, weights)
    picture = vertices.new_ones(*seen.shape, 3)
    picture[seen] = color
    welded, index = torch.unique(vertices, dim=0, return_inverse=True)
    return antialias(picture, welded, index[faces], cameras, fragments)
