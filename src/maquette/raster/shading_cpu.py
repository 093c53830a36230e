"""Shading on the CPU: Numba kernels with their backward passes; see `shading_reference.py` for what they compute.

Tasks own their part of every result (a view, or a chunk of points with a buffer of its own), so nothing is locked, and
results depend neither on timing nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.raster.antialias_cpu import antialias as antialias
from maquette.raster.cpu_jit import Array, compiled, kernel_threads

_BUFFERS = 4
"""Sums of gradients, added up at the end: so many threads at most share that work. With one each, the last digits would
depend on their number."""


def weights(points: Tensor, faces: Tensor, pinhole: Tensor, triangle_id: Tensor) -> Tensor:
    """Weights `[V, H, W, 3]` float64; arguments as in `shading_reference.weights`."""
    apply = cast(Callable[..., Tensor], _Weights.apply)
    return apply(points, faces, pinhole, triangle_id)


def interpolate(attributes: Tensor, faces: Tensor, triangle_id: Tensor, weights: Tensor) -> Tensor:
    """`[P, C]`; arguments as in `shading_reference.interpolate`."""
    apply = cast(Callable[..., Tensor], _Interpolate.apply)
    return apply(attributes, faces, triangle_id, weights.to(attributes.dtype))


def texture(texels: Tensor, sizes: Tensor, uvs: Tensor, levels: Tensor) -> Tensor:
    """`[P, C]`; arguments as in `shading_reference.texture`."""
    apply = cast(Callable[..., Tensor], _Texture.apply)
    return apply(texels, sizes, uvs, levels)


def _array(value: Tensor) -> NDArray[Any]:
    return value.detach().contiguous().numpy()


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, faces: Tensor, pinhole: Tensor, triangle_id: Tensor) -> Tensor:
        ctx.save_for_backward(points, faces, pinhole, triangle_id)
        result = np.zeros((*triangle_id.shape, 3))
        with kernel_threads():
            _weights(_array(points), _array(faces), _array(pinhole), _array(triangle_id), result)
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        points, faces, pinhole, triangle_id = ctx.saved_tensors
        moved = np.zeros(points.shape)
        with kernel_threads():
            _weights_backward(
                _array(points), _array(faces), _array(pinhole), _array(triangle_id), _array(gradient), moved
            )
        return torch.from_numpy(moved), None, None, None


@compiled()
def _ray_values(
    points: Array, face: Array, pinhole: Array, row: int, column: int, ray: Array, corners: Array, values: Array
) -> float:
    """Fills ray `[3]`, corners `[3, 3]` and values `[3]` (ray . (next x after next)); returns the sum of the values."""
    ray[0] = (column + 0.5 - pinhole[2]) / pinhole[0]
    ray[1] = (row + 0.5 - pinhole[3]) / pinhole[1]
    ray[2] = 1.0
    for i in range(3):
        corners[i] = points[face[i]]
    total = 0.0
    for i in range(3):
        p, q = corners[(i + 1) % 3], corners[(i + 2) % 3]
        values[i] = (
            ray[0] * (p[1] * q[2] - p[2] * q[1])
            + ray[1] * (p[2] * q[0] - p[0] * q[2])
            + ray[2] * (p[0] * q[1] - p[1] * q[0])
        )
        total += values[i]
    return total


@compiled(parallel=True)
def _weights(points: Array, faces: Array, pinhole: Array, triangle_id: Array, result: Array) -> None:
    num_views, height, width = triangle_id.shape
    for task in numba.prange(num_views * height):
        view, row = task // height, task % height
        ray, corners, values = np.empty(3), np.empty((3, 3)), np.empty(3)
        for column in range(width):
            index = triangle_id[view, row, column]
            if index >= 0:
                total = _ray_values(points[view], faces[index], pinhole[view], row, column, ray, corners, values)
                for i in range(3):
                    result[view, row, column, i] = values[i] / total


@compiled(parallel=True)
def _weights_backward(
    points: Array, faces: Array, pinhole: Array, triangle_id: Array, gradient: Array, moved: Array
) -> None:
    num_views, height, width = triangle_id.shape
    for view in numba.prange(num_views):
        ray, corners, values, along = np.empty(3), np.empty((3, 3)), np.empty(3), np.empty(3)
        for row in range(height):
            for column in range(width):
                index = triangle_id[view, row, column]
                if index < 0:
                    continue
                total = _ray_values(points[view], faces[index], pinhole[view], row, column, ray, corners, values)
                mean = 0.0
                for i in range(3):
                    mean += gradient[view, row, column, i] * values[i] / total
                for i in range(3):
                    along[i] = (gradient[view, row, column, i] - mean) / total
                for i in range(3):
                    # value i = p . (q x ray) = q . (ray x p) with p, q the corners i + 1, i + 2
                    j, k = (i + 1) % 3, (i + 2) % 3
                    p, q = corners[j], corners[k]
                    for axis in range(3):
                        b, c = (axis + 1) % 3, (axis + 2) % 3
                        moved[view, faces[index, j], axis] += along[i] * (q[b] * ray[c] - q[c] * ray[b])
                        moved[view, faces[index, k], axis] += along[i] * (ray[b] * p[c] - ray[c] * p[b])


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attributes: Tensor, faces: Tensor, triangle_id: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(attributes, faces, triangle_id, weights)
        values = _array(attributes)
        result = np.zeros((len(triangle_id), attributes.shape[1]), values.dtype)
        with kernel_threads():
            _interpolate(values, _array(faces), _array(triangle_id), _array(weights), result)
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        attributes, faces, triangle_id, weights = ctx.saved_tensors
        values, slopes = _array(attributes), np.zeros(weights.shape, _array(weights).dtype)
        spread = np.zeros((_BUFFERS, *values.shape), values.dtype)
        with kernel_threads():
            _interpolate_backward(
                values, _array(faces), _array(triangle_id), _array(weights), _array(gradient), spread, slopes
            )
        return torch.from_numpy(spread.sum(axis=0)), None, None, torch.from_numpy(slopes)


@compiled(parallel=True)
def _interpolate(attributes: Array, faces: Array, triangle_id: Array, weights: Array, result: Array) -> None:
    for n in numba.prange(len(triangle_id)):
        index = triangle_id[n]
        if index >= 0:
            for i in range(3):
                for channel in range(attributes.shape[1]):
                    result[n, channel] += weights[n, i] * attributes[faces[index, i], channel]


@compiled(parallel=True)
def _interpolate_backward(
    attributes: Array, faces: Array, triangle_id: Array, weights: Array, gradient: Array, spread: Array, slopes: Array
) -> None:
    chunks, count = spread.shape[0], len(triangle_id)
    for chunk in numba.prange(chunks):
        for n in range(chunk * count // chunks, (chunk + 1) * count // chunks):
            index = triangle_id[n]
            if index < 0:
                continue
            for i in range(3):
                vertex = faces[index, i]
                for channel in range(attributes.shape[1]):
                    spread[chunk, vertex, channel] += weights[n, i] * gradient[n, channel]
                    slopes[n, i] += attributes[vertex, channel] * gradient[n, channel]


class _Texture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, texels: Tensor, sizes: Tensor, uvs: Tensor, levels: Tensor) -> Tensor:
        ctx.save_for_backward(texels, sizes, uvs, levels)
        values = _array(texels)
        result = np.zeros((len(uvs), texels.shape[1]), values.dtype)
        with kernel_threads():
            _texture(values, _array(sizes), _array(uvs), _array(levels), result)
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        texels, sizes, uvs, levels = ctx.saved_tensors
        values, slopes = _array(texels), np.zeros(uvs.shape, _array(uvs).dtype)
        spread = np.zeros((_BUFFERS, *values.shape), values.dtype)
        with kernel_threads():
            _texture_backward(values, _array(sizes), _array(uvs), _array(levels), _array(gradient), spread, slopes)
        return torch.from_numpy(spread.sum(axis=0)), None, torch.from_numpy(slopes), None


@compiled()
def _footprint(
    sizes: Array, u: float, v: float, level: float, upper: int, where: Array, parts: Array
) -> tuple[float, int, int]:
    """One of the two mip levels of a point: texels `where` `[4]` and `parts` `[2]` (right, lower).

    Returns the share of the level, and its width and height.
    """
    last = len(sizes) - 1
    level = min(max(level, 0.0), float(last))
    low = int(np.floor(level))
    share = level - low if upper else 1.0 - (level - low)
    chosen = min(low + upper, last)
    start = 0
    for i in range(chosen):
        start += sizes[i, 0] * sizes[i, 1]
    height, width = sizes[chosen, 0], sizes[chosen, 1]
    x, y = u * width - 0.5, v * height - 0.5
    left, top = np.floor(x), np.floor(y)
    parts[0], parts[1] = x - left, y - top
    for i in range(4):
        column, row = (int(left) + i % 2) % width, (int(top) + i // 2) % height
        where[i] = start + row * width + column
    return share, width, height


@compiled(parallel=True)
def _texture(texels: Array, sizes: Array, uvs: Array, levels: Array, result: Array) -> None:
    chunks, count = 64, len(uvs)
    for chunk in numba.prange(chunks):
        where, parts = np.empty(4, np.int64), np.empty(2)
        for n in range(chunk * count // chunks, (chunk + 1) * count // chunks):
            for upper in range(2):
                share, _, _ = _footprint(sizes, uvs[n, 0], uvs[n, 1], levels[n], upper, where, parts)
                if share <= 0.0:
                    continue
                for i in range(4):
                    weight = share * (parts[0] if i % 2 else 1.0 - parts[0])
                    weight *= parts[1] if i // 2 else 1.0 - parts[1]
                    for channel in range(texels.shape[1]):
                        result[n, channel] += weight * texels[where[i], channel]


@compiled(parallel=True)
def _texture_backward(
    texels: Array, sizes: Array, uvs: Array, levels: Array, gradient: Array, spread: Array, slopes: Array
) -> None:
    chunks, count = spread.shape[0], len(uvs)
    for chunk in numba.prange(chunks):
        where, parts = np.empty(4, np.int64), np.empty(2)
        for n in range(chunk * count // chunks, (chunk + 1) * count // chunks):
            for upper in range(2):
                share, width, height = _footprint(sizes, uvs[n, 0], uvs[n, 1], levels[n], upper, where, parts)
                if share <= 0.0:
                    continue
                for i in range(4):
                    across = parts[0] if i % 2 else 1.0 - parts[0]
                    down = parts[1] if i // 2 else 1.0 - parts[1]
                    along_x = (1.0 if i % 2 else -1.0) * down * width
                    along_y = (1.0 if i // 2 else -1.0) * across * height
                    for channel in range(texels.shape[1]):
                        change = share * gradient[n, channel]
                        spread[chunk, where[i], channel] += across * down * change
                        slopes[n, 0] += along_x * change * texels[where[i], channel]
                        slopes[n, 1] += along_y * change * texels[where[i], channel]
