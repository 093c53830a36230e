"""CPU backend: blending of sorted splats in 16x16 tiles, forward and backward.

A row of a tile is one vector of 16 lanes: the innermost loops below have no branches and a constant length, so the
compiler turns them into vector code. Rows that a splat cannot reach are skipped by an exact test.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from maquette.raster.cpu_jit import F32, Array, Scalar, compiled
from maquette.raster.reference import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, TILE

MOMENT_FIELDS = 10
"""Sums over the pixels of a tile: h, h dx, h dy, h dx^2, h dx dy, h dy^2, where h is the gradient of the exponent and
(dx, dy) the centre minus the pixel; then the gradients of red, green, blue and depth."""

_AREA = TILE * TILE
_CHECK_EVERY = 16
_ZERO, _ONE, _HALF, _LAST = F32(0), F32(1), F32(0.5), F32(TILE - 1)
_MIN_ALPHA, _MAX_ALPHA, _MIN_TRANSMITTANCE = F32(MIN_ALPHA), F32(MAX_ALPHA), F32(MIN_TRANSMITTANCE)
_RELATIVE_MARGIN = F32(1e-5)
# 2^f on [-0.5, 0.5], Taylor coefficients ln(2)^k / k!: relative error 2e-7 in float32
_E1, _E2, _E3, _E4, _E5, _E6 = (F32(math.log(2) ** k / math.factorial(k)) for k in range(1, 7))
_LOWEST_EXPONENT, _BIAS, _MANTISSA_BITS = F32(-126), np.int32(127), np.int32(23)


@compiled(fast=True, inline=True)
def _exp2(exponent: Scalar) -> Scalar:
    """2^exponent for exponents up to 126; below -126 the smallest normal number."""
    exponent = max(exponent, _LOWEST_EXPONENT)
    whole = np.floor(exponent + _HALF)
    part = exponent - whole
    power = ((((((_E6 * part + _E5) * part + _E4) * part + _E3) * part + _E2) * part) + _E1) * part + _ONE
    bits = np.int32(np.int32(whole) + _BIAS) << _MANTISSA_BITS
    return power * np.int32(bits).view(np.float32)


@compiled(fast=True, inline=True)
def _row_is_reached(splat: Array, dx: Scalar, dy: Scalar) -> bool:
    """Whether any pixel of a row may see at least 1/255; dx is the centre minus the first pixel, dy minus the row."""
    xx, xy, yy = splat[2], splat[3], splat[4]
    best = max(dx - _LAST, min(-_HALF * xy * dy / xx, dx))
    square_x, square_y = xx * best * best, yy * dy * dy
    return not (square_x + square_y + xy * best * dy - _RELATIVE_MARGIN * (square_x + square_y) < -splat[8])


@compiled(fast=True)
def _blend_row(
    state: Array,
    row: int,
    splat: Array,
    red: Scalar,
    green: Scalar,
    blue: Scalar,
    dx_first: Scalar,
    dy: Scalar,
    rank: Scalar,
) -> None:
    """Adds one splat to one row of a tile. `state` is `[6, TILE * TILE]` flattened: light, r, g, b, depth, last rank.

    Light is what gets through, negative once the pixel has ended.
    """
    xx, xy_dy, yy_dy_dy = splat[2], splat[3] * dy, splat[4] * dy * dy
    log2_opacity, depth = splat[5], splat[6]
    base = np.uint64(row * TILE)
    for lane in range(TILE):
        pixel = base + np.uint64(lane)
        dx = dx_first - F32(lane)
        exponent = (xx * dx + xy_dy) * dx + yy_dy_dy
        alpha = min(_MAX_ALPHA, _exp2(exponent + log2_opacity))
        light = state[pixel]
        after = light * (_ONE - alpha)
        counts = (exponent <= _ZERO) & (alpha >= _MIN_ALPHA) & (light > _ZERO)
        added = counts & (after >= _MIN_TRANSMITTANCE)
        weight = alpha * light if added else _ZERO
        state[pixel] = (after if added else -light) if counts else light
        state[pixel + np.uint64(_AREA)] += weight * red
        state[pixel + np.uint64(2 * _AREA)] += weight * green
        state[pixel + np.uint64(3 * _AREA)] += weight * blue
        state[pixel + np.uint64(4 * _AREA)] += weight * depth
        state[pixel + np.uint64(5 * _AREA)] = rank if added else state[pixel + np.uint64(5 * _AREA)]


@compiled(fast=True)
def _rows_of(splat: Array, top: int) -> tuple[int, int]:
    """First row and end of the rows of a tile that a splat's bounding box covers."""
    first = max(_ZERO, np.ceil(splat[1] - splat[7]) - F32(top))
    end = min(F32(TILE), np.floor(splat[1] + splat[7]) - F32(top) + _ONE)
    return int(first), int(end)


