"""A start for refinement that has the hollows too: the visual hull, carved where normal maps give depth.

A hull is filled wherever no silhouette looks into it (a seat between arms, a pot): normals alone never lower such a
place, they only make it flat. Depth found in the maps (see `depths.py`) says which part of the hull is empty.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.mesh import Mesh
from maquette.raster.cpu_jit import kernel_threads
from maquette.raster.mesh import rasterize_mesh
from maquette.raster.shading import screen_points
from maquette.surface.carve_kernels import spread
from maquette.surface.depths import depth_maps
from maquette.surface.fields import field_mesh, sample_field
from maquette.surface.fusion import smooth_normals
from maquette.surface.hull import HULL_POINTS, hull_box, hull_field
from maquette.surface.normal_maps import NormalMaps
from maquette.surface.triangles import marching_cubes
from maquette.surface.volume import clean_volume

_MAPS_PX = 256
"""Depth is looked for in maps of about this size: larger ones are halved."""
_BAND = 3.0
"""Around a depth, in cells: within, its distance counts; before it is empty."""
_BEHIND, _BEHIND_WEIGHT = 4.0, 0.1
"""So many bands behind a depth are likely solid."""
_LEAST_WEIGHT = 0.02
_SPREADS = 60
"""Passes that carry what is known into what no view tells."""


def carved_mesh(maps: NormalMaps, *, resolution: int = 96, min_part: float = 0.02) -> Mesh:
    """Marching cubes of the visual hull without what the depth in the maps shows to be empty.

    Args:
        maps: three or more.
        resolution: grid points along the longest side of the hull's box, 16 to 256.
        min_part: parts smaller than this share of the largest one are dropped, 0..1.

    Returns:
        A closed mesh with smooth normals, on the CPU; the hull itself where the maps give no depth.

    Raises:
        InvalidInputError: the resolution is out of range, or nothing is covered in all maps.
    """
    if not 16 <= resolution <= 256:
        raise InvalidInputError(f"the resolution of a hull must lie in 16..256, got {resolution}")
    # Many small pieces: a GPU would wait for the next one most of the time.
    maps = small = maps.to("cpu")
    while min(small.cameras.height, small.cameras.width) >= 2 * _MAPS_PX:
        small = small.halved()
    inside = hull_field(maps)
    low, high = hull_box(inside)
    hull = field_mesh(inside, low, high, resolution=HULL_POINTS, levels=0, min_part=min_part)
    front = rasterize_mesh(hull.vertices, hull.faces, small.cameras)
    depths = depth_maps(small, front.depth)
    values, _ = sample_field(inside, low, high, resolution, levels=0)
    spacing = max(b - a for a, b in zip(low, high, strict=True)) / (resolution - 1)
    field = _carved(torch.from_numpy(values), torch.tensor(low), spacing, small, depths)
    vertices, faces = marching_cubes(clean_volume(field.numpy(), min_part), 0.0)
    points = vertices * spacing + np.asarray(low)
    return Mesh(
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(faces),
        normals=torch.from_numpy(smooth_normals(points, faces)),
    )


def _carved(hull: Tensor, low: Tensor, spacing: float, maps: NormalMaps, depths: Tensor) -> Tensor:
    """The hull's field `[X, Y, Z]`, lowered where depths say so; distances in world units, positive inside."""
    solid = hull > 0
    points = low + spacing * solid.nonzero()
    band = _BAND * spacing
    total, sums = torch.zeros(len(points)), torch.zeros(len(points))
    for view in range(len(depths)):
        distance, weight = _behind(points, maps.cameras[view : view + 1], maps.normals[view], depths[view])
        weight = torch.where(distance > band, _BEHIND_WEIGHT * weight, weight)
        weight = torch.where(distance > _BEHIND * band, 0.0, weight)
        sums += weight * distance.clamp(-band, band)
        total += weight
    known = total > _LEAST_WEIGHT
    inner = torch.zeros_like(hull)
    inner[solid] = torch.where(known, sums / total.clamp_min(1e-9), band)
    unknown = torch.zeros_like(solid)
    unknown[solid] = ~known
    # The outside of the hull takes no part: where nothing is known, the hull stays.
    share = functional.avg_pool3d(solid.float()[None, None], 3, 1, 1)[0, 0].clamp_min(1e-3)
    bordered = functional.pad(inner, (1, 1, 1, 1, 1, 1)).numpy()
    with kernel_threads():
        spread(bordered, np.ascontiguousarray(unknown.nonzero().numpy() + 1), share[unknown].numpy(), _SPREADS)
    return torch.minimum(hull, torch.from_numpy(bordered[1:-1, 1:-1, 1:-1]))


def _behind(points: Tensor, camera: Cameras, normals: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """How far points lie behind the surface that a view's depth tells, square to it, and the weight of that."""
    screen = screen_points(points.double(), camera)[0]
    column, row = screen[:, 0].floor().long(), screen[:, 1].floor().long()
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    column, row = column.clamp(0, camera.width - 1), row.clamp(0, camera.height - 1)
    there = depth[row, column]
    towards = camera.positions[0].double() - points
    length = towards.norm(dim=1)
    cosine = ((towards * normals[row, column]).sum(dim=1) / length).clamp(0.1, 1)
    distance = (screen[:, 2] - there) * cosine * length / screen[:, 2]
    return distance.float(), torch.where(inside & (there > 0), cosine, 0.0).float()
