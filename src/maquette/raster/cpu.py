"""Gaussian rasterizer for the CPU, in Numba: same results as `reference.py`, in float32.

Views are projected, their splats sorted into 16x16 tiles, and tiles blended in parallel. The backward pass walks each
tile from back to front and writes one record of gradients per (tile, Gaussian) pair; each Gaussian then adds up its own
records. Nothing is accumulated across threads, so equal inputs give equal bytes on any number of threads.

The first call after an installation compiles the kernels (about 20 seconds); later processes load them from disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maquette.raster.cpu_blend import MOMENT_FIELDS, blend_views, unblend_views
from maquette.raster.cpu_jit import Array, kernel_threads
from maquette.raster.cpu_project import SPLAT_FIELDS, fill_slots, project_views, sort_pairs
from maquette.raster.cpu_unproject import unproject_views
from maquette.raster.reference import TILE

GROUP_SPLATS = 1 << 20
"""Views are processed in groups of at most this many splats (one view at least), which bounds the memory."""


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    background: Tensor,
    scale_modifier: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Renders every set of Gaussians from every camera of its item; see `reference.rasterize`.

    Differentiable once, in the first five arguments. All tensors are on the CPU; computes and returns float32.
    """
    apply = cast(Callable[..., tuple[Tensor, Tensor, Tensor]], _Rasterize.apply)
    return apply(
        means, quats, scales, opacities, colors, world_to_camera, intrinsics, height, width, background, scale_modifier
    )


@dataclass(frozen=True)
class _Arguments:
    """The inputs as contiguous float32 arrays; views of all items in one dimension of length B * V."""

    means: Array
    quats: Array
    scales: Array
    opacities: Array
    colors: Array
    usable: Array
    items: Array
    views: Array
    cameras: Array
    backgrounds: Array
    height: int
    width: int
    scale_modifier: float


@dataclass(frozen=True)
class _Group:
    """A run of views with their splats sorted into tiles; see `project_views` and `sort_pairs` for the arrays."""

    views: slice
    splats: Array
    counts: Array
    slots: Array
    tile_starts: Array
    pair_gaussians: Array
    pair_slots: Array
    tile_order: Array


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        arguments = _prepare(*inputs)
        batch, views = inputs[5].shape[:2]
        images, height, width = len(arguments.items), arguments.height, arguments.width
        image = np.empty((images, 3, height, width), np.float32)
        depth, light, last = (np.empty((images, height, width), np.float32) for _ in range(3))
        keep_groups = any(ctx.needs_input_grad[:5])
        groups = []
        with kernel_threads() as threads:
            for part in _view_groups(arguments):
                group = _project_group(arguments, part)
                blend_views(
                    group.splats,
                    arguments.colors,
                    arguments.items[part],
                    arguments.backgrounds[part],
                    group.tile_starts,
                    group.pair_gaussians,
                    group.tile_order,
                    threads,
                    image[part],
                    depth[part],
                    light[part],
                    last[part],
                )
                if keep_groups:
                    groups.append(group)
        if keep_groups:
            ctx.save_for_backward(*inputs[:5])
            ctx.saved = (arguments, groups, light, last)
            ctx.dtypes = [value.dtype for value in inputs[:5]]
        color, alpha = torch.from_numpy(image), torch.from_numpy(1 - light)
        shape = (batch, views, height, width)
        return color.view(batch, views, 3, height, width), torch.from_numpy(depth).view(shape), alpha.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_color: Tensor, grad_depth: Tensor, grad_alpha: Tensor) -> tuple[Tensor | None, ...]:
        arguments, groups, light, last = ctx.saved
        gradients = np.zeros((*arguments.opacities.shape, 14), np.float32)
        upstream = tuple(_array(gradient.flatten(0, 1)) for gradient in (grad_color, grad_depth, grad_alpha))
        _ = ctx.saved_tensors  # raises if an input was changed in place since: the arrays share its memory
        with kernel_threads() as threads:
            for group in groups:
                _backward_group(arguments, group, light, last, upstream, threads, gradients)
        parts = torch.split(torch.from_numpy(gradients), [3, 4, 3, 1, 3], dim=-1)
        results = [parts[0], parts[1], parts[2], parts[3].squeeze(-1), parts[4]]
        wanted = [
            result.to(dtype) if needed else None
            for result, dtype, needed in zip(results, ctx.dtypes, ctx.needs_input_grad[:5], strict=True)
        ]
        return (*wanted, None, None, None, None, None, None)


