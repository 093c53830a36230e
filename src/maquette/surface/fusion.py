"""A mesh from what a sphere of views sees of the Gaussians: depth fused in a signed distance volume, colours sampled.

The volume is the one of Curless and Levoy, "A Volumetric Method for Building Complex Models from Range Images" (1996),
with one change: a view that a voxel is hidden from votes for "inside" with a small weight. So the inside, which no
view sees, is solid, and a stray hole in the shell does not open it.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.raster.cpu_jit import kernel_threads
from maquette.surface import mesh_kernels, tsdf_cuda
from maquette.surface.bake import view_colors
from maquette.surface.captures import Captures, capture, gaussian_reach, sphere_cameras, unit_gaussians
from maquette.surface.triangles import Floats, marching_cubes, vertex_normals
from maquette.surface.tsdf import integrate
from maquette.surface.volume import clean_volume

_TRUNCATION_CELLS = 3.0
_FREE_WEIGHT = 0.5
_HIDDEN_WEIGHT = 0.04
_BELOW, _BELOW_RELIANCE = -0.5, 0.1
"""Sine of the elevation below which views count little where they see something: pictures that networks start from are
taken from the side and above, so that floors are thin or missing there, and views from below look inside."""
_MARGIN = 4
_BLUR_CELLS = 0.7
_NORMAL_STEPS = 2

Doubles = NDArray[np.float64]


def fuse_gaussians(
    gaussians: Gaussians,
    *,
    resolution: int = 160,
    num_views: int = 48,
    image_size: int = 256,
    min_part: float = 0.02,
) -> Mesh:
    """Extracts a closed surface with vertex colours from one set of Gaussians, in their own coordinates.

    Args:
        gaussians: unbatched `[N]`.
        resolution: grid points along the longest side, 16 to 384 (time and memory grow with its cube).
        num_views: views around the object, 12 to 512.
        image_size: of the views in pixels, 32 to 2048; about the resolution or more.
        min_part: connected parts smaller than this share of the largest one are dropped, 0..1.

    Returns:
        Triangles with outward normals and vertex colours, on the device of the Gaussians. The surface of a thin
        opaque shell lies one standard deviation and about half a grid cell outside its centres.

    Raises:
        InvalidInputError: a batch, options out of range, or Gaussians that have no surface (none, all transparent,
            fog, not finite).
    """
    check_fusion(resolution, num_views, image_size, min_part)
    unit = unit_gaussians(gaussians)
    captures = capture(unit.gaussians, sphere_cameras(num_views, image_size))
    points, faces, spacing = fuse_captures(captures, unit.gaussians, resolution=resolution, min_part=min_part)
    normals = smooth_normals(points, faces)
    seen = (captures.depth, captures.color_trust)
    colors = torch.from_numpy(view_colors(captures, *seen, points, normals, tolerance=_TRUNCATION_CELLS * spacing))
    device = gaussians.device
    return Mesh(
        unit.to_world(points).to(device),
        torch.from_numpy(faces).to(device),
        normals=torch.from_numpy(normals).to(device),
        vertex_colors=torch.cat([colors, torch.ones_like(colors[:, :1])], dim=1).to(device),
    )


def check_fusion(resolution: int, num_views: int, image_size: int, min_part: float) -> None:
    """Checks options as they are described at `fuse_gaussians`.

    Raises:
        InvalidInputError: one is out of range.
    """
    if not 16 <= resolution <= 384 or not 0 <= min_part <= 1:
        raise InvalidInputError(f"resolution must lie in 16..384 and min_part in 0..1; got {resolution} and {min_part}")
    if not 12 <= num_views <= 512 or not 32 <= image_size <= 2048:
        raise InvalidInputError(
            f"num_views must lie in 12..512 and image_size in 32..2048; got {num_views} and {image_size}"
        )


def fuse_captures(
    captures: Captures, gaussians: Gaussians, *, resolution: int, min_part: float
) -> tuple[Doubles, NDArray[np.int64], float]:
    """Closed surface of what the views see, in their coordinates.

    Args:
        captures: of the Gaussians.
        gaussians: in the unit sphere; they say how large the grid must be.
        resolution, min_part: as for `fuse_gaussians`.

    Returns:
        Vertices `[N, 3]`, faces `[M, 3]` (counter-clockwise seen from outside), and the spacing of the grid.
    """
    origin, spacing, shape = _grid(gaussians, resolution)
    vertices, faces = marching_cubes(_field(captures, origin, spacing, shape, min_part), 0.0)
    return vertices * spacing + origin, faces, spacing


def _grid(gaussians: Gaussians, resolution: int) -> tuple[Doubles, float, tuple[int, int, int]]:
    """Origin, spacing and shape of a grid around the Gaussians, with a margin of empty cells."""
    reach = gaussian_reach(gaussians)
    low = (gaussians.means - reach).amin(0).double().cpu().numpy()
    high = (gaussians.means + reach).amax(0).double().cpu().numpy()
    spacing = float((high - low).max()) / (resolution - 1 - 2 * _MARGIN)
    sizes = np.ceil((high - low) / spacing).astype(int) + 1 + 2 * _MARGIN
    return low - _MARGIN * spacing, spacing, (int(sizes[0]), int(sizes[1]), int(sizes[2]))


def _field(
    captures: Captures,
    origin: Doubles,
    spacing: float,
    shape: tuple[int, int, int],
    min_part: float,
) -> Floats:
    """Smooth field, positive inside the kept parts, negative outside and on the border."""
    from scipy import ndimage

    sines = captures.positions[:, 1] / captures.positions.norm(dim=1)
    reliance = torch.where(sines < _BELOW, _BELOW_RELIANCE, 1.0).float()
    geometry = reliance.new_tensor([*origin.tolist(), spacing])
    settings = reliance.new_tensor([_TRUNCATION_CELLS * spacing, captures.solid, _FREE_WEIGHT, _HIDDEN_WEIGHT])
    seen = (captures.depth, captures.alpha, captures.trust, captures.matrices, captures.pinhole)
    given = (*seen, reliance, geometry, settings)
    if captures.on_gpu:
        field = tsdf_cuda.integrate(given, shape).cpu().numpy()
    else:
        field, kernel = np.empty(shape, np.float32), cast(Any, integrate)
        with kernel_threads():
            kernel(*(value.numpy() for value in given), field)
    np.negative(field, out=field)
    return clean_volume(ndimage.gaussian_filter(field, _BLUR_CELLS, mode="nearest"), min_part)


def smooth_normals(points: Doubles, faces: NDArray[np.int64]) -> Floats:
    """Unit vertex normals `[N, 3]`, averaged with those of the neighbours."""
    normals = vertex_normals(points, faces)
    for _ in range(_NORMAL_STEPS):
        sums = np.zeros((len(points), 3))
        mesh_kernels.side_sums(faces, normals, sums)
        mixed = normals + sums / 6
        length = np.linalg.norm(mixed, axis=1, keepdims=True)
        normals = np.where(length > 1e-6, mixed / np.maximum(length, 1e-6), normals).astype(np.float32)
    return normals
