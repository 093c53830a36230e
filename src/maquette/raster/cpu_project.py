"""CPU backend, first half of the forward pass: projection of Gaussians and lists of splats per tile.

Projection is float32 in the order of operations of the official rasterizer, without contraction, so that radii, tile
rectangles and contributions near 1/255 agree with it; pixel coordinates pass through float64, as they do there.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from maquette.raster.cpu_jit import F32, Array, Scalar, compiled
from maquette.raster.reference import DILATION_PX, FRUSTUM_MARGIN, MIN_ALPHA, MIN_AREA_RATIO, NEAR_Z, TILE

CHUNK = 1024
"""Gaussians per task."""
SPLAT_FIELDS = 9
"""Fields of a splat: u, v (pixels); xx, xy, yy (exponent in base 2); log2 of the opacity; depth; half height in
pixels; how far the exponent may fall before alpha is under 1/255."""

_LOG2_E = math.log2(math.e)
_ZERO, _HALF, _ONE, _TWO = F32(0), F32(0.5), F32(1), F32(2)
_NEAR, _DILATION, _MARGIN, _TILE, _LAST = F32(NEAR_Z), F32(DILATION_PX), F32(FRUSTUM_MARGIN), F32(TILE), F32(TILE - 1)
_W_EPSILON, _MIN_SPREAD, _SIGMAS, _MIN_ALPHA = F32(1e-7), F32(0.1), F32(3), F32(MIN_ALPHA)
_HALF_LOG2_E, _FULL_LOG2_E, _TWO_LN_2 = F32(-0.5 * _LOG2_E), F32(-_LOG2_E), F32(2 / _LOG2_E)
_LOG2_MIN_ALPHA, _MIN_AREA_RATIO = F32(math.log2(MIN_ALPHA)), F32(MIN_AREA_RATIO)
# Margins for rounding, so that no pixel is lost that a full evaluation would include.
_REACH_FACTOR, _REACH_MARGIN, _PIXEL_MARGIN, _RELATIVE_MARGIN = F32(1.0001), F32(1e-4), F32(0.02), F32(1e-5)


@compiled(inline=True)
def _tile_is_reached(splat: Array, tile_x: int, tile_y: int) -> bool:
    """Whether any pixel of a tile may see at least 1/255 of a splat (never wrongly False).

    The exponent is concave, so its maximum over a box without the centre lies on an edge that faces the centre.
    """
    u, v, xx, xy, yy = splat[0], splat[1], splat[2], splat[3], splat[4]
    low_x, low_y = u - F32((tile_x + 1) * TILE - 1), v - F32((tile_y + 1) * TILE - 1)
    high_x, high_y = u - F32(tile_x * TILE), v - F32(tile_y * TILE)
    near_x, near_y = max(low_x, min(_ZERO, high_x)), max(low_y, min(_ZERO, high_y))
    best_y = max(low_y, min(-xy * near_x / (_TWO * yy), high_y))
    best_x = max(low_x, min(-xy * near_y / (_TWO * xx), high_x))
    on_x_edge = xx * near_x * near_x + xy * near_x * best_y + yy * best_y * best_y
    on_y_edge = xx * best_x * best_x + xy * best_x * near_y + yy * near_y * near_y
    far_x, far_y = max(abs(near_x), abs(best_x)), max(abs(near_y), abs(best_y))
    rounding = _RELATIVE_MARGIN * (xx * far_x * far_x + yy * far_y * far_y)  # negative
    return not (max(on_x_edge, on_y_edge) - rounding < -splat[8])


@compiled(inline=True)
def _clamped_tile(coordinate: Scalar, count: int) -> int:
    """Tile of a pixel coordinate, truncated towards zero, within 0..count, whatever its size."""
    return int(max(_ZERO, min(coordinate / _TILE, F32(count))))


@compiled()
def _scaled_axes(quat: Array, scale: Array) -> tuple[Scalar, ...]:
    """Rows (x, y, z) of the rotation matrix times the scales."""
    w, x, y, z = quat[0], quat[1], quat[2], quat[3]
    x0, x1, x2 = (
        (_ONE - _TWO * (y * y + z * z)) * scale[0],
        _TWO * (x * y - w * z) * scale[1],
        _TWO * (x * z + w * y) * scale[2],
    )
    y0, y1, y2 = (
        _TWO * (x * y + w * z) * scale[0],
        (_ONE - _TWO * (x * x + z * z)) * scale[1],
        _TWO * (y * z - w * x) * scale[2],
    )
    z0, z1, z2 = (
        _TWO * (x * z - w * y) * scale[0],
        _TWO * (y * z + w * x) * scale[1],
        (_ONE - _TWO * (x * x + y * y)) * scale[2],
    )
    return x0, x1, x2, y0, y1, y2, z0, z1, z2


@compiled()
def _world_covariance(quat: Array, scale: Array) -> tuple[Scalar, Scalar, Scalar, Scalar, Scalar, Scalar]:
    """Covariance of a Gaussian (xx, xy, xz, yy, yz, zz) in the world."""
    x0, x1, x2, y0, y1, y2, z0, z1, z2 = _scaled_axes(quat, scale)
    return (
        x0 * x0 + x1 * x1 + x2 * x2,
        x0 * y0 + x1 * y1 + x2 * y2,
        x0 * z0 + x1 * z1 + x2 * z2,
        y0 * y0 + y1 * y1 + y2 * y2,
        y0 * z0 + y1 * z1 + y2 * z2,
        z0 * z0 + z1 * z1 + z2 * z2,
    )


@compiled()
def _linear_projection(
    view: Array, camera: Array, point: tuple[Scalar, Scalar, Scalar], height: int, width: int
) -> tuple[Scalar, ...]:
    """Rows (x, y) of the projection linearised at a point in view space, pixels per world unit."""
    fx, fy = camera[0, 0], camera[1, 1]
    x, y, z = point
    limit_x, limit_y = _MARGIN * F32(width) / (_TWO * fx), _MARGIN * F32(height) / (_TWO * fy)
    near_x, near_y = max(-limit_x, min(limit_x, x / z)) * z, max(-limit_y, min(limit_y, y / z)) * z
    jx, jxz, jy, jyz = fx / z, -fx * near_x / (z * z), fy / z, -fy * near_y / (z * z)
    x0, x1, x2 = (
        jx * view[0, 0] + jxz * view[2, 0],
        jx * view[0, 1] + jxz * view[2, 1],
        jx * view[0, 2] + jxz * view[2, 2],
    )
    y0, y1, y2 = (
        jy * view[1, 0] + jyz * view[2, 0],
        jy * view[1, 1] + jyz * view[2, 1],
        jy * view[1, 2] + jyz * view[2, 2],
    )
    return x0, x1, x2, y0, y1, y2


@compiled()
def _image_covariance(quat: Array, scale: Array, linear: tuple[Scalar, ...]) -> tuple[Scalar, Scalar, Scalar]:
    """Covariance (xx, xy, yy) in squared pixels of a Gaussian, with the dilation; `linear`: `_linear_projection`."""
    x0, x1, x2, y0, y1, y2 = linear
    c_xx, c_xy, c_xz, c_yy, c_yz, c_zz = _world_covariance(quat, scale)
    along_x0, along_x1, along_x2 = (
        c_xx * x0 + c_xy * x1 + c_xz * x2,
        c_xy * x0 + c_yy * x1 + c_yz * x2,
        c_xz * x0 + c_yz * x1 + c_zz * x2,
    )
    along_y0, along_y1, along_y2 = (
        c_xx * y0 + c_xy * y1 + c_xz * y2,
        c_xy * y0 + c_yy * y1 + c_yz * y2,
        c_xz * y0 + c_yz * y1 + c_zz * y2,
    )
    return (
        along_x0 * x0 + along_x1 * x1 + along_x2 * x2 + _DILATION,
        along_y0 * x0 + along_y1 * x1 + along_y2 * x2,
        along_y0 * y0 + along_y1 * y1 + along_y2 * y2 + _DILATION,
    )


@compiled()
def _compensation(quat: Array, scale: Array, linear: tuple[Scalar, ...], determinant: Scalar) -> Scalar:
    """Factor on the opacity in antialiased mode; `determinant`: of the covariance with the dilation.

    The determinant without it is a squared cross product, which stays exact where Gaussians are thin.
    """
    x0, x1, x2, y0, y1, y2, z0, z1, z2 = _scaled_axes(quat, scale)
    u0, u1, u2, v0, v1, v2 = linear
    along_u = (u0 * x0 + u1 * y0 + u2 * z0, u0 * x1 + u1 * y1 + u2 * z1, u0 * x2 + u1 * y2 + u2 * z2)
    along_v = (v0 * x0 + v1 * y0 + v2 * z0, v0 * x1 + v1 * y1 + v2 * z1, v0 * x2 + v1 * y2 + v2 * z2)
    normal_0 = along_u[1] * along_v[2] - along_u[2] * along_v[1]
    normal_1 = along_u[2] * along_v[0] - along_u[0] * along_v[2]
    normal_2 = along_u[0] * along_v[1] - along_u[1] * along_v[0]
    area = normal_0 * normal_0 + normal_1 * normal_1 + normal_2 * normal_2
    return np.sqrt(max(_MIN_AREA_RATIO, area / determinant))


@compiled(inline=True)
def _pixel(
    view: Array, axis: int, mean: Array, focal: Scalar, center: Scalar, size: int, origin: int, inverse_w: Scalar
) -> Scalar:
    """Pixel coordinate of a point along one image axis (0 or 1), by way of clip coordinates as in the official code.

    The origin of a window is taken off after rounding, so that pixels are the same in every window.
    """
    factor, shift = _TWO * focal / F32(size), _TWO * center / F32(size) - _ONE
    clip = (factor * view[axis, 0] + shift * view[2, 0]) * mean[0] + (
        factor * view[axis, 1] + shift * view[2, 1]
    ) * mean[1]
    clip = clip + (factor * view[axis, 2] + shift * view[2, 2]) * mean[2]
    clip = clip + (factor * view[axis, 3] + shift * view[2, 3])
    return F32(((np.float64(clip * inverse_w) + 1.0) * size - 1.0) * 0.5) - F32(origin)


@compiled(inline=True)
def _write_rectangle(
    u: Scalar,
    v: Scalar,
    radius: Scalar,
    half_width: Scalar,
    half_height: Scalar,
    height: int,
    width: int,
    rectangle: Array,
) -> None:
    """Writes the official rectangle of tiles (radius) cut to the one that alpha >= 1/255 can reach."""
    columns, rows = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    left = max(_clamped_tile(u - radius, columns), _clamped_tile(np.floor(u - half_width), columns))
    right = min(_clamped_tile(u + radius + _LAST, columns), _clamped_tile(np.floor(u + half_width) + _TILE, columns))
    top = max(_clamped_tile(v - radius, rows), _clamped_tile(np.floor(v - half_height), rows))
    bottom = min(_clamped_tile(v + radius + _LAST, rows), _clamped_tile(np.floor(v + half_height) + _TILE, rows))
    rectangle[0], rectangle[1], rectangle[2], rectangle[3] = left, top, right, bottom


@compiled()
def _project_one(
    mean: Array,
    quat: Array,
    scale: Array,
    opacity: Scalar,
    view: Array,
    camera: Array,
    image: tuple[int, int],
    origin: Array,
    window: tuple[int, int],
    antialiased: bool,
    splat: Array,
    rectangle: Array,
) -> int:
    """Writes one splat and its tile rectangle; returns the number of tiles reached (0: culled)."""
    x = view[0, 0] * mean[0] + view[0, 1] * mean[1] + view[0, 2] * mean[2] + view[0, 3]
    y = view[1, 0] * mean[0] + view[1, 1] * mean[1] + view[1, 2] * mean[2] + view[1, 3]
    z = view[2, 0] * mean[0] + view[2, 1] * mean[1] + view[2, 2] * mean[2] + view[2, 3]
    if not (z > _NEAR and opacity >= _MIN_ALPHA and np.isfinite(z)):
        return 0
    inverse_w = _ONE / (z + _W_EPSILON)
    u = _pixel(view, 0, mean, camera[0, 0], camera[0, 2], image[1], origin[0], inverse_w)
    v = _pixel(view, 1, mean, camera[1, 1], camera[1, 2], image[0], origin[1], inverse_w)
    linear = _linear_projection(view, camera, (x, y, z), image[0], image[1])
    var_x, cov_xy, var_y = _image_covariance(quat, scale, linear)
    determinant = var_x * var_y - cov_xy * cov_xy
    if not (determinant > _ZERO and np.isfinite(determinant) and np.isfinite(u) and np.isfinite(v)):
        return 0
    if antialiased:
        opacity *= _compensation(quat, scale, linear, determinant)
        if not opacity >= _MIN_ALPHA:
            return 0
    middle = _HALF * (var_x + var_y)
    radius = np.ceil(_SIGMAS * np.sqrt(middle + np.sqrt(max(_MIN_SPREAD, middle * middle - determinant))))
    inverse = _ONE / determinant
    splat[0], splat[1] = u, v
    splat[2] = _HALF_LOG2_E * (var_y * inverse)
    splat[3] = _FULL_LOG2_E * (-cov_xy * inverse)
    splat[4] = _HALF_LOG2_E * (var_x * inverse)
    splat[5], splat[6] = np.log2(opacity), z
    reach = (splat[5] - _LOG2_MIN_ALPHA) * _REACH_FACTOR + _REACH_MARGIN
    half_width = np.sqrt(reach * _TWO_LN_2 * var_x) + _PIXEL_MARGIN + _RELATIVE_MARGIN * abs(u)
    half_height = np.sqrt(reach * _TWO_LN_2 * var_y) + _PIXEL_MARGIN + _RELATIVE_MARGIN * abs(v)
    splat[7], splat[8] = half_height, reach
    finite = np.isfinite(splat[2]) and np.isfinite(splat[3]) and np.isfinite(splat[4])
    if not (finite and np.isfinite(radius) and np.isfinite(half_width) and np.isfinite(half_height)):
        return 0
    _write_rectangle(u, v, radius, half_width, half_height, window[0], window[1], rectangle)
    reached = 0
    for tile_y in range(rectangle[1], rectangle[3]):
        for tile_x in range(rectangle[0], rectangle[2]):
            if _tile_is_reached(splat, tile_x, tile_y):
                reached += 1
    return reached


@compiled(parallel=True)
def project_views(
    means: Array,
    quats: Array,
    scales: Array,
    opacities: Array,
    usable: Array,
    items: Array,
    views: Array,
    cameras: Array,
    image: tuple[int, int],
    origins: Array,
    window: tuple[int, int],
    antialiased: bool,
    splats: Array,
    rectangles: Array,
    counts: Array,
) -> None:
    """Projects Gaussians into a group of S views.

    Args:
        means, quats, scales, opacities: `[B, N, ...]` float32, scales with the modifier.
        usable: whether all values of a Gaussian are finite, `[B, N]` bool.
        items, views, cameras: item, world to camera and intrinsics of each view, `[S]`, `[S, 4, 4]`, `[S, 3, 3]`.
        image: height and width of the whole image in pixels.
        origins: first pixel (x, y) of each view's window, multiples of TILE, `[S, 2]` int64.
        window: height and width of the part of the image to render, in pixels.
        antialiased: whether opacities are compensated for the dilation.
        splats: result, `[S, N, SPLAT_FIELDS]` float32; not written where culled.
        rectangles: result, tiles (x0, y0, x1, y1), upper ends exclusive, `[S, N, 4]` int32; not written where culled.
        counts: result, number of tiles reached, 0 where culled, `[S, N]` int64.
    """
    num_gaussians = means.shape[1]
    chunks = (num_gaussians + CHUNK - 1) // CHUNK
    for task in prange(len(items) * chunks):
        s = task // chunks
        b = items[s]
        first = (task - s * chunks) * CHUNK
        for n in range(first, min(first + CHUNK, num_gaussians)):
            counts[s, n] = 0
            if usable[b, n]:
                counts[s, n] = _project_one(
                    means[b, n],
                    quats[b, n],
                    scales[b, n],
                    opacities[b, n],
                    views[s],
                    cameras[s],
                    image,
                    origins[s],
                    window,
                    antialiased,
                    splats[s, n],
                    rectangles[s, n],
                )


@compiled()
def _front_to_back(splats: Array, counts: Array) -> Array:
    """Indices of the Gaussians that reach a tile, by depth, ties by index: radix sort of the depths' bits."""
    order = np.empty(len(counts), np.int32)
    keys = np.empty(len(counts), np.uint32)
    size = 0
    for n in range(len(counts)):
        if counts[n] > 0:
            order[size] = n
            keys[size] = np.float32(splats[n, 6]).view(np.uint32)  # positive: the bits sort like the numbers
            size += 1
    order, keys = order[:size], keys[:size]
    other_order, other_keys = np.empty_like(order), np.empty_like(keys)
    for shift in (0, 11, 22):
        starts = np.zeros(2049, np.int64)
        for i in range(size):
            starts[((keys[i] >> np.uint32(shift)) & np.uint32(2047)) + np.uint32(1)] += 1
        for digit in range(2048):
            starts[digit + 1] += starts[digit]
        for i in range(size):
            digit = (keys[i] >> np.uint32(shift)) & np.uint32(2047)
            place = starts[digit]
            starts[digit] = place + 1
            other_order[place], other_keys[place] = order[i], keys[i]
        order, other_order = other_order, order
        keys, other_keys = other_keys, keys
    return order


