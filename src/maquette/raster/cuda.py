"""Gaussian rasterizer on NVIDIA GPUs: CUDA C++ kernels (`gaussian_*.cu`) compiled at first use through NVRTC.

All views of all items go through each kernel together. Forward: project and count per tile; segment the pair list
(one host synchronisation, to allocate it); write the pairs; order every tile's segment by depth; blend. The image is
the same to the last bit in every run. Backward: blend again, adding the gradients of the projected Gaussians; then one
pass per Gaussian over its views. Its floating-point atomics make the last digits of gradients vary between runs.
Features are blended like colours, three channels a launch, over the same pairs, and add to the same gradients of the
projected Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maquette.errors import InvalidInputError, UnsupportedError
from maquette.raster.channels import CHANNELS, in_threes, joined
from maquette.raster.nvrtc import current_stream, launch, load_kernels
from maquette.raster.reference import Window

TILE = 16
"""Side of a tile in pixels; the kernels are written for it."""
MEDIUM_TILE_PAIRS = 1024
"""A tile with more Gaussians is sorted by a larger block."""
LARGE_TILE_PAIRS = 4096
"""A tile with more Gaussians is sorted in global memory instead of shared memory."""
MAX_INDEX = 2**31 - 1
"""Most projected Gaussians (items x views x N), tiles and (tile, Gaussian) pairs of one call."""

MAX_TILES_PER_VIEW = 2**26
"""Most tiles of one image."""

_DEVICE = "cuda"
_PROJECT_THREADS = 256
_SEGMENT_THREADS = 1024
_BLEND_THREADS = 128
_GRADIENT_THREADS = 128
_RECORD_FLOATS = 8
_GRADIENT_FLOATS = 10
_TOTALS = 5


@dataclass(frozen=True)
class _Shape:
    """Sizes of one call: items, views per item, Gaussians per item, rendered part and whole image in pixels."""

    items: int
    views: int
    count: int
    height: int
    width: int
    image_height: int
    image_width: int

    @cached_property
    def images(self) -> int:
        return self.items * self.views

    @cached_property
    def tiles_x(self) -> int:
        return math.ceil(self.width / TILE)

    @cached_property
    def tiles_per_view(self) -> int:
        return self.tiles_x * math.ceil(self.height / TILE)

    @cached_property
    def tiles(self) -> int:
        return self.images * self.tiles_per_view

    @cached_property
    def records(self) -> int:
        return self.images * self.count

    def blend_arguments(self, colors: Tensor) -> tuple[int, ...]:
        """Sizes for the blend kernels; views that share colours are counted, one where each has its own."""
        sharing = self.views if colors.ndim == 3 else 1
        return (self.count, sharing, self.tiles_x, self.tiles_per_view, self.width, self.height)


@dataclass(frozen=True)
class _Bins:
    """Projected Gaussians and, per tile, its segment of the pair list ordered front to back.

    Attributes:
        records: `[BV * N, 8]` float32, see gaussian_common.cuh.
        slots: number of each record among the visible ones, in any order, -1 when culled, `[BV * N]` int32.
        num_visible: number of visible records.
        pairs: record indices, int32.
        segments: starts and ends of the tiles' segments, `[2, T]` int32.
    """

    records: Tensor
    slots: Tensor
    num_visible: int
    pairs: Tensor
    segments: Tensor


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
    """Renders every set of Gaussians from every camera of its item; see `reference.rasterize` for the semantics.

    Args:
        means, quats, scales: `[B, N, 3]`, `[B, N, 4]`, `[B, N, 3]` on one CUDA device; computed in float32.
        opacities: `[B, N]`.
        colors: `[B, N, 3]` or `[B, V, N, 3]`.
        world_to_camera, intrinsics: `[B, V, 4, 4]`, `[B, V, 3, 3]`.
        height, width: size of the whole image in pixels, > 0.
        background: `[B, V, 3]`.
        scale_modifier: factor on all scales.
        features: `[B, N, C]` or None.
        antialiased: whether opacities are compensated for the dilation.
        window: the part of the image to render, or None.

    Returns:
        Colour `[B, V, 3, H, W]`, depth `[B, V, H, W]`, alpha `[B, V, H, W]` and, where features are given, their images
        `[B, V, C, H, W]`, differentiable (once) in the first five arguments and the features.

    Raises:
        InvalidInputError: the tensors are not on a CUDA device.
        UnsupportedError: more than 2^31 - 1 projected Gaussians, tiles or pairs, or a GPU older than Ampere.
        MissingDependencyError: cuda-core or NVRTC is missing.
    """
    if means.device.type != _DEVICE:
        raise InvalidInputError(f"the CUDA backend needs CUDA tensors, got {means.device}: move them with .to('cuda')")
    if window is not None:
        intrinsics = _moved(intrinsics, window.origins)
    size = (height, width) if window is None else (window.height, window.width)
    shape = _Shape(means.shape[0], world_to_camera.shape[1], means.shape[1], *size, height, width)
    groups = in_threes(features)
    if groups or colors.ndim == 4:  # the kernels look for bad values among shared colours only
        opacities = torch.where(_all_finite(colors, *groups), opacities, 0.0)
    constants = [_kernel_ready(t.detach()) for t in (world_to_camera, intrinsics, background)]
    values = [_kernel_ready(t) for t in (means, quats, scales, opacities, colors, *groups)]
    apply: Callable[..., tuple[Tensor, ...]] = _Rasterize.apply
    return joined(apply(shape, scale_modifier, antialiased, *constants, *values), features)


def _moved(intrinsics: Tensor, origins: Tensor) -> Tensor:
    """Intrinsics `[B, V, 3, 3]` whose principal points count from `origins` `[B, V, 2]`."""
    result = intrinsics.clone()
    result[..., :2, 2] -= origins.to(result)
    return result


def _all_finite(*channels: Tensor) -> Tensor:
    """Whether all values `[B, N, 3]` or `[B, V, N, 3]` of a Gaussian are finite, `[B, N]`."""
    parts = [torch.isfinite(value).all(-1) for value in channels]
    return torch.stack([part if part.ndim == 2 else part.all(1) for part in parts]).all(0)


def _kernel_ready(value: Tensor) -> Tensor:
    """The values as contiguous float32 at an address that 16-byte loads accept."""
    if value.dtype != torch.float32 or not value.is_contiguous():
        value = value.to(torch.float32).contiguous()
    return value.clone() if value.data_ptr() % 16 else value


class _Rasterize(torch.autograd.Function):
    """Inputs: sizes and settings, cameras and background, the Gaussians with their colours, groups of features.
    Outputs: colour, depth, alpha and an image of every group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        shape: _Shape,
        scale_modifier: float,
        antialiased: bool,
        world_to_camera: Tensor,
        intrinsics: Tensor,
        background: Tensor,
        *values: Tensor,
    ) -> tuple[Tensor, ...]:
        if max(shape.records, shape.tiles) > MAX_INDEX or shape.tiles_per_view > MAX_TILES_PER_VIEW:
            raise UnsupportedError(
                f"{shape.images} views of {shape.count} Gaussians at {shape.height} x {shape.width} pixels are more "
                f"than the CUDA backend indexes ({MAX_INDEX} projected Gaussians or tiles): render fewer views or "
                "smaller images"
            )
        settings = (scale_modifier, antialiased)
        with torch.cuda.device(values[0].device):
            images = _empty_images(shape, values[0])  # before the GPU has to wait for the host
            bins = _bin(shape, values[:5], (world_to_camera, intrinsics), *settings)
            _blend(shape, bins, values[4], background, images)
            extra = []
            for group in values[5:]:
                again = _empty_images(shape, group)  # depth and alpha once more, unused
                _blend(shape, bins, group, torch.zeros_like(background), again)
                extra.append(again[0])
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.settings, ctx.bins = shape, settings, bins
        ctx.save_for_backward(world_to_camera, intrinsics, *images, *values, *extra)
        return (*images, *extra)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(upstream) - 3
        cameras, images, gaussians = saved[:2], saved[2:5], saved[5:10]
        groups, extra = saved[10 : 10 + count], saved[10 + count :]
        shape, settings = ctx.shape, ctx.settings
        with torch.cuda.device(gaussians[0].device):
            # The bins are let go as soon as they are used, to save memory; a second backward pass makes them again.
            bins = ctx.bins or _bin(shape, gaussians, cameras, *settings)
            ctx.bins = None
            buffer = bins.records.new_zeros(bins.num_visible * _GRADIENT_FLOATS)
            group_gradients: list[Tensor | None] = []
            for group, image, gradient in zip(groups, extra, upstream[3:], strict=True):
                if gradient is None:
                    group_gradients.append(None)
                    continue
                _blend_backward(shape, bins, group, (image, *images[1:]), (gradient, None, None), buffer)
                group_gradients.append(_take_channel_gradients(shape, bins, buffer, group))
            _blend_backward(shape, bins, gaussians[4], images, upstream[:3], buffer)
            own = None if gaussians[4].ndim == 3 else _take_channel_gradients(shape, bins, buffer, gaussians[4])
            slots = bins.slots
            del bins
            gradients = _project_backward(shape, gaussians, cameras, slots, buffer, *settings)
        colors = gradients[4] if own is None else own
        return (*[None] * 6, *gradients[:4], colors, *group_gradients)


