"""A first mesh from Gaussians: density on a grid, interior filled, marching cubes, vertex colours."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.surface.density import DensityGrid, Floats, splat_density
from maquette.surface.selection import surface_gaussians
from maquette.surface.triangles import marching_cubes, vertex_normals

_SH_C0 = 0.28209479177387814
_MIN_DENSITY = 0.05
"""A scene whose typical density is below is fog."""
_CLOSING_SHARES = (1 / 80, 1 / 40, 1 / 20, 1 / 12)
"""Holes of the shell up to twice this share of the size are bridged to find the interior; the smallest one wins."""
_MIN_INTERIOR = 0.05
"""An interior smaller than this share of the shell does not count."""
_MARGIN = 4
_NEIGHBOURS = 6
_SATURATION = 2.0
"""Density relative to the level is capped here before it is smoothed, so that dense spots do not bulge."""

Mask = NDArray[np.bool_]


def extract_density(
    gaussians: Gaussians,
    *,
    resolution: int = 160,
    level: float = 0.5,
    fill_interior: bool = True,
    min_part: float = 0.02,
) -> Mesh:
    """Extracts a surface with vertex colours from one set of Gaussians, in their own coordinates.

    The density (sum of opacity times the Gaussian function) is taken relative to its typical value at the
    Gaussians themselves, so thin and faint shells work as well as opaque ones. A closed shell is filled, which
    leaves its outer surface only. Gaussians that are smaller than the distance to their neighbours are widened
    to it, so that a sparse shell does not fall into beads.

    Args:
        gaussians: unbatched `[N]`; spherical harmonics count with their mean colour.
        resolution: grid points along the longest side, 16 to 384 (time and memory grow with its cube).
        level: density of the surface relative to the opacity-weighted median at the Gaussians, in (0, 1); lower
            is thicker and more complete.
        fill_interior: fill what the outside cannot reach through holes of a few cells.
        min_part: connected parts smaller than this share of the largest one are dropped, 0..1.

    Returns:
        Triangles with outward normals and vertex colours, on the device of the Gaussians. The surface lies about
        one standard deviation outside the centres of a thin shell.

    Raises:
        InvalidInputError: a batch, options out of range, or Gaussians that have no surface (none, all
            transparent, fog, not finite).
    """
    if gaussians.batch_shape:
        raise InvalidInputError(f"pass one set of Gaussians, got batch {gaussians.batch_shape}; use gaussians[i]")
    if not 16 <= resolution <= 384 or not 0 < level < 1 or not 0 <= min_part <= 1:
        raise InvalidInputError(
            f"resolution must lie in 16..384, level in (0, 1), min_part in 0..1; got {resolution}, {level}, {min_part}"
        )
    means, covariances, opacities, colors = _visible(gaussians)
    grid = splat_density(means, covariances, opacities, colors, resolution, _MARGIN)
    threshold = level * _typical_density(grid, means, opacities)
    field = _surface_field(grid, threshold, fill_interior, min_part)
    vertices, faces = marching_cubes(field, 1.0)
    vertex_colors = _colors_at(grid, vertices)
    world = vertices * grid.spacing + grid.origin
    device = gaussians.device
    return Mesh(
        torch.from_numpy(world.astype(np.float32)).to(device),
        torch.from_numpy(faces).to(device),
        normals=torch.from_numpy(vertex_normals(world, faces)).to(device),
        vertex_colors=torch.from_numpy(vertex_colors).to(device),
    )


def _visible(gaussians: Gaussians) -> tuple[Floats, Floats, Floats, Floats]:
    """Means, covariances, opacities and colours of finite Gaussians that matter, without far strays."""
    plain = surface_gaussians(gaussians)
    colors = plain.colors if plain.sh_degree is None else plain.colors[:, 0] * _SH_C0 + 0.5
    scales = plain.scales
    axes = _rotation_matrices(plain.quats) * scales[:, None, :]
    covariances = axes @ axes.mT
    lacking = (_spacing(plain.means) ** 2 - scales.square().mean(dim=1)).clamp_min(0)
    covariances = covariances + lacking[:, None, None] * torch.eye(3)
    return (
        plain.means.numpy(),
        covariances.numpy(),
        plain.opacities.numpy(),
        colors.clamp(0, 1).numpy(),
    )


def _spacing(means: Tensor) -> Tensor:
    """Standard deviation `[N]` that a Gaussian needs to melt into its neighbours on a surface.

    Of random points on a plane the 6th neighbour is about 1.4 mean distances away. Twice the median is the most,
    so that lonely Gaussians stay small.
    """
    from scipy import spatial

    if len(means) <= _NEIGHBOURS:
        return torch.zeros(len(means))
    distances, _ = spatial.cKDTree(means.numpy()).query(means.numpy(), k=_NEIGHBOURS + 1)
    farthest = torch.from_numpy(distances[:, -1]).to(means.dtype)
    return 0.7 * farthest.clamp_max(2 * float(farthest.median()))


def _rotation_matrices(quats: Tensor) -> Tensor:
    """Rotations `[N, 3, 3]` of quaternions `[N, 4]` (w, x, y, z), which are normalised first."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=1).unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], 1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], 1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1),
    ]
    return torch.stack(rows, 1)


