"""Spreading of colours over a texture on the CPU (Numba), by exact distances.

Nearest along the columns first, then along every row the lower envelope of the parabolas of the columns: Meijster,
Roerdink and Hesselink, "A general algorithm for computing distance transforms in linear time" (2000).
"""

from __future__ import annotations

import numba
import numpy as np

from maquette.raster.cpu_jit import Array, compiled


@compiled()
def nearest_rows(covered: Array, rows: Array) -> None:
    """The row of the nearest covered texel in the column of every texel `[H, W]`, -1 in columns without any."""
    height, width = covered.shape
    for y in range(height):
        for x in range(width):
            rows[y, x] = y if covered[y, x] else (rows[y - 1, x] if y > 0 else -1)
    for y in range(height - 2, -1, -1):
        for x in range(width):
            below = rows[y + 1, x]
            if below > y and (rows[y, x] < 0 or below - y < y - rows[y, x]):
                rows[y, x] = below


@compiled(parallel=True)
def spread(covered: Array, rows: Array, texture: Array) -> None:
    """Gives texels that are not covered the value of the nearest one that is, in place.

    Args:
        covered: `[H, W]`; rows: of `nearest_rows`; texture: `[H, W, C]`.
    """
    height, width = covered.shape
    for y in numba.prange(height):
        columns, starts, last = np.empty(width, np.int64), np.empty(width, np.int64), -1
        for x in range(width):
            if rows[y, x] < 0:
                continue
            here = (rows[y, x] - y) ** 2
            while last >= 0:
                start, other = starts[last], columns[last]
                if (start - other) ** 2 + (rows[y, other] - y) ** 2 <= (start - x) ** 2 + here:
                    break
                last -= 1
            start = 0
            if last >= 0:
                other = columns[last]
                start = 1 + (x * x - other * other + here - (rows[y, other] - y) ** 2) // (2 * (x - other))
            if start < width:
                last += 1
                columns[last], starts[last] = x, start
        for x in range(width - 1, -1, -1):
            if not covered[y, x]:
                texture[y, x] = texture[rows[y, columns[last]], columns[last]]
            if x == starts[last]:
                last -= 1