@compiled(parallel=True)
def fill_slots(splats: Array, rectangles: Array, counts: Array, slots: Array, columns: int, slot_tiles: Array) -> None:
    """Writes the tile of every (Gaussian, tile) pair, pairs of one Gaussian one after another.

    Args:
        splats, rectangles, counts: from `project_views`.
        slots: first pair of each Gaussian, `[S, N]` int64.
        columns: tiles per row of the image.
        slot_tiles: result, tile index within the view, `[P]` int32.
    """
    num_gaussians = counts.shape[1]
    chunks = (num_gaussians + CHUNK - 1) // CHUNK
    for task in prange(counts.shape[0] * chunks):
        s = task // chunks
        first = (task - s * chunks) * CHUNK
        for n in range(first, min(first + CHUNK, num_gaussians)):
            if counts[s, n] == 0:
                continue
            slot = slots[s, n]
            for tile_y in range(rectangles[s, n, 1], rectangles[s, n, 3]):
                for tile_x in range(rectangles[s, n, 0], rectangles[s, n, 2]):
                    if _tile_is_reached(splats[s, n], tile_x, tile_y):
                        slot_tiles[slot] = tile_y * columns + tile_x
                        slot += 1


@compiled(parallel=True)
def sort_pairs(
    splats: Array,
    counts: Array,
    slots: Array,
    slot_tiles: Array,
    tile_starts: Array,
    pair_gaussians: Array,
    pair_slots: Array,
) -> None:
    """Sorts the pairs of each view by tile, then from front to back, by counting.

    Args:
        splats, counts, slots, slot_tiles: from `project_views` and `fill_slots`.
        tile_starts: result, first pair of each tile and the end of the last, `[S, T + 1]` int64.
        pair_gaussians, pair_slots: result, Gaussian and slot of every sorted pair, `[P]` int32 and int64.
    """
    tiles = tile_starts.shape[1] - 1
    for s in prange(counts.shape[0]):
        order = _front_to_back(splats[s], counts[s])
        starts = tile_starts[s]
        starts[:] = 0
        if len(counts[s]) == 0:
            continue
        first = slots[s, 0]
        last = slots[s, -1] + counts[s, -1]
        for slot in range(first, last):
            starts[slot_tiles[slot] + 1] += 1
        starts[0] = first
        for tile in range(tiles):
            starts[tile + 1] += starts[tile]
        cursor = starts[:tiles].copy()
        for n in order:
            for slot in range(slots[s, n], slots[s, n] + counts[s, n]):
                tile = slot_tiles[slot]
                pair_gaussians[cursor[tile]] = n
                pair_slots[cursor[tile]] = slot
                cursor[tile] += 1
