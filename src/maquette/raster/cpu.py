"""Gaussian rasterizer for the CPU, in Numba: same results as `reference.py`, in float32.

Views are projected, their splats sorted into 16x16 tiles, and tiles blended in parallel. The backward pass walks each
tile from back to front and writes one record of gradients per (tile, Gaussian) pair; each Gaussian then adds up its own
records. Features are blended like colours, three channels at a time, over the same tiles. Nothing is accumulated across
threads, so equal inputs give equal bytes on any number of threads.

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

from maquette.raster.channels import in_threes, joined
from maquette.raster.cpu_blend import MOMENT_FIELDS, blend_views, unblend_views
from maquette.raster.cpu_jit import Array, kernel_threads
from maquette.raster.cpu_project import SPLAT_FIELDS, fill_slots, project_views, sort_pairs
from maquette.raster.cpu_unproject import GRADIENT_FIELDS, sum_channels, unproject_views
from maquette.raster.reference import TILE, Window

GROUP_SPLATS = 1 << 20
"""Views are processed in groups of at most this many splats (one view at least), which bounds the memory."""
_FIRST_CHANNELS = 12
"""Position of the colours among the inputs of `_Rasterize`."""
_GEOMETRY_MOMENTS = 6
"""Fields of a record of moments that all groups of channels add to; see `MOMENT_FIELDS`."""


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
    *,
    features: Tensor | None = None,
    antialiased: bool = False,
    window: Window | None = None,
) -> tuple[Tensor, ...]:
    """Renders every set of Gaussians from every camera of its item; see `reference.rasterize`.

    Differentiable once, in the first five arguments and the features. All tensors are on the CPU; computes and returns
    float32.
    """
    apply = cast(Callable[..., tuple[Tensor, ...]], _Rasterize.apply)
    gaussians, cameras = (means, quats, scales, opacities), (world_to_camera, intrinsics)
    settings = (height, width, background, scale_modifier, antialiased, window)
    return joined(apply(*gaussians, *cameras, *settings, colors, *in_threes(features)), features)


@dataclass(frozen=True)
class _Channels:
    """Colours, or three features; `values` `[G, N, 3]`, of which each view has row `items` `[B * V]`."""

    values: Array
    items: Array
    backgrounds: Array


@dataclass(frozen=True)
class _Arguments:
    """The inputs as contiguous float32 arrays; views of all items in one dimension of length B * V."""

    means: Array
    quats: Array
    scales: Array
    opacities: Array
    channels: tuple[_Channels, ...]
    usable: Array
    items: Array
    views: Array
    cameras: Array
    height: int
    width: int
    scale_modifier: float
    antialiased: bool
    origins: Array
    window: tuple[int, int]


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
    """Inputs: four tensors of the Gaussians, cameras and settings as in `_prepare`, colours, groups of features.
    Outputs: colour, depth, alpha and an image `[B, V, 3, H, W]` of every group.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        arguments = _prepare(*inputs)
        views, (height, width) = len(arguments.items), arguments.window
        images = [np.empty((views, 3, height, width), np.float32) for _ in arguments.channels]
        depth, light, last = (np.empty((views, height, width), np.float32) for _ in range(3))
        keep_groups = any(ctx.needs_input_grad)
        groups = []
        with kernel_threads() as threads:
            for part in _view_groups(arguments):
                group = _project_group(arguments, part)
                for channels, image in zip(arguments.channels, images, strict=True):
                    blend_views(
                        group.splats,
                        channels.values,
                        channels.items[part],
                        channels.backgrounds[part],
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
        ctx.set_materialize_grads(False)
        if keep_groups:
            ctx.save_for_backward(*inputs[:4], *inputs[_FIRST_CHANNELS:])
            ctx.saved = (arguments, groups, light, last)
        shape = inputs[4].shape[:2]
        color, *extra = (torch.from_numpy(image).view(*shape, 3, height, width) for image in images)
        layers = (torch.from_numpy(layer).view(*shape, height, width) for layer in (depth, 1 - light))
        return (color, *layers, *extra)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        arguments, groups, light, last = ctx.saved
        gradients = np.zeros((*arguments.opacities.shape, GRADIENT_FIELDS), np.float32)
        zeros = np.zeros(light.shape, np.float32)
        layers = tuple(zeros if g is None else _array(g.flatten(0, 1)) for g in upstream[1:3])
        images = [None if g is None else _array(g.flatten(0, 1)) for g in (upstream[0], *upstream[3:])]
        if images[0] is None:
            images[0] = np.zeros((len(light), 3, *light.shape[1:]), np.float32)
        inputs = ctx.saved_tensors  # raises if one was changed in place since: the arrays share its memory
        channel_gradients = [np.zeros_like(channels.values) for channels in arguments.channels]
        with kernel_threads() as threads:
            for group in groups:
                _backward_group(arguments, group, (light, last), layers, images, threads, gradients, channel_gradients)
        means, quats, scales, opacities = torch.split(torch.from_numpy(gradients), [3, 4, 3, 1], dim=-1)
        results = [means, quats, scales, opacities.squeeze(-1), *map(torch.from_numpy, channel_gradients)]
        needed = (*ctx.needs_input_grad[:4], *ctx.needs_input_grad[_FIRST_CHANNELS:])
        wanted = [
            result.reshape(value.shape).to(value.dtype) if wants else None
            for result, value, wants in zip(results, inputs, needed, strict=True)
        ]
        return (*wanted[:4], *[None] * (_FIRST_CHANNELS - 4), *wanted[4:])


def _array(tensor: Tensor) -> Array:
    """A tensor as a contiguous float32 array."""
    return np.ascontiguousarray(tensor.detach().to(torch.float32).numpy())


def _prepare(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    background: Tensor,
    scale_modifier: float,
    antialiased: bool,
    window: Window | None,
    *channels: Tensor,
) -> _Arguments:
    """Arrays of the inputs; marks Gaussians with values that are not finite as unusable.

    `channels`: colours and groups of features, each `[B, N, 3]` or `[B, V, N, 3]`.
    """
    values = [_array(value) for value in (means, quats, scales, opacities)]
    batch, views = world_to_camera.shape[:2]
    items = np.repeat(np.arange(batch), views)
    usable = np.isfinite(values[3])
    for value in values[:3]:
        usable &= np.isfinite(value).all(-1)
    arrays = []
    for i, tensor in enumerate(channels):
        value = _array(tensor)
        usable &= np.isfinite(value).all(axis=-1 if tensor.ndim == 3 else (1, -1))
        behind = background if i == 0 else torch.zeros_like(background)
        rows = items if tensor.ndim == 3 else np.arange(batch * views)
        flat = value if tensor.ndim == 3 else value.reshape(len(rows), *value.shape[2:])
        arrays.append(_Channels(flat, rows, _array(behind.flatten(0, 1))))
    origins = np.zeros((batch * views, 2), np.int64) if window is None else window.origins.flatten(0, 1).numpy()
    return _Arguments(
        means=values[0],
        quats=values[1],
        scales=values[2] * np.float32(scale_modifier),
        opacities=values[3],
        channels=tuple(arrays),
        usable=usable,
        items=items,
        views=_array(world_to_camera.flatten(0, 1)),
        cameras=_array(intrinsics.flatten(0, 1)),
        height=height,
        width=width,
        scale_modifier=scale_modifier,
        antialiased=antialiased,
        origins=origins.astype(np.int64),
        window=(height, width) if window is None else (window.height, window.width),
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
        (arguments.height, arguments.width),
        arguments.origins[part],
        arguments.window,
        arguments.antialiased,
        splats,
        rectangles,
        counts,
    )
    ends = counts.reshape(-1).cumsum()
    slots = (ends - counts.reshape(-1)).reshape(shape)
    pairs = int(ends[-1]) if len(ends) else 0
    rows, columns = (-(-size // TILE) for size in arguments.window)
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
    forward: tuple[Array, Array],
    layers: tuple[Array, ...],
    images: list[Array | None],
    threads: int,
    gradients: Array,
    channel_gradients: list[Array],
) -> None:
    """Adds the gradients of one group of views to `gradients`, `[B, N, GRADIENT_FIELDS]`, and `channel_gradients`.

    `forward`: light and last of the forward pass; `layers`, `images`: gradients of depth and alpha, and of the images.
    """
    part = group.views
    moments = np.empty((len(group.pair_gaussians), MOMENT_FIELDS), np.float32)
    for i, (channels, grad_image) in enumerate(zip(arguments.channels, images, strict=True)):
        if grad_image is None:
            continue
        own = moments if i == 0 else np.empty_like(moments)
        grad_depth, grad_alpha = layers if i == 0 else (np.zeros_like(layers[0]),) * 2
        unblend_views(
            group.splats,
            channels.values,
            channels.items[part],
            channels.backgrounds[part],
            group.tile_starts,
            group.pair_gaussians,
            group.pair_slots,
            group.tile_order,
            threads,
            forward[0][part],
            forward[1][part],
            grad_image[part],
            grad_depth[part],
            grad_alpha[part],
            own,
        )
        if i > 0:
            sum_channels(group.counts, group.slots, own, channels.items[part], channel_gradients[i])
            moments[:, :_GEOMETRY_MOMENTS] += own[:, :_GEOMETRY_MOMENTS]
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
        arguments.antialiased,
        group.counts,
        group.slots,
        moments,
        float(arguments.scale_modifier),
        gradients,
        arguments.channels[0].items[part],
        channel_gradients[0],
    )
