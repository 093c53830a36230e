"""Antialiasing along silhouettes on the CPU (Numba); see `shading_reference.py` for what it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
import torch
from torch import Tensor

from maquette.raster.cpu_jit import Array, compiled, kernel_threads

_HOPS = 32
"""As in `shading_reference.py`."""


def antialias(
    color: Tensor, screen: Tensor, faces: Tensor, neighbors: Tensor, triangle_id: Tensor, depth: Tensor
) -> Tensor:
    """`[V, H, W, C]`; arguments as in `shading_reference.antialias`."""
    apply = cast(Callable[..., Tensor], _Antialias.apply)
    return apply(color, screen, faces, neighbors, triangle_id, depth)


def _array(value: Tensor) -> Array:
    return value.detach().contiguous().numpy()


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        color: Tensor,
        screen: Tensor,
        faces: Tensor,
        neighbors: Tensor,
        triangle_id: Tensor,
        depth: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(color, screen, faces, neighbors, triangle_id, depth)
        result = _array(color).copy()
        scene = [_array(value) for value in (color, screen, faces, neighbors, triangle_id, depth)]
        with kernel_threads():
            _forward(*scene, *[result])
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        color, screen, faces, neighbors, triangle_id, depth = ctx.saved_tensors
        slopes = _array(gradient)
        spread, moved = slopes.copy(), np.zeros(screen.shape)
        scene = [_array(value) for value in (color, screen, faces, neighbors, triangle_id, depth)]
        with kernel_threads():
            _backward(*scene, *[slopes, spread, moved])
        return torch.from_numpy(spread), torch.from_numpy(moved), None, None, None, None


@compiled()
def _turn(screen: Array, faces: Array, face: int) -> float:
    """Twice the signed area of a triangle on the screen."""
    a, b, c = screen[faces[face, 0]], screen[faces[face, 1]], screen[faces[face, 2]]
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


@compiled()
def _reach(
    screen: Array, faces: Array, neighbors: Array, face: int, row: int, column: int, step: int, axis: int
) -> tuple[float, int, int]:
    """How far the surface reaches from a pixel centre, and the ends of the silhouette; -1 where there is none."""
    center_x, center_y = column + 0.5, row + 0.5
    line = center_y if axis == 0 else center_x
    origin = center_x if axis == 0 else center_y
    for _ in range(_HOPS):
        distance, leaving = -np.inf, -1
        for i in range(3):
            a, b = screen[faces[face, i]], screen[faces[face, (i + 1) % 3]]
            if a[2] <= 0.0:
                return -1.0, -1, -1
            before, after = a[1 - axis] - line, b[1 - axis] - line
            if (before > 0.0) != (after > 0.0):
                position = a[axis] + before / (before - after) * (b[axis] - a[axis])
                if (position - origin) * step > distance:
                    distance, leaving = (position - origin) * step, i
        if leaving < 0 or not (distance >= 0.0 and distance <= 1.0):
            return -1.0, -1, -1
        following = neighbors[face, leaving]
        outline = following < 0
        if not outline:
            outline = (_turn(screen, faces, following) > 0.0) != (_turn(screen, faces, face) > 0.0)
        if outline:
            p, q = faces[face, leaving], faces[face, (leaving + 1) % 3]
            run_x, run_y = abs(screen[q, 0] - screen[p, 0]), abs(screen[q, 1] - screen[p, 1])
            if (axis == 0 and run_x <= run_y) or (axis == 1 and run_y < run_x):
                return distance, p, q
            return -1.0, -1, -1
        face = following
    return -1.0, -1, -1


@compiled()
def _pair(triangle_id: Array, depth: Array, row: int, column: int, axis: int) -> tuple[bool, int, int, int, int, int]:
    """The pair of a pixel and the next one along an axis: worth a look, step, near and other pixel."""
    next_row, next_column = row + axis, column + 1 - axis
    if next_row >= triangle_id.shape[0] or next_column >= triangle_id.shape[1]:
        return False, 0, 0, 0, 0, 0
    first, second = triangle_id[row, column], triangle_id[next_row, next_column]
    if first == second:
        return False, 0, 0, 0, 0, 0
    here = depth[row, column] if first >= 0 else np.inf
    there = depth[next_row, next_column] if second >= 0 else np.inf
    if there < here:
        return True, -1, next_row, next_column, row, column
    return True, 1, row, column, next_row, next_column


@compiled(parallel=True)
def _forward(
    color: Array, screen: Array, faces: Array, neighbors: Array, triangle_id: Array, depth: Array, result: Array
) -> None:
    num_views, height, width = triangle_id.shape
    for view in numba.prange(num_views):
        for row in range(height):
            for column in range(width):
                for axis in range(2):
                    useful, step, y, x, v, u = _pair(triangle_id[view], depth[view], row, column, axis)
                    if not useful:
                        continue
                    face = triangle_id[view, y, x]
                    reach, _, _ = _reach(screen[view], faces, neighbors, face, y, x, step, axis)
                    if reach < 0.0:
                        continue
                    for channel in range(color.shape[3]):
                        difference = color[view, y, x, channel] - color[view, v, u, channel]
                        if reach < 0.5:
                            result[view, y, x, channel] += (reach - 0.5) * difference
                        else:
                            result[view, v, u, channel] += (reach - 0.5) * difference


@compiled(parallel=True)
def _backward(
    color: Array, screen: Array, faces: Array, neighbors: Array, triangle_id: Array, depth: Array, slopes: Array,
    spread: Array, moved: Array,
) -> None:  # fmt: skip
    num_views, height, width = triangle_id.shape
    for view in numba.prange(num_views):
        for row in range(height):
            for column in range(width):
                for axis in range(2):
                    useful, step, y, x, v, u = _pair(triangle_id[view], depth[view], row, column, axis)
                    if not useful:
                        continue
                    face = triangle_id[view, y, x]
                    reach, p, q = _reach(screen[view], faces, neighbors, face, y, x, step, axis)
                    if reach < 0.0:
                        continue
                    along = 0.0
                    for channel in range(color.shape[3]):
                        difference = color[view, y, x, channel] - color[view, v, u, channel]
                        slope = slopes[view, y, x, channel] if reach < 0.5 else slopes[view, v, u, channel]
                        along += slope * difference
                        spread[view, y, x, channel] += slope * (reach - 0.5)
                        spread[view, v, u, channel] -= slope * (reach - 0.5)
                    line = y + 0.5 if axis == 0 else x + 0.5
                    a, b = screen[view, p], screen[view, q]
                    run, rise = b[axis] - a[axis], b[1 - axis] - a[1 - axis]
                    share = (line - a[1 - axis]) / rise
                    along *= step
                    moved[view, p, axis] += along * (1.0 - share)
                    moved[view, q, axis] += along * share
                    moved[view, p, 1 - axis] -= along * (1.0 - share) * run / rise
                    moved[view, q, 1 - axis] -= along * share * run / rise
