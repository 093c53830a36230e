"""Density and colour of Gaussians on a regular grid (Numba, parallel over slabs of the grid)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_CUTOFF = 3.0
"""Gaussians reach this many standard deviations."""
_SLABS = 16

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DensityGrid:
    """Values at grid points: point (i, j, k) lies at `origin + spacing * (i, j, k)` (x, y, z).

    Attributes:
        density: sum of opacity * exp(-d^2 / 2) over the Gaussians, `[X, Y, Z]`.
        color_sums: the same sum with colours, `[X, Y, Z, 3]`; divided by density it is a colour.
        origin: world position of point (0, 0, 0).
        spacing: distance of neighbouring points in world units.
    """

    density: Floats
    color_sums: Floats
    origin: NDArray[np.float64]
    spacing: float


def splat_density(
    means: Floats, covariances: Floats, opacities: Floats, colors: Floats, resolution: int, margin: int
) -> DensityGrid:
    """Sums Gaussians on a grid whose longest side has `resolution` points, `margin` of them empty at each end.

    Args:
        means: `[N, 3]`, world.
        covariances: `[N, 3, 3]`, world units squared. A blur of half a cell is added, so that thin Gaussians
            do not fall between the points.
        opacities: `[N]`, 0..1.
        colors: `[N, 3]`.
        resolution, margin: in points; resolution > 2 * margin.
    """
    reach = _CUTOFF * np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    low, high = (means - reach).min(axis=0).astype(np.float64), (means + reach).max(axis=0).astype(np.float64)
    spacing = float((high - low).max()) / (resolution - 1 - 2 * margin)
    shape = np.ceil((high - low) / spacing).astype(int) + 1 + 2 * margin
    origin = low - margin * spacing
    blurred = (covariances / spacing**2).astype(np.float64) + np.eye(3) * 0.25
    centers = ((means - origin) / spacing).astype(np.float32)
    radii = (_CUTOFF * np.sqrt(np.diagonal(blurred, axis1=1, axis2=2))).astype(np.float32)
    inverse = np.linalg.inv(blurred)
    packed = np.stack([inverse[:, i, j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))], axis=1)
    sums = np.zeros((*shape, 4), np.float32)
    _splat(centers, radii, packed.astype(np.float32), opacities, colors, sums)
    return DensityGrid(np.ascontiguousarray(sums[..., 3]), np.ascontiguousarray(sums[..., :3]), origin, spacing)


def _splat_slabs(centers: Any, radii: Any, inverse: Any, opacities: Any, colors: Any, sums: Any) -> None:
    """Adds every Gaussian to `sums` `[X, Y, Z, 4]` (colour * weight, weight); each thread owns slabs of X."""
    size_x, size_y, size_z = sums.shape[0], sums.shape[1], sums.shape[2]
    limit = np.float32(_CUTOFF * _CUTOFF)
    for slab in numba.prange(_SLABS):
        begin, end = slab * size_x // _SLABS, (slab + 1) * size_x // _SLABS
        for n in range(centers.shape[0]):
            cx, cy, cz = centers[n, 0], centers[n, 1], centers[n, 2]
            x0 = max(begin, int(np.ceil(cx - radii[n, 0])))
            x1 = min(end - 1, int(np.floor(cx + radii[n, 0])))
            if x0 > x1:
                continue
            y0, y1 = max(0, int(np.ceil(cy - radii[n, 1]))), min(size_y - 1, int(np.floor(cy + radii[n, 1])))
            z0, z1 = max(0, int(np.ceil(cz - radii[n, 2]))), min(size_z - 1, int(np.floor(cz + radii[n, 2])))
            a, b, c = inverse[n, 0], inverse[n, 1], inverse[n, 2]
            d, e, f = inverse[n, 3], inverse[n, 4], inverse[n, 5]
            for x in range(x0, x1 + 1):
                dx = np.float32(x) - cx
                for y in range(y0, y1 + 1):
                    dy = np.float32(y) - cy
                    flat = a * dx * dx + np.float32(2) * b * dx * dy + d * dy * dy
                    cross = np.float32(2) * (c * dx + e * dy)
                    for z in range(z0, z1 + 1):
                        dz = np.float32(z) - cz
                        distance = flat + dz * (cross + f * dz)
                        if distance < limit:
                            weight = opacities[n] * np.exp(np.float32(-0.5) * distance)
                            sums[x, y, z, 0] += weight * colors[n, 0]
                            sums[x, y, z, 1] += weight * colors[n, 1]
                            sums[x, y, z, 2] += weight * colors[n, 2]
                            sums[x, y, z, 3] += weight


_splat = numba.njit(cache=True, parallel=True, fastmath=True)(_splat_slabs)