def _take_channel_gradients(shape: _Shape, bins: _Bins, buffer: Tensor, like: Tensor) -> Tensor:
    """Gradients of three channels `[B, N, 3]` or `[B, V, N, 3]`, taken out of the gradients of the records."""
    rows = buffer[: 8 * bins.num_visible].view(-1, 8)[:, 4 : 4 + CHANNELS]
    filled = torch.cat([rows, rows.new_zeros(1, CHANNELS)])  # the last row is that of the culled ones, whose slot is -1
    rows.zero_()
    each = filled[bins.slots.long()].view(shape.items, shape.views, shape.count, CHANNELS)
    return each if like.ndim == 4 else each.sum(1)


def _bin(
    shape: _Shape,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    scale_modifier: float,
    antialiased: bool,
) -> _Bins:
    """Projects the Gaussians and lists them by tile, front to back. Synchronises with the host once."""
    kernels = load_kernels("gaussian_bin.cu", ("project_and_count", "allocate_segments", "write_pairs"))
    device, stream = cameras[0].device, current_stream()
    records = torch.empty(shape.records, _RECORD_FLOATS, dtype=torch.float32, device=device)
    depths, slots = (torch.empty(shape.records, dtype=torch.int32, device=device) for _ in range(2))
    # 64-bit totals, then segment starts and write cursors; the cursors begin as counts.
    workspace = torch.zeros(2 * _TOTALS + 2 * shape.tiles, dtype=torch.int32, device=device)
    totals, segments = workspace[: 2 * _TOTALS], workspace[2 * _TOTALS :].view(2, shape.tiles)
    starts, cursors = segments
    lists = torch.empty(3, shape.tiles, dtype=torch.int32, device=device)  # medium and large tiles, scratch starts
    blocks_per_view = math.ceil(shape.count / _PROJECT_THREADS)
    grid, image = shape.images * blocks_per_view, (shape.width, shape.height)
    outputs = (records, depths, slots, cursors, totals)
    sizes = (shape.count, shape.views, blocks_per_view, *image)
    settings = (shape.image_width, shape.image_height, int(antialiased), scale_modifier)
    probed = gaussians if gaussians[4].ndim == 3 else (*gaussians[:4], gaussians[0])  # see `_all_finite`
    project = kernels["project_and_count"]
    launch(project, grid, _PROJECT_THREADS, *probed, *cameras, *outputs, *sizes, *settings, stream=stream)
    segment_grid, limits = math.ceil(shape.tiles / _SEGMENT_THREADS), (MEDIUM_TILE_PAIRS, LARGE_TILE_PAIRS)
    segment_arguments = (cursors, starts, totals, *lists, shape.tiles, *limits)
    launch(kernels["allocate_segments"], segment_grid, _SEGMENT_THREADS, *segment_arguments, stream=stream)
    num_pairs, num_medium, num_large, large_pairs, num_visible = totals.view(torch.int64).tolist()
    if num_pairs > MAX_INDEX:
        raise UnsupportedError(
            f"{num_pairs} (tile, Gaussian) pairs are more than the CUDA backend indexes ({MAX_INDEX}): render fewer "
            "views per call, or check that the scales are not far too large"
        )
    pairs = torch.empty(num_pairs, dtype=torch.int32, device=device)
    pair_arguments = (records, cursors, pairs, shape.count, blocks_per_view, *image)
    launch(kernels["write_pairs"], grid, _PROJECT_THREADS, *pair_arguments, stream=stream)
    _sort(pairs, depths, segments, lists, (num_medium, num_large, large_pairs))
    return _Bins(records, slots, num_visible, pairs, segments)