def _typical_density(grid: DensityGrid, means: Floats, opacities: Floats) -> float:
    """Opacity-weighted median of the density at the Gaussians' centres."""
    cells = np.rint((means - grid.origin) / grid.spacing).astype(int)
    values = grid.density[cells[:, 0], cells[:, 1], cells[:, 2]]
    order = np.argsort(values)
    summed = np.cumsum(opacities[order], dtype=np.float64)
    typical = float(values[order][np.searchsorted(summed, summed[-1] / 2)])
    if typical < _MIN_DENSITY:
        raise InvalidInputError(
            f"no surface: the Gaussians are fog (density {typical:.3g} where they are, at least {_MIN_DENSITY} needed)"
        )
    return typical


def _surface_field(grid: DensityGrid, threshold: float, fill_interior: bool, min_part: float) -> Floats:
    """Smooth field that is above 1 inside the kept solid and below outside."""
    from scipy import ndimage

    field = np.minimum(grid.density / np.float32(threshold), np.float32(_SATURATION))
    shell: Mask = field > 1
    solid = _filled(shell) if fill_interior else shell
    field[solid & ~shell] = 1.5
    labels, count = ndimage.label(solid, structure=np.ones((3, 3, 3)))
    if count > 1:
        volumes = np.bincount(labels.ravel())
        volumes[0] = 0
        small = volumes < min_part * volumes.max()
        small[0] = False
        field[ndimage.binary_dilation(small[labels], iterations=2) & (~solid | small[labels])] = 0
    smoothed: Floats = ndimage.gaussian_filter(field, 1.0)
    return smoothed


def _filled(shell: Mask) -> Mask:
    """The shell with its interior, and the bridges that close it; the shell itself when it has no interior."""
    from scipy import ndimage

    radii = [max(2, round(share * max(shell.shape))) for share in _CLOSING_SHARES]
    pad = radii[-1] + 2
    padded = np.pad(shell, pad)
    distance = ndimage.distance_transform_edt(~padded)
    smallest = radii[0]
    for radius in radii:
        # Outside is what a ball of this radius reaches from the border of the grid without touching the shell.
        free, _ = ndimage.label(distance > radius)
        core = (free > 0) & (free != free[0, 0, 0])
        if int(core.sum()) > _MIN_INTERIOR * int(shell.sum()):
            if radius > smallest:
                # Only the core grows back, so that narrow gaps between outer parts stay open.
                padded |= ndimage.distance_transform_edt(~core) <= radius
                distance = ndimage.distance_transform_edt(~padded)
                free, _ = ndimage.label(distance > smallest)
            reached = ndimage.distance_transform_edt(free != free[0, 0, 0]) <= smallest
            solid: Mask = (~reached | padded)[pad:-pad, pad:-pad, pad:-pad]
            return solid
    return shell


def _colors_at(grid: DensityGrid, vertices: NDArray[np.float64]) -> Floats:
    """Density-weighted colour at vertices (grid units), RGBA `[N, 4]`; bridges take it from their surroundings."""
    from scipy import ndimage

    sums = [grid.color_sums[..., i] for i in range(3)] + [grid.density]
    near = [ndimage.map_coordinates(channel, vertices.T, order=1) for channel in sums]
    if bool((near[3] < 1e-3).any()):
        wide = [ndimage.gaussian_filter(channel, 3.0, truncate=6.0) for channel in sums]
        far = [ndimage.map_coordinates(channel, vertices.T, order=1) for channel in wide]
        near = [a + b * np.float32(1e-2) for a, b in zip(near, far, strict=True)]
    weight = np.maximum(near[3], np.float32(1e-12))
    colors = [(channel / weight).clip(0, 1) for channel in near[:3]]
    return np.stack([*colors, np.ones_like(weight)], axis=1).astype(np.float32)
