"""Loops of carving on the CPU (Numba), in parallel: every result is of one thread, so their number changes nothing."""

from __future__ import annotations

import numba
import numpy as np

from maquette.raster.cpu_jit import Array, compiled

_FACING = 0.15
"""Cosine to its line of sight from which another view counts."""
_ALIKE, _EQUAL = 0.9, 0.99
"""Cosines of normals from which two pixels may show the same surface, and surely look the same."""


@compiled()
def _pixel(matrix: Array, pinhole: Array, x: float, y: float, z: float) -> tuple[float, float]:
    """Column and row, not yet rounded, where a point of the world lies in a picture."""
    depth = max(matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + matrix[2, 3], 1e-6)
    across = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3]
    down = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3]
    return pinhole[0] * across / depth + pinhole[2], pinhole[1] * down / depth + pinhole[3]


@compiled(parallel=True)
def confirm(
    view: int, rays: Array, normals: Array, depths: Array, matrices: Array, positions: Array, pinhole: Array,
    possible: Array, shown: Array, confirmed: Array,
) -> None:  # fmt: skip
    """How far the other views that a point faces show its normal, 0..1; 1 less where one shows nothing there.

    Args:
        view: whose pixels these are.
        rays: of the pixels, in the axes of the camera `[P, 3]`; normals: in the world `[P, 3]`.
        depths: supposed ones `[K, P]`, NaN for none.
        matrices: from the world to the cameras `[V, 4, 4]`; positions: of the cameras `[V, 3]`; pinhole: `[V, 4]`.
        possible: where a view may show something `[V, H, W]`; shown: its normals `[V, H, W, 3]`.
        confirmed: result `[K, P]`.
    """
    views, height, width = possible.shape
    count = depths.shape[1]
    pose = matrices[view]
    for flat in numba.prange(depths.size):
        guess, pixel = flat // count, flat % count
        depth = depths[guess, pixel]
        a, b, c = rays[pixel, 0] * depth - pose[0, 3], rays[pixel, 1] * depth - pose[1, 3], rays[pixel, 2] * depth
        c -= pose[2, 3]
        x = a * pose[0, 0] + b * pose[1, 0] + c * pose[2, 0]
        y = a * pose[0, 1] + b * pose[1, 1] + c * pose[2, 1]
        z = a * pose[0, 2] + b * pose[1, 2] + c * pose[2, 2]
        total, agreed, outside = 0.0, 0.0, 0.0
        for other in range(views):
            if other == view:
                continue
            u, v = _pixel(matrices[other], pinhole[other], x, y, z)
            inside = 0 <= u < width and 0 <= v < height
            row, column = (int(v), int(u)) if inside else (0, 0)
            seen = inside and possible[other, row, column]
            if not seen:
                outside = 1.0
            ahead, above, aside = positions[other, 0] - x, positions[other, 1] - y, positions[other, 2] - z
            facing = ahead * normals[pixel, 0] + above * normals[pixel, 1] + aside * normals[pixel, 2]
            facing /= np.sqrt(ahead * ahead + above * above + aside * aside)
            if facing > _FACING:
                total += facing
                if seen:
                    cosine = 0.0
                    for axis in range(3):
                        cosine += shown[other, row, column, axis] * normals[pixel, axis]
                    agreed += facing * min(max((cosine - _ALIKE) / (_EQUAL - _ALIKE), 0.0), 1.0)
        confirmed[guess, pixel] = agreed / max(total, 1e-6) - outside


@compiled(parallel=True)
def spread(field: Array, cells: Array, share: Array, passes: int) -> None:
    """Gives cells, again and again, the mean of what is known in the 3 x 3 x 3 cells around them.

    Args:
        field: float32 with a border of zeros, `[X + 2, Y + 2, Z + 2]`; changed where cells lie.
        cells: indices in it `[U, 3]`; share: of the cells around that count, at each `[U]` float32.
        passes: how often; each reads what the one before has written.
    """
    means = np.empty(len(cells), np.float32)
    for _ in range(passes):
        for cell in numba.prange(len(cells)):
            i, j, k = cells[cell, 0], cells[cell, 1], cells[cell, 2]
            total = np.float32(0)
            for x in range(i - 1, i + 2):
                for y in range(j - 1, j + 2):
                    for z in range(k - 1, k + 2):
                        total += field[x, y, z]
            means[cell] = total / np.float32(27) / share[cell]
        for cell in range(len(cells)):  # not in parallel: Numba would make one loop of both
            field[cells[cell, 0], cells[cell, 1], cells[cell, 2]] = means[cell]