def _sort(pairs: Tensor, depths: Tensor, segments: Tensor, lists: Tensor, totals: tuple[int, int, int]) -> None:
    """Orders every segment by depth, ties by index. `totals`: medium tiles, large tiles, pairs of large tiles."""
    num_medium, num_large, large_pairs = totals
    if not pairs.numel():
        return
    kernels = load_kernels("gaussian_sort.cu", ("sort_small", "sort_medium", "sort_large"))
    starts, ends = segments
    stream = current_stream()
    launch(kernels["sort_small"], segments.shape[1], 128, pairs, depths, starts, ends, stream=stream)
    launch(kernels["sort_medium"], num_medium, 512, pairs, depths, starts, ends, lists[0], stream=stream)
    if num_large:
        scratch = torch.empty(large_pairs, dtype=torch.int32, device=pairs.device)
        launch(kernels["sort_large"], num_large, 1024, pairs, scratch, depths, starts, ends, lists[1], lists[2])


def _empty_images(shape: _Shape, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = (shape.items, shape.views, shape.height, shape.width)
    return like.new_empty(*size[:2], 3, *size[2:]), like.new_empty(size), like.new_empty(size)


def _blend(shape: _Shape, bins: _Bins, colors: Tensor, background: Tensor, images: tuple[Tensor, ...]) -> None:
    """Writes the colour, depth and alpha images."""
    launch(
        load_kernels("gaussian_blend.cu", ("blend_forward",))["blend_forward"],
        shape.tiles,
        _BLEND_THREADS,
        bins.records,
        colors,
        background,
        bins.pairs,
        bins.segments[0],
        bins.segments[1],
        *images,
        *shape.blend_arguments(colors),
    )


def _blend_backward(
    shape: _Shape,
    bins: _Bins,
    colors: Tensor,
    images: tuple[Tensor, ...],
    upstream: tuple[Tensor | None, ...],
    gradients: Tensor,
) -> None:
    """Adds to the gradients of the visible records: eight floats each, then two, see gaussian_blend_backward.cu."""
    images_in = [None if g is None else g.contiguous() for g in upstream]
    kernel = load_kernels("gaussian_blend_backward.cu", ("blend_backward",))["blend_backward"]
    launch(
        kernel,
        shape.tiles,
        _BLEND_THREADS,
        bins.records,
        colors,
        bins.pairs,
        bins.segments[0],
        bins.segments[1],
        *images,
        *images_in,
        bins.slots,
        gradients,
        gradients[8 * bins.num_visible :],
        *shape.blend_arguments(colors),
    )


def _project_backward(
    shape: _Shape,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    slots: Tensor,
    record_gradients: Tensor,
    scale_modifier: float,
    antialiased: bool,
) -> tuple[Tensor, ...]:
    """Gradients of means, quats, scales, opacities and of colours that all views share."""
    gradients = [torch.empty_like(value) for value in (*gaussians[:4], gaussians[0])]
    kernel = load_kernels("gaussian_grad.cu", ("project_backward",))["project_backward"]
    blocks_per_item = math.ceil(shape.count / _GRADIENT_THREADS)
    launch(
        kernel,
        shape.items * blocks_per_item,
        _GRADIENT_THREADS,
        *gaussians[:4],
        *cameras,
        slots,
        record_gradients,
        record_gradients[record_gradients.numel() // _GRADIENT_FLOATS * 8 :],
        *gradients,
        shape.count,
        shape.views,
        blocks_per_item,
        shape.image_width,
        shape.image_height,
        int(antialiased),
        scale_modifier,
    )
    return tuple(gradients)
