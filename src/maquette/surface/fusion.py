"""A mesh from what a sphere of views sees of the Gaussians: depth fused in a signed distance volume, colours sampled.

The volume is the one of Curless and Levoy, "A Volumetric Method for Building Complex Models from Range Images" (1996),
with one change: a view that a voxel is hidden from votes for "inside" with a small weight. So the inside, which no
view sees, is solid, and a stray hole in the shell does not open it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.raster.api import render_gaussians
from maquette.raster.cpu_jit import Array, kernel_threads
from maquette.surface.selection import surface_gaussians
from maquette.surface.triangles import Floats, marching_cubes, vertex_normals
from maquette.surface.tsdf import gather_colors, integrate

_CAMERA_DISTANCE = 3.0
"""Of the views, for an object in the unit sphere: far enough for parallel-looking views and the near plane."""
_FRAME = 1.03
_TRUNCATION_CELLS = 3.0
_SOLID_SHARE = 0.4
"""A pixel is solid from this share of the typical coverage."""
_MIN_COVERAGE = 0.2
"""Gaussians that typically cover less are fog."""
_FREE_WEIGHT = 0.5
_HIDDEN_WEIGHT = 0.1
_MIN_TRUST = 0.02
_MARGIN = 4
_BLUR_CELLS = 0.7
_NORMAL_STEPS = 2

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class _Pictures:
    """What the views see: arrays `[V, ...]` of float32, colours not multiplied by coverage."""

    color: Array
    depth: Array
    alpha: Array
    trust: Array
    color_trust: Array
    matrices: Array
    pinhole: Array
    positions: Array
    solid: float


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
    _check(gaussians, resolution, num_views, image_size, min_part)
    chosen = surface_gaussians(gaussians)
    center, radius = _sphere(chosen)
    unit = dataclasses.replace(chosen, means=(chosen.means - center) / radius, scales=chosen.scales / radius)
    pictures = _pictures(unit.to(gaussians.device), _cameras(num_views, image_size))
    origin, spacing, shape = _grid(unit, resolution)
    field = _field(pictures, origin, spacing, shape, min_part)
    vertices, faces = marching_cubes(field, 0.0)
    points = vertices * spacing + origin
    normals = _smooth_normals(points, faces)
    colors = _colors(pictures, points, normals, spacing)
    world = points * radius + center.double().numpy()
    device = gaussians.device
    return Mesh(
        torch.from_numpy(world.astype(np.float32)).to(device),
        torch.from_numpy(faces).to(device),
        normals=torch.from_numpy(normals).to(device),
        vertex_colors=torch.from_numpy(colors).to(device),
    )


def _check(gaussians: Gaussians, resolution: int, num_views: int, image_size: int, min_part: float) -> None:
    if gaussians.batch_shape:
        raise InvalidInputError(f"pass one set of Gaussians, got batch {gaussians.batch_shape}; use gaussians[i]")
    if not 16 <= resolution <= 384 or not 0 <= min_part <= 1:
        raise InvalidInputError(f"resolution must lie in 16..384 and min_part in 0..1; got {resolution} and {min_part}")
    if not 12 <= num_views <= 512 or not 32 <= image_size <= 2048:
        raise InvalidInputError(
            f"num_views must lie in 12..512 and image_size in 32..2048; got {num_views} and {image_size}"
        )


def _reach(gaussians: Gaussians) -> Tensor:
    """How far each Gaussian reaches, `[N, 1]`: two of its largest standard deviations."""
    return 2 * gaussians.scales.amax(dim=1, keepdim=True)


def _sphere(gaussians: Gaussians) -> tuple[Tensor, float]:
    """Centre `[3]` (of the box) and radius of a sphere around the Gaussians."""
    reach = _reach(gaussians)
    center = ((gaussians.means - reach).amin(0) + (gaussians.means + reach).amax(0)) / 2
    radius = float(((gaussians.means - center).norm(dim=1) + reach[:, 0]).max())
    if not radius > 0:
        raise InvalidInputError("no surface: the Gaussians have no size")
    return center, radius


def _cameras(count: int, image_size: int) -> Cameras:
    """Views spread evenly over a sphere (a golden spiral), which frame the unit sphere."""
    index = torch.arange(count, dtype=torch.float64)
    elevation = torch.rad2deg(torch.asin(1 - (2 * index + 1) / count))
    azimuth = torch.remainder(index * (180 * (3 - math.sqrt(5))), 360)
    fov = 2 * math.degrees(math.asin(_FRAME / _CAMERA_DISTANCE))
    return Cameras.orbit(azimuth, elevation, radius=_CAMERA_DISTANCE, fov_deg=fov, height=image_size, width=image_size)


def _pictures(gaussians: Gaussians, cameras: Cameras) -> _Pictures:
    """Renders the Gaussians, and tells how far each pixel can be trusted.

    Raises:
        InvalidInputError: they cover too little.
    """
    with torch.inference_mode():
        rendered = render_gaussians(gaussians, cameras.to(gaussians.device), background=(0.0, 0.0, 0.0))
        alpha, depth = rendered.alpha.cpu(), rendered.depth.cpu()
        covered = alpha[alpha > 1 / 255]
        typical = float(np.quantile(covered.numpy(), 0.9)) if covered.numel() else 0.0
        if typical < _MIN_COVERAGE:
            raise InvalidInputError(
                f"no surface: the Gaussians are fog (coverage {typical:.3g} where they are, at least "
                f"{_MIN_COVERAGE} needed)"
            )
        solid = _SOLID_SHARE * typical
        color = rendered.color.cpu() / alpha.clamp_min(1e-6)[:, None]
        depth = depth / alpha.clamp_min(1e-6)
        trust, inner = _trust(depth, alpha, solid, float(cameras.intrinsics[0, 0, 0]))
        intrinsics = cameras.intrinsics
        pinhole = torch.stack([intrinsics[:, i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))], dim=1)
    return _Pictures(
        np.ascontiguousarray(color.clamp(0, 1).permute(0, 2, 3, 1).numpy()),
        depth.contiguous().numpy(),
        alpha.contiguous().numpy(),
        trust.numpy(),
        (trust * inner).numpy(),
        cameras.world_to_camera.contiguous().numpy(),
        pinhole.contiguous().numpy(),
        cameras.positions.contiguous().numpy(),
        solid,
    )


def _trust(depth: Tensor, alpha: Tensor, solid: float, focal: float) -> tuple[Tensor, Tensor]:
    """Weights `[V, H, W]` of the depth, and factors on them for colours.

    The weight is the cosine of the surface seen, from the range of depth among the neighbours, times coverage; where
    depth jumps (silhouettes) it is next to nothing. Pixels that touch an empty one count less for colours, as the
    colours there mix with what lies behind.
    """
    seen = alpha >= solid
    highest = functional.max_pool2d(torch.where(seen, depth, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    lowest = -functional.max_pool2d(torch.where(seen, -depth, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    slope = (highest - lowest) / 2 * focal / depth.clamp_min(1e-6)
    cosine = torch.rsqrt(1 + slope.square())
    trust = torch.where(seen, (cosine * alpha).clamp_min(_MIN_TRUST), 0.0)
    edge = functional.max_pool2d((~seen).float()[:, None], 3, 1, 1)[:, 0]
    inner = (cosine * alpha).square() * torch.where(edge > 0, 0.05, 1.0)
    return trust.float(), inner.float()


def _grid(gaussians: Gaussians, resolution: int) -> tuple[Doubles, float, tuple[int, int, int]]:
    """Origin, spacing and shape of a grid around the Gaussians, with a margin of empty cells."""
    reach = _reach(gaussians)
    low = (gaussians.means - reach).amin(0).double().numpy()
    high = (gaussians.means + reach).amax(0).double().numpy()
    spacing = float((high - low).max()) / (resolution - 1 - 2 * _MARGIN)
    sizes = np.ceil((high - low) / spacing).astype(int) + 1 + 2 * _MARGIN
    return low - _MARGIN * spacing, spacing, (int(sizes[0]), int(sizes[1]), int(sizes[2]))


def _field(
    pictures: _Pictures, origin: Doubles, spacing: float, shape: tuple[int, int, int], min_part: float
) -> Floats:
    """Smooth field, positive inside the kept parts, negative outside and on the border."""
    from scipy import ndimage

    field = np.empty(shape, np.float32)
    geometry = np.array([*origin, spacing], np.float32)
    settings = np.array([_TRUNCATION_CELLS * spacing, pictures.solid, _FREE_WEIGHT, _HIDDEN_WEIGHT], np.float32)
    with kernel_threads():
        integrate(
            pictures.depth,
            pictures.alpha,
            pictures.trust,
            pictures.matrices,
            pictures.pinhole,
            geometry,
            settings,
            field,
        )
    np.negative(field, out=field)
    field = ndimage.gaussian_filter(field, _BLUR_CELLS, mode="nearest")
    for side in (0, -1):
        field[side], field[:, side], field[:, :, side] = -1, -1, -1
    return _without_specks(_without_cavities(field), min_part)


def _without_cavities(field: Floats) -> Floats:
    """Empty parts that do not reach the border become solid."""
    from scipy import ndimage

    labels, count = ndimage.label(field <= 0)
    if count > 1:
        field[(labels > 0) & (labels != labels[0, 0, 0])] = 0.5
    return field


def _without_specks(field: Floats, min_part: float) -> Floats:
    """Solid parts of less than a share of the largest one become empty."""
    from scipy import ndimage

    labels, count = ndimage.label(field > 0, structure=np.ones((3, 3, 3)))
    if count > 1:
        volumes = np.bincount(labels.ravel())
        volumes[0] = 0
        small = volumes < min_part * volumes.max()
        small[0] = False
        field[small[labels]] = -0.5
    return field


def _smooth_normals(points: Doubles, faces: NDArray[np.int64]) -> Floats:
    """Vertex normals, averaged with those of the neighbours."""
    normals = vertex_normals(points, faces)
    first, second = faces.reshape(-1), np.roll(faces, 1, axis=1).reshape(-1)
    for _ in range(_NORMAL_STEPS):
        sums = [np.bincount(first, normals[second, i], len(points)) for i in range(3)]
        mixed = normals + np.stack(sums, axis=1) / 6
        length = np.linalg.norm(mixed, axis=1, keepdims=True)
        normals = np.where(length > 1e-6, mixed / np.maximum(length, 1e-6), normals).astype(np.float32)
    return normals


def _colors(pictures: _Pictures, points: Doubles, normals: Floats, spacing: float) -> Floats:
    """RGBA `[N, 4]` of the points; those that no view sees take the colour of the nearest one that is seen."""
    from scipy import spatial

    sums = np.zeros((len(points), 4), np.float32)
    with kernel_threads():
        gather_colors(
            points.astype(np.float32),
            normals,
            pictures.color,
            pictures.depth,
            pictures.color_trust,
            pictures.matrices,
            pictures.pinhole,
            pictures.positions,
            _TRUNCATION_CELLS * spacing,
            sums,
        )
    seen = sums[:, 3] > 1e-4
    if not seen.any():
        raise InvalidInputError("no surface: the Gaussians are too small or too faint for this resolution; raise it")
    colors = sums[:, :3] / np.maximum(sums[:, 3:], np.float32(1e-12))
    if not seen.all():
        _, nearest = spatial.cKDTree(points[seen]).query(points[~seen])
        colors[~seen] = colors[seen][nearest]
    return np.concatenate([colors.clip(0, 1), np.ones_like(colors[:, :1])], axis=1).astype(np.float32)
