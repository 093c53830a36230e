"""Textures from pictures: every texel averages what the views that see it show, front views most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.raster.cpu_jit import kernel_threads
from maquette.raster.mesh import rasterize_mesh
from maquette.raster.shading import interpolate
from maquette.surface import tsdf_cuda
from maquette.surface.captures import Captures
from maquette.surface.triangles import Floats
from maquette.surface.tsdf import gather_colors

_DEPTH_TOLERANCE = 0.01
"""A point this far behind the mesh that a view sees is still seen; the object has radius 1."""
_NEAREST_OF = 50_000
"""Points that are seen lend their colours to the others; of more than twice as many, every second and so on."""


@dataclass(frozen=True)
class Charts:
    """Where the texels of a texture lie on a mesh.

    Attributes:
        covered: texels whose centre is inside a chart, `[S, S]`.
        points: their positions, `[P, 3]`; normals: unit, `[P, 3]`, in the order of `covered.nonzero()`.
    """

    covered: NDArray[np.bool_]
    points: Floats
    normals: Floats


def chart_texels(vertices: Tensor, normals: Tensor, uvs: Tensor, faces: Tensor, size: int) -> Charts:
    """Finds positions and normals of the texels of a square texture.

    Args:
        vertices, normals: `[K, 3]`; uvs: `[K, 2]`; faces: `[M, 3]`; on one device, which does the work.
        size: of the texture.
    """
    # Seen by a pinhole of focal length `size` at distance 1, texture coordinates are pixels.
    flat = torch.cat([uvs.double(), torch.ones_like(uvs[:, :1]).double()], dim=1)
    intrinsics = torch.diag(torch.tensor([size, size, 1.0], dtype=torch.float64))[None]
    camera = Cameras(torch.eye(4, dtype=torch.float64)[None], intrinsics, size, size).to(uvs.device)
    fragments = rasterize_mesh(flat, faces, camera)
    ids = fragments.triangle_id.reshape(-1)
    seen = ids >= 0
    weights = fragments.barycentrics.reshape(-1, 3)[seen]
    both = interpolate(torch.cat([vertices, normals], dim=1).float(), faces, ids[seen], weights)
    unit = torch.nn.functional.normalize(both[:, 3:], dim=1)
    covered, points = seen.reshape(size, size), both[:, :3].contiguous()
    return Charts(covered.cpu().numpy(), points.cpu().numpy(), unit.cpu().numpy())


def bake_texture(captures: Captures, vertices: Tensor, faces: Tensor, charts: Charts) -> Tensor:
    """Texture `[S, S, 4]` of what the views show, seams dilated over all that no chart covers; on the CPU.

    Args:
        captures: the views.
        vertices: `[N, 3]`; faces: `[M, 3]`: the mesh, in the views' coordinates, which hides parts of itself.
        charts: of the texture.
    """
    colors = bake_colors(captures, vertices, faces, charts.points, charts.normals)
    texture = np.ones((*charts.covered.shape, 4), np.float32)
    texture.reshape(-1, 4)[np.flatnonzero(charts.covered), :3] = colors
    return torch.from_numpy(dilate(texture, charts.covered))


def bake_colors(captures: Captures, vertices: Tensor, faces: Tensor, points: NDArray[Any], normals: Floats) -> Floats:
    """Colours `[P, 3]` of points on a mesh; those that no view sees take the colour of the nearest one that is seen.

    Args:
        captures: the views.
        vertices: `[N, 3]`; faces: `[M, 3]`: the mesh, in the views' coordinates, which hides parts of itself.
        points, normals: `[P, 3]`.

    Raises:
        InvalidInputError: no view sees any of the points.
    """
    device = captures.device
    fragments = rasterize_mesh(vertices.to(device), faces.to(device), captures.cameras)
    trust = torch.where(fragments.triangle_id >= 0, captures.color_trust, 0.0)
    return view_colors(captures, fragments.depth, trust, points, normals, tolerance=_DEPTH_TOLERANCE)


def view_colors(
    captures: Captures, depth: Tensor, trust: Tensor, points: NDArray[Any], normals: Floats, *, tolerance: float
) -> Floats:
    """Colours `[P, 3]` that views show at points; those that no view sees take that of the nearest one that is seen.

    Args:
        captures: the views.
        depth: of what hides points from the views, `[V, H, W]`.
        trust: weight of the colour of each pixel, `[V, H, W]`.
        points, normals: `[P, 3]`.
        tolerance: how far a point may lie from what a view sees and still be seen.

    Raises:
        InvalidInputError: no view sees any of the points.
    """
    from scipy import spatial

    given = [torch.from_numpy(value) for value in (points.astype(np.float32), normals)]
    given += [captures.color, depth, trust, captures.matrices, captures.pinhole, captures.positions]
    if captures.on_gpu:
        sums = tsdf_cuda.gather_colors([value.to(captures.device) for value in given], tolerance)
    else:
        sums, kernel = torch.zeros(len(points), 4), cast(Any, gather_colors)
        with kernel_threads():
            kernel(*(value.numpy() for value in given), tolerance, sums.numpy())
    seen = (sums[:, 3] > 1e-4).cpu().numpy()
    if not seen.any():
        raise InvalidInputError("no surface: the Gaussians are too small or too faint for this resolution; raise it")
    colors: Floats = (sums[:, :3] / sums[:, 3:].clamp_min(1e-12)).clamp(0, 1).cpu().numpy()
    if not seen.all():
        some = np.flatnonzero(seen)[:: max(1, int(seen.sum()) // _NEAREST_OF)]
        _, nearest = spatial.cKDTree(points[some]).query(points[~seen])
        colors[~seen] = colors[some[nearest]]
    return colors


def dilate(texture: Floats, covered: NDArray[np.bool_]) -> Floats:
    """Gives every texel that no chart covers the value of the nearest that one covers."""
    from scipy import ndimage

    if covered.all() or not covered.any():
        return texture
    index = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    spread: Floats = texture[index[0], index[1]]
    return spread