def _array(tensor: Tensor) -> Array:
    """A tensor as a contiguous float32 array."""
    return np.ascontiguousarray(tensor.detach().to(torch.float32).numpy())


def _prepare(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    background: Tensor,
    scale_modifier: float,
) -> _Arguments:
    """Arrays of the inputs; marks Gaussians with values that are not finite as unusable."""
    values = [_array(value) for value in (means, quats, scales, opacities, colors)]
    usable = np.isfinite(values[3])
    for value in (values[0], values[1], values[2], values[4]):
        usable &= np.isfinite(value).all(-1)
    batch, views = world_to_camera.shape[:2]
    return _Arguments(
        means=values[0],
        quats=values[1],
        scales=values[2] * np.float32(scale_modifier),
        opacities=values[3],
        colors=values[4],
        usable=usable,
        items=np.repeat(np.arange(batch), views),
        views=_array(world_to_camera.flatten(0, 1)),
        cameras=_array(intrinsics.flatten(0, 1)),
        backgrounds=_array(background.flatten(0, 1)),
        height=height,
        width=width,
        scale_modifier=scale_modifier,
    )


def _view_groups(arguments: _Arguments) -> Iterator[slice]:
    """Runs of views that are processed together."""
    size = max(1, GROUP_SPLATS // max(1, arguments.means.shape[1]))
    for first in range(0, len(arguments.items), size):
        yield slice(first, min(first + size, len(arguments.items)))


def _project_group(arguments: _Arguments, part: slice) -> _Group:
    """Projects the Gaussians into a run of views and sorts them into tiles."""
    items, num_gaussians = arguments.items[part], arguments.means.shape[1]
    shape = (len(items), num_gaussians)
    splats = np.empty((*shape, SPLAT_FIELDS), np.float32)
    rectangles = np.empty((*shape, 4), np.int32)
    counts = np.empty(shape, np.int64)
    project_views(
        arguments.means,
        arguments.quats,
        arguments.scales,
        arguments.opacities,
        arguments.usable,
        items,
        arguments.views[part],
        arguments.cameras[part],
        arguments.height,
        arguments.width,
        splats,
        rectangles,
        counts,
    )
    ends = counts.reshape(-1).cumsum()
    slots = (ends - counts.reshape(-1)).reshape(shape)
    pairs = int(ends[-1]) if len(ends) else 0
    columns, rows = -(-arguments.width // TILE), -(-arguments.height // TILE)
    slot_tiles = np.empty(pairs, np.int32)
    fill_slots(splats, rectangles, counts, slots, columns, slot_tiles)
    tile_starts = np.empty((len(items), columns * rows + 1), np.int64)
    pair_gaussians, pair_slots = np.empty(pairs, np.int32), np.empty(pairs, np.int64)
    sort_pairs(splats, counts, slots, slot_tiles, tile_starts, pair_gaussians, pair_slots)
    # The heaviest tiles first, dealt out in turn: the threads end together.
    tile_order = np.argsort(-np.diff(tile_starts, axis=1).reshape(-1), kind="stable")
    return _Group(part, splats, counts, slots, tile_starts, pair_gaussians, pair_slots, tile_order)


def _backward_group(
    arguments: _Arguments,
    group: _Group,
    light: Array,
    last: Array,
    upstream: tuple[Array, ...],
    threads: int,
    gradients: Array,
) -> None:
    """Adds the gradients of one group of views to `gradients`, `[B, N, 14]`; `upstream`: of colour, depth, alpha."""
    part = group.views
    grad_color, grad_depth, grad_alpha = upstream
    moments = np.empty((len(group.pair_gaussians), MOMENT_FIELDS), np.float32)
    unblend_views(
        group.splats,
        arguments.colors,
        arguments.items[part],
        arguments.backgrounds[part],
        group.tile_starts,
        group.pair_gaussians,
        group.pair_slots,
        group.tile_order,
        threads,
        light[part],
        last[part],
        grad_color[part],
        grad_depth[part],
        grad_alpha[part],
        moments,
    )
    unproject_views(
        arguments.means,
        arguments.quats,
        arguments.scales,
        arguments.opacities,
        arguments.items[part],
        arguments.views[part].astype(np.float64),
        arguments.cameras[part].astype(np.float64),
        arguments.height,
        arguments.width,
        group.counts,
        group.slots,
        moments,
        float(arguments.scale_modifier),
        gradients,
    )
