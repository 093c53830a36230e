"""The visual hull of coverage maps: the largest solid whose silhouettes are theirs, a start for refinement."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maquette.errors import InvalidInputError
from maquette.mesh import Mesh
from maquette.raster.shading import screen_points
from maquette.surface.fields import Field, field_mesh
from maquette.surface.normal_maps import NormalMaps

_BOX_POINTS = 48
_LIMIT = 1.0
HULL_POINTS = 72
"""Grid points along the longest side of the hull's box."""


def hull_mesh(maps: NormalMaps, *, resolution: int = HULL_POINTS, min_part: float = 0.02) -> Mesh:
    """Marching cubes of the visual hull inside the box [-1, 1]^3.

    Every map says by its coverage where the object is; what lies outside a picture's frame is taken to be empty. A
    solid point is covered in all of them. Concave places that no silhouette shows stay filled.

    Args:
        maps: two or more; only their coverage counts.
        resolution: grid points along the longest side of the hull's box, 16 to 256.
        min_part: parts smaller than this share of the largest one are dropped, 0..1.

    Returns:
        A closed mesh with smooth normals, on the CPU.

    Raises:
        InvalidInputError: the resolution is out of range, or nothing is covered in all maps.
    """
    if not 16 <= resolution <= 256:
        raise InvalidInputError(f"the resolution of a hull must lie in 16..256, got {resolution}")
    inside = hull_field(maps)
    low, high = hull_box(inside)
    return field_mesh(inside, low, high, resolution=resolution, levels=0, min_part=min_part)


def hull_field(maps: NormalMaps) -> Field:
    """Distance to the hull's surface in world units, about, positive inside; on the CPU."""
    maps = maps.to("cpu")
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        distances = torch.stack(list(pool.map(_signed_distance, maps.alpha)))[:, None]

    def inside(points: Tensor) -> Tensor:
        screen = screen_points(points.double(), maps.cameras)
        size = screen.new_tensor([maps.cameras.width, maps.cameras.height])
        grid = (screen[..., :2] / size * 2 - 1).float()
        pixels = functional.grid_sample(distances, grid[:, None], align_corners=False, padding_mode="border")[:, 0, 0]
        beyond = ((grid.abs() - 1).clamp_min(0) * size.float() / 2).norm(dim=-1)
        focal = maps.cameras.intrinsics[:, 0, 0, None].double()
        world = torch.where(beyond > 0, -beyond, pixels) * (screen[..., 2] / focal).float()
        return torch.where(screen[..., 2] > 0, world, -1.0).amin(dim=0)

    return inside


def _signed_distance(alpha: Tensor) -> Tensor:
    """Distance to the silhouette in pixels, positive where covered, `[H, W]`; half coverage lies on it."""
    from scipy import ndimage

    covered = alpha.numpy() >= 0.5
    if not covered.any():
        raise InvalidInputError("a normal map is empty: nothing is covered in it")
    solid = np.pad(covered, 1)
    to_empty = ndimage.distance_transform_edt(solid)[1:-1, 1:-1]
    to_solid = ndimage.distance_transform_edt(~solid)[1:-1, 1:-1]
    rough = np.where(covered, to_empty - 0.5, 0.5 - to_solid)
    return torch.from_numpy(np.where(np.abs(rough) < 1, alpha.numpy() - 0.5, rough).astype(np.float32))


def hull_box(inside: Field) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Corners of a box around what a field in [-1, 1]^3 has inside.

    Raises:
        InvalidInputError: nothing.
    """
    axis = torch.linspace(-_LIMIT, _LIMIT, _BOX_POINTS)
    points = torch.cartesian_prod(axis, axis, axis)
    spacing = 2 * _LIMIT / (_BOX_POINTS - 1)
    near = points[inside(points) > -spacing]
    if not len(near):
        raise InvalidInputError("the maps have no visual hull: no point is covered in all of them; check the cameras")
    low, high = (near.amin(dim=0) - spacing).tolist(), (near.amax(dim=0) + spacing).tolist()
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])