@compiled(fast=True)
def _blend_tile(
    splats: Array, colors: Array, gaussians: Array, left: int, top: int, state: Array, row_lit: Array
) -> None:
    """Blends the splats `gaussians`, sorted from front to back, into the state of one tile."""
    for rank in range(len(gaussians)):
        if rank % _CHECK_EVERY == 0:
            lit = False
            for row in range(TILE):
                brightest = -_ONE
                for lane in range(TILE):
                    brightest = max(brightest, state[row * TILE + lane])
                row_lit[row] = brightest > _ZERO
                lit |= row_lit[row]
            if not lit:
                break
        n = gaussians[rank]
        splat = splats[n]
        first, end = _rows_of(splat, top)
        dx = splat[0] - F32(left)
        for row in range(first, end):
            dy = splat[1] - F32(top + row)
            if row_lit[row] and _row_is_reached(splat, dx, dy):
                _blend_row(state, row, splat, colors[n, 0], colors[n, 1], colors[n, 2], dx, dy, F32(rank + 1))


@compiled(parallel=True)
def blend_views(
    splats: Array,
    colors: Array,
    items: Array,
    backgrounds: Array,
    tile_starts: Array,
    pair_gaussians: Array,
    tile_order: Array,
    threads: int,
    image: Array,
    depth: Array,
    light: Array,
    last: Array,
) -> None:
    """Blends all tiles of a group of S views.

    Args:
        splats: `[S, N, SPLAT_FIELDS]`.
        colors, items: `[B, N, 3]`, item of each view `[S]`.
        backgrounds: `[S, 3]`.
        tile_starts, pair_gaussians: sorted pairs, see `sort_pairs`.
        tile_order: order in which tiles (view * T + tile) are dealt to the threads, `[S * T]`.
        threads: number of tasks.
        image: result, colour over the background, `[S, 3, H, W]`.
        depth: result, `[S, H, W]`.
        light: result, what is left of the light behind everything, `[S, H, W]`.
        last: result, rank in the tile of the last splat that counts, plus one, `[S, H, W]` float32.
    """
    height, width = depth.shape[1:]
    columns = (width + TILE - 1) // TILE
    tiles = tile_starts.shape[1] - 1
    for task in prange(threads):
        state = np.empty(6 * _AREA, np.float32)
        row_lit = np.empty(TILE, np.bool_)
        for position in range(task, len(tile_order), threads):
            s = tile_order[position] // tiles
            tile = tile_order[position] - s * tiles
            left, top = (tile % columns) * TILE, (tile // columns) * TILE
            state[:_AREA] = -_ONE
            state[_AREA:] = _ZERO
            rows, lanes = min(TILE, height - top), min(TILE, width - left)
            for row in range(rows):
                state[row * TILE : row * TILE + lanes] = _ONE
            _blend_tile(
                splats[s],
                colors[items[s]],
                pair_gaussians[tile_starts[s, tile] : tile_starts[s, tile + 1]],
                left,
                top,
                state,
                row_lit,
            )
            for row in range(rows):
                for lane in range(lanes):
                    pixel = row * TILE + lane
                    y, x = top + row, left + lane
                    through = abs(state[pixel])
                    light[s, y, x] = through
                    for channel in range(3):
                        behind = through * backgrounds[s, channel]
                        image[s, channel, y, x] = state[(channel + 1) * _AREA + pixel] + behind
                    depth[s, y, x] = state[4 * _AREA + pixel]
                    last[s, y, x] = state[5 * _AREA + pixel]


@compiled(fast=True)
def _unblend_row(
    state: Array,
    row: int,
    splat: Array,
    red: Scalar,
    green: Scalar,
    blue: Scalar,
    dx_first: Scalar,
    dy: Scalar,
    rank: Scalar,
    sums: Array,
) -> None:
    """Takes one splat off one row of a tile and adds its gradients to `sums`, `[7, TILE]` flattened, lane by lane.

    `state` is `[8, TILE * TILE]` flattened: light, gradient-weighted sum of what lies behind, last rank, gradients of
    r, g, b, depth and alpha.
    """
    xx, xy_dy, yy_dy_dy = splat[2], splat[3] * dy, splat[4] * dy * dy
    log2_opacity, depth = splat[5], splat[6]
    dy_dy = dy * dy
    base = np.uint64(row * TILE)
    for lane in range(TILE):
        cell = np.uint64(lane)
        pixel = base + cell
        dx = dx_first - F32(lane)
        exponent = (xx * dx + xy_dy) * dx + yy_dy_dy
        raw = _exp2(exponent + log2_opacity)
        alpha = min(_MAX_ALPHA, raw)
        added = (exponent <= _ZERO) & (alpha >= _MIN_ALPHA) & (rank <= state[pixel + np.uint64(2 * _AREA)])
        light_after, behind = state[pixel], state[pixel + np.uint64(_AREA)]
        grad_red, grad_green = state[pixel + np.uint64(3 * _AREA)], state[pixel + np.uint64(4 * _AREA)]
        grad_blue, grad_depth = state[pixel + np.uint64(5 * _AREA)], state[pixel + np.uint64(6 * _AREA)]
        grad_alpha = state[pixel + np.uint64(7 * _AREA)]
        own = red * grad_red + green * grad_green + blue * grad_blue + depth * grad_depth + grad_alpha
        inverse = _ONE / (_ONE - alpha)
        light = light_after * inverse
        grad_exponent = raw * (light_after * own - behind) * inverse if added else _ZERO
        weight = alpha * light if added else _ZERO
        state[pixel] = light if added else light_after
        state[pixel + np.uint64(_AREA)] = behind + weight * own
        sums[cell] += grad_exponent
        sums[cell + np.uint64(TILE)] += grad_exponent * dy
        sums[cell + np.uint64(2 * TILE)] += grad_exponent * dy_dy
        sums[cell + np.uint64(3 * TILE)] += weight * grad_red
        sums[cell + np.uint64(4 * TILE)] += weight * grad_green
        sums[cell + np.uint64(5 * TILE)] += weight * grad_blue
        sums[cell + np.uint64(6 * TILE)] += weight * grad_depth


@compiled(fast=True)
def _gather_moments(sums: Array, dx_first: Scalar, moments: Array) -> None:
    """Adds up the lanes of `sums` into one record of MOMENT_FIELDS."""
    h, h_x, h_y, h_xx, h_xy, h_yy = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    red, green, blue, depth = _ZERO, _ZERO, _ZERO, _ZERO
    for lane in range(TILE):
        dx = dx_first - F32(lane)
        h += sums[lane]
        h_x += sums[lane] * dx
        h_xx += sums[lane] * dx * dx
        h_y += sums[TILE + lane]
        h_xy += sums[TILE + lane] * dx
        h_yy += sums[2 * TILE + lane]
        red += sums[3 * TILE + lane]
        green += sums[4 * TILE + lane]
        blue += sums[5 * TILE + lane]
        depth += sums[6 * TILE + lane]
    moments[0], moments[1], moments[2], moments[3], moments[4], moments[5] = h, h_x, h_y, h_xx, h_xy, h_yy
    moments[6], moments[7], moments[8], moments[9] = red, green, blue, depth


@compiled(fast=True)
def _unblend_tile(
    splats: Array,
    colors: Array,
    gaussians: Array,
    slots: Array,
    left: int,
    top: int,
    state: Array,
    sums: Array,
    moments: Array,
) -> None:
    """Walks the splats of one tile from back to front; `moments` gets a record per pair at its slot."""
    row_last = np.zeros(TILE, np.float32)
    furthest = 0
    for row in range(TILE):
        for lane in range(TILE):
            row_last[row] = max(row_last[row], state[2 * _AREA + row * TILE + lane])
        furthest = max(furthest, int(row_last[row]))
    for rank in range(len(gaussians) - 1, furthest - 1, -1):
        moments[slots[rank]] = _ZERO
    for rank in range(furthest - 1, -1, -1):
        n = gaussians[rank]
        splat = splats[n]
        first, end = _rows_of(splat, top)
        dx = splat[0] - F32(left)
        sums[:] = _ZERO
        place = F32(rank + 1)
        for row in range(first, end):
            dy = splat[1] - F32(top + row)
            if place <= row_last[row] and _row_is_reached(splat, dx, dy):
                _unblend_row(state, row, splat, colors[n, 0], colors[n, 1], colors[n, 2], dx, dy, place, sums)
        _gather_moments(sums, dx, moments[slots[rank]])


@compiled(parallel=True)
def unblend_views(
    splats: Array,
    colors: Array,
    items: Array,
    backgrounds: Array,
    tile_starts: Array,
    pair_gaussians: Array,
    pair_slots: Array,
    tile_order: Array,
    threads: int,
    light: Array,
    last: Array,
    grad_image: Array,
    grad_depth: Array,
    grad_alpha: Array,
    moments: Array,
) -> None:
    """Backward pass of `blend_views`; same arguments, and:

    Args:
        pair_slots: slot of every sorted pair, `[P]`.
        light, last: results of the forward pass.
        grad_image, grad_depth, grad_alpha: gradients of the outputs, `[S, 3, H, W]`, `[S, H, W]`, `[S, H, W]`.
        moments: result, gradients of every pair by slot, `[P, MOMENT_FIELDS]`.
    """
    height, width = light.shape[1:]
    columns = (width + TILE - 1) // TILE
    tiles = tile_starts.shape[1] - 1
    for task in prange(threads):
        state = np.empty(8 * _AREA, np.float32)
        sums = np.empty(7 * TILE, np.float32)
        for position in range(task, len(tile_order), threads):
            s = tile_order[position] // tiles
            tile = tile_order[position] - s * tiles
            start, end = tile_starts[s, tile], tile_starts[s, tile + 1]
            if start == end:
                continue
            left, top = (tile % columns) * TILE, (tile // columns) * TILE
            state[:] = _ZERO
            for row in range(min(TILE, height - top)):
                for lane in range(min(TILE, width - left)):
                    pixel = row * TILE + lane
                    y, x = top + row, left + lane
                    through = light[s, y, x]
                    state[pixel] = through
                    state[2 * _AREA + pixel] = last[s, y, x]
                    for channel in range(3):
                        gradient = grad_image[s, channel, y, x]
                        state[(3 + channel) * _AREA + pixel] = gradient
                        state[_AREA + pixel] += through * backgrounds[s, channel] * gradient
                    state[6 * _AREA + pixel] = grad_depth[s, y, x]
                    state[7 * _AREA + pixel] = grad_alpha[s, y, x]
            _unblend_tile(
                splats[s],
                colors[items[s]],
                pair_gaussians[start:end],
                pair_slots[start:end],
                left,
                top,
                state,
                sums,
                moments,
            )
