"""Gaussian rasterizer on NVIDIA GPUs: CUDA C++ kernels (`gaussian_*.cu`) compiled at first use through NVRTC.

All views of all items go through each kernel together. Forward: project and count per tile; segment the pair list;
write the pairs; order every tile's segment by depth; blend. The host allocates the pair list by the number of pairs of
the last call of the same shape, so that the GPU does not wait for it, and looks at the true number afterwards: if there
are more, it begins again. The image is the same to the last bit in every run. Backward: blend again, adding the
gradients of the projected Gaussians; then one pass per Gaussian over its views. Its floating-point atomics make the
last digits of gradients vary between runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maquette.errors import InvalidInputError, UnsupportedError
from maquette.raster.nvrtc import current_stream, launch, load_kernels

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

_PROJECT_THREADS = 256
_SEGMENT_THREADS = 1024
_BLEND_THREADS = 128
_GRADIENT_THREADS = 128
_RECORD_FLOATS = 8
_GRADIENT_FLOATS = 10
_TOTALS = 5
_SORT_BLOCKS = 512

_NUM_PAIRS: dict[tuple[int | None, _Shape], int] = {}
"""Pairs of the last call by device and shape."""
_MAX_SHAPES = 256


@dataclass(frozen=True)
class _Shape:
    """Sizes of one call: items, views per item, Gaussians per item, image in pixels."""

    items: int
    views: int
    count: int
    height: int
    width: int

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

    @cached_property
    def blend_arguments(self) -> tuple[int, ...]:
        return (self.count, self.views, self.tiles_x, self.tiles_per_view, self.width, self.height)


_shape = functools.lru_cache(_MAX_SHAPES)(_Shape)


@dataclass(frozen=True)
class _Bins:
    """Projected Gaussians and, per tile, its segment of the pair list ordered front to back.

    Attributes:
        records: `[BV * N, 8]` float32, see gaussian_common.cuh.
        slots: number of each record among the visible ones, in any order, -1 when culled, `[BV * N]` int32; None
            where no gradients will be asked for.
        num_visible: number of visible records, with slots.
        pairs: record indices, int32.
        starts, ends: of the tiles' segments, `[T]` int32.
    """

    records: Tensor
    slots: Tensor | None
    num_visible: int
    pairs: Tensor
    starts: Tensor
    ends: Tensor


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
    """Renders every set of Gaussians from every camera of its item; see `reference.rasterize` for the semantics.

    Args:
        means, quats, scales: `[B, N, 3]`, `[B, N, 4]`, `[B, N, 3]` on one CUDA device; computed in float32.
        opacities: `[B, N]`.
        colors: `[B, N, 3]`.
        world_to_camera, intrinsics: `[B, V, 4, 4]`, `[B, V, 3, 3]`.
        height, width: image size in pixels, > 0.
        background: `[B, V, 3]`.
        scale_modifier: factor on all scales.

    Returns:
        Colour `[B, V, 3, H, W]`, depth `[B, V, H, W]` and alpha `[B, V, H, W]`, differentiable (once) in the first
        five arguments.

    Raises:
        InvalidInputError: the tensors are not on a CUDA device.
        UnsupportedError: more than 2^31 - 1 projected Gaussians, tiles or pairs, or a GPU older than Ampere.
        MissingDependencyError: cuda-core or NVRTC is missing.
    """
    if means.device.type != "cuda":
        raise InvalidInputError(f"the CUDA backend needs CUDA tensors, got {means.device}: move them with .to('cuda')")
    constants = [_kernel_ready(t.detach()) for t in (world_to_camera, intrinsics, background)]
    values = [_kernel_ready(t) for t in (means, quats, scales, opacities, colors)]
    differentiable = torch.is_grad_enabled() and any(value.requires_grad for value in values)
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Rasterize.apply
    return apply(*values, *constants, height, width, scale_modifier, differentiable)


def _kernel_ready(value: Tensor) -> Tensor:
    """The values as contiguous float32 at an address that 16-byte loads accept."""
    if value.dtype != torch.float32 or not value.is_contiguous():
        value = value.to(torch.float32).contiguous()
    return value.clone() if value.data_ptr() % 16 else value


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        world_to_camera: Tensor,
        intrinsics: Tensor,
        background: Tensor,
        height: int,
        width: int,
        scale_modifier: float,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = _shape(means.shape[0], world_to_camera.shape[1], means.shape[1], height, width)
        if max(shape.records, shape.tiles) > MAX_INDEX or shape.tiles_per_view > MAX_TILES_PER_VIEW:
            raise UnsupportedError(
                f"{shape.images} views of {shape.count} Gaussians at {height} x {width} pixels are more than the CUDA "
                f"backend indexes ({MAX_INDEX} projected Gaussians or tiles): render fewer views or smaller images"
            )
        gaussians = (means, quats, scales, opacities, colors)
        with torch.cuda.device(means.device):
            images = _empty_images(shape, colors)  # before the GPU has to wait for the host
            bins = _bin(shape, gaussians, (world_to_camera, intrinsics), scale_modifier, differentiable)
            _blend(shape, bins, colors, background, images)
        if not differentiable:
            return images
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.scale_modifier, ctx.bins = shape, scale_modifier, bins
        ctx.save_for_backward(*gaussians, world_to_camera, intrinsics, *images)
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        gaussians, cameras, images = saved[:5], saved[5:7], saved[7:]
        shape, scale_modifier = ctx.shape, ctx.scale_modifier
        with torch.cuda.device(gaussians[0].device):
            # The bins are let go as soon as they are used, to save memory; a second backward pass makes them again.
            bins = ctx.bins or _bin(shape, gaussians, cameras, scale_modifier)
            slots, ctx.bins = bins.slots, None
            assert slots is not None
            record_gradients = _blend_backward(shape, bins, gaussians[4], images, upstream)
            del bins
            gradients = _project_backward(shape, gaussians, cameras, slots, record_gradients, scale_modifier)
        return (*gradients, None, None, None, None, None, None, None)


def _bin(
    shape: _Shape,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    scale_modifier: float,
    differentiable: bool = True,
) -> _Bins:
    """Projects the Gaussians and lists them by tile, front to back."""
    device = cameras[0].device
    last = _NUM_PAIRS.get((device.index, shape))
    bins = _try_bin(shape, gaussians, cameras, scale_modifier, differentiable, last)
    if bins is None:
        bins = _try_bin(shape, gaussians, cameras, scale_modifier, differentiable, None)
        assert bins is not None
    return bins


def _try_bin(
    shape: _Shape,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    scale_modifier: float,
    differentiable: bool,
    expected_pairs: int | None,
) -> _Bins | None:
    """The bins, or None when the pair list was too short for them.

    `expected_pairs` is a guess of the number of pairs, to which an eighth is added; with None the host waits for the
    true number.
    """
    kernels = load_kernels("gaussian_bin.cu", ("project_and_count", "allocate_segments", "write_pairs"))
    device, stream = cameras[0].device, current_stream()
    records = torch.empty(shape.records, _RECORD_FLOATS, dtype=torch.float32, device=device)
    depths = torch.empty(shape.records, dtype=torch.int32, device=device)
    slots = torch.empty_like(depths) if differentiable else None
    tiles = torch.empty(shape.records, dtype=torch.int64, device=device)  # of each Gaussian, packed
    # 64-bit totals, then segment starts and write cursors; the cursors begin as counts.
    workspace = torch.zeros(2 * _TOTALS + 2 * shape.tiles, dtype=torch.int32, device=device)
    totals, starts, cursors = workspace.split_with_sizes((2 * _TOTALS, shape.tiles, shape.tiles))
    lists = torch.empty(3, shape.tiles, dtype=torch.int32, device=device)
    medium, large, scratch_starts = lists  # medium and large tiles, starts in the scratch space of large ones
    blocks_per_view = math.ceil(shape.count / _PROJECT_THREADS)
    grid, image = shape.images * blocks_per_view, (shape.width, shape.height)
    outputs = (records, depths, slots, tiles, cursors, totals)
    sizes = (shape.count, shape.views, blocks_per_view, *image)
    project = kernels["project_and_count"]
    launch(project, grid, _PROJECT_THREADS, *gaussians, *cameras, *outputs, *sizes, scale_modifier, stream=stream)
    segment_grid, limits = math.ceil(shape.tiles / _SEGMENT_THREADS), (MEDIUM_TILE_PAIRS, LARGE_TILE_PAIRS)
    segment_arguments = (cursors, starts, totals, medium, large, scratch_starts, shape.tiles, *limits)
    launch(kernels["allocate_segments"], segment_grid, _SEGMENT_THREADS, *segment_arguments, stream=stream)
    wait_for_totals = _copy_to_host(totals.view(torch.int64))
    capacity = _checked(wait_for_totals()[0]) if expected_pairs is None else expected_pairs + expected_pairs // 8
    pairs = torch.empty(min(capacity, MAX_INDEX), dtype=torch.int32, device=device)
    pair_arguments = (records, tiles, cursors, pairs, pairs.numel(), shape.count, blocks_per_view, *image)
    launch(kernels["write_pairs"], grid, _PROJECT_THREADS, *pair_arguments, stream=stream)
    _sort(pairs, depths, (starts, cursors), medium, totals, stream)
    num_pairs, _, num_large, large_pairs, num_visible = wait_for_totals()
    if len(_NUM_PAIRS) >= _MAX_SHAPES:
        _NUM_PAIRS.clear()
    _NUM_PAIRS[device.index, shape] = _checked(num_pairs)
    if num_pairs > pairs.numel():
        return None
    if num_large:
        kernel = load_kernels("gaussian_sort.cu", ("sort_large",))["sort_large"]
        scratch = torch.empty(large_pairs, dtype=torch.int64, device=device)
        arguments = (pairs, scratch, depths, starts, cursors, large, scratch_starts)
        launch(kernel, num_large, 1024, *arguments, stream=stream)
    return _Bins(records, slots, num_visible, pairs, starts, cursors)


def _copy_to_host(values: Tensor) -> Callable[[], list[int]]:
    """Starts a copy behind the work of the current stream; what is returned waits for it and gives the numbers."""
    copy = values.to("cpu", non_blocking=True)
    new_event: Callable[[], torch.cuda.Event] = torch.cuda.Event
    arrived = new_event()
    arrived.record()

    def wait() -> list[int]:
        arrived.synchronize()
        numbers: list[int] = copy.tolist()
        return numbers

    return wait


def _checked(num_pairs: int) -> int:
    if num_pairs > MAX_INDEX:
        raise UnsupportedError(
            f"{num_pairs} (tile, Gaussian) pairs are more than the CUDA backend indexes ({MAX_INDEX}): render fewer "
            "views per call, or check that the scales are not far too large"
        )
    return num_pairs


def _sort(
    pairs: Tensor, depths: Tensor, segments: tuple[Tensor, Tensor], medium: Tensor, totals: Tensor, stream: int
) -> None:
    """Orders all but the largest segments by depth, ties by index."""
    if not pairs.numel():
        return
    kernels = load_kernels("gaussian_sort.cu", ("sort_small", "sort_medium"))
    starts, ends = segments
    capacity, tiles = pairs.numel(), starts.numel()
    launch(kernels["sort_small"], tiles, 128, pairs, depths, starts, ends, capacity, stream=stream)
    listed = (medium, totals, capacity)
    launch(kernels["sort_medium"], min(tiles, _SORT_BLOCKS), 512, pairs, depths, starts, ends, *listed, stream=stream)


def _empty_images(shape: _Shape, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = (shape.items, shape.views, shape.height, shape.width)
    return like.new_empty(*size[:2], 3, *size[2:]), like.new_empty(size), like.new_empty(size)


def _blend(shape: _Shape, bins: _Bins, colors: Tensor, background: Tensor, images: tuple[Tensor, ...]) -> None:
    """Writes the colour, depth and alpha images."""
    kernel = load_kernels("gaussian_blend.cu", ("blend_forward",))["blend_forward"]
    lists = (bins.pairs, bins.starts, bins.ends)
    sources = (bins.records, colors, background)
    launch(kernel, shape.tiles, _BLEND_THREADS, *sources, *lists, *images, *shape.blend_arguments)


def _blend_backward(
    shape: _Shape, bins: _Bins, colors: Tensor, images: tuple[Tensor, ...], upstream: tuple[Tensor | None, ...]
) -> Tensor:
    """Gradients of the visible records: eight floats each, then two each, as gaussian_blend_backward.cu says."""
    gradients = bins.records.new_zeros(bins.num_visible * _GRADIENT_FLOATS)
    images_in = [None if g is None else g.contiguous() for g in upstream]
    kernel = load_kernels("gaussian_blend_backward.cu", ("blend_backward",))["blend_backward"]
    launch(
        kernel,
        shape.tiles,
        _BLEND_THREADS,
        bins.records,
        colors,
        bins.pairs,
        bins.starts,
        bins.ends,
        *images,
        *images_in,
        bins.slots,
        gradients,
        _second_part(gradients),
        *shape.blend_arguments,
    )
    return gradients


def _second_part(gradients: Tensor) -> int:
    """Address of the two floats each, behind the eight floats each."""
    return gradients.data_ptr() + gradients.numel() // _GRADIENT_FLOATS * 8 * gradients.element_size()


def _project_backward(
    shape: _Shape,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    slots: Tensor,
    record_gradients: Tensor,
    scale_modifier: float,
) -> tuple[Tensor, ...]:
    """Gradients of means, quats, scales, opacities and colors."""
    gradients = [torch.empty_like(value) for value in gaussians]
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
        _second_part(record_gradients),
        *gradients,
        shape.count,
        shape.views,
        blocks_per_item,
        shape.width,
        shape.height,
        scale_modifier,
    )
    return tuple(gradients)
