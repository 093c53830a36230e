"""CUDA backend, first half of the forward pass: projection, and lists of Gaussians per tile from front to back.

The host allocates the pair list by the number of pairs of the last call of the same shape, so that the GPU does not
wait for it, and looks at the true number afterwards: if there are more, it begins again.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from maquette.errors import UnsupportedError
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
_RECORD_FLOATS = 8
_TOTALS = 5
_COPIES = 16
"""Counters of each tile; as in gaussian_bin.cu."""
_SORT_BLOCKS = 512

_NUM_PAIRS: dict[tuple[int | None, Shape], int] = {}
"""Pairs of the last call by device and shape."""
_MAX_SHAPES = 256


@dataclass(frozen=True)
class Shape:
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
        """Views of all items."""
        return self.items * self.views

    @cached_property
    def tiles_x(self) -> int:
        """Tiles per row of an image."""
        return math.ceil(self.width / TILE)

    @cached_property
    def tiles_per_view(self) -> int:
        """Tiles of an image."""
        return self.tiles_x * math.ceil(self.height / TILE)

    @cached_property
    def tiles(self) -> int:
        """Tiles of all images."""
        return self.images * self.tiles_per_view

    @cached_property
    def records(self) -> int:
        """Projected Gaussians of all images."""
        return self.images * self.count

    def blend_arguments(self, colors: Tensor) -> tuple[int, ...]:
        """Sizes for the blend kernels; views that share colours are counted, one where each has its own."""
        sharing = self.views if colors.ndim == 3 else 1
        return (self.count, sharing, self.tiles_x, self.tiles_per_view, self.width, self.height)


shape_of = functools.lru_cache(_MAX_SHAPES)(Shape)
"""`Shape`, kept for the next call of the same sizes."""


@dataclass(frozen=True)
class Bins:
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


def bin_gaussians(
    shape: Shape,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    scale_modifier: float,
    antialiased: bool,
    differentiable: bool = True,
) -> Bins:
    """Projects the Gaussians and lists them by tile, front to back."""
    device = cameras[0].device
    last = _NUM_PAIRS.get((device.index, shape))
    bins = _try_bin(shape, gaussians, cameras, scale_modifier, antialiased, differentiable, last)
    if bins is None:
        bins = _try_bin(shape, gaussians, cameras, scale_modifier, antialiased, differentiable, None)
        assert bins is not None
    return bins


def _try_bin(
    shape: Shape,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    scale_modifier: float,
    antialiased: bool,
    differentiable: bool,
    expected_pairs: int | None,
) -> Bins | None:
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
    # 64-bit totals, then write cursors, several for each tile; the cursors begin as counts.
    workspace = torch.zeros(2 * _TOTALS + _COPIES * shape.tiles, dtype=torch.int32, device=device)
    totals, cursors = workspace.split_with_sizes((2 * _TOTALS, _COPIES * shape.tiles))
    ends = cursors[-shape.tiles :]  # where the last cursor of each tile stops
    lists = torch.empty(4, shape.tiles, dtype=torch.int32, device=device)
    starts, medium, large, scratch_starts = lists  # medium and large tiles, starts in the scratch space of large ones
    blocks_per_view = math.ceil(shape.count / _PROJECT_THREADS)
    grid, image = shape.images * blocks_per_view, (shape.width, shape.height)
    outputs = (records, depths, slots, tiles, cursors, totals)
    sizes = (shape.count, shape.views, blocks_per_view, shape.tiles, *image)
    settings = (shape.image_width, shape.image_height, int(antialiased), scale_modifier)
    probed = gaussians if gaussians[4].ndim == 3 else (*gaussians[:4], gaussians[0])  # colours of views are not probed
    project = kernels["project_and_count"]
    launch(project, grid, _PROJECT_THREADS, *probed, *cameras, *outputs, *sizes, *settings, stream=stream)
    segment_grid, limits = math.ceil(shape.tiles / _SEGMENT_THREADS), (MEDIUM_TILE_PAIRS, LARGE_TILE_PAIRS)
    segment_arguments = (cursors, starts, totals, medium, large, scratch_starts, shape.tiles, *limits)
    launch(kernels["allocate_segments"], segment_grid, _SEGMENT_THREADS, *segment_arguments, stream=stream)
    wait_for_totals = _copy_to_host(totals.view(torch.int64))
    capacity = _checked(wait_for_totals()[0]) if expected_pairs is None else expected_pairs + expected_pairs // 8
    pairs = torch.empty(min(capacity, MAX_INDEX), dtype=torch.int32, device=device)
    pair_arguments = (records, tiles, cursors, pairs, pairs.numel(), shape.count, blocks_per_view, shape.tiles, *image)
    launch(kernels["write_pairs"], grid, _PROJECT_THREADS, *pair_arguments, stream=stream)
    _sort(pairs, depths, (starts, ends), medium, totals, stream)
    num_pairs, _, num_large, large_pairs, num_visible = wait_for_totals()
    if len(_NUM_PAIRS) >= _MAX_SHAPES:
        _NUM_PAIRS.clear()
    _NUM_PAIRS[device.index, shape] = _checked(num_pairs)
    if num_pairs > pairs.numel():
        return None
    if num_large:
        kernel = load_kernels("gaussian_sort.cu", ("sort_large",))["sort_large"]
        scratch = torch.empty(large_pairs, dtype=torch.int64, device=device)
        arguments = (pairs, scratch, depths, starts, ends, large, scratch_starts)
        launch(kernel, num_large, 1024, *arguments, stream=stream)
    return Bins(records, slots, num_visible, pairs, starts, ends)


class _Landing:
    """Page-locked memory for a few numbers of the GPU, and the event of their arrival."""

    def __init__(self, count: int) -> None:
        self.numbers = torch.empty(count, dtype=torch.int64, pin_memory=True)
        new_event: Callable[[], torch.cuda.Event] = torch.cuda.Event
        self.arrived = new_event()


class _LandingsOfThread(threading.local):
    """One per device, kept: a thread reads the numbers of a call before its next one."""

    def __init__(self) -> None:
        self._landings: dict[int | None, _Landing] = {}

    def on(self, device: torch.device) -> _Landing:
        landing = self._landings.get(device.index)
        if landing is None:
            landing = self._landings[device.index] = _Landing(_TOTALS)
        return landing


_LANDINGS = _LandingsOfThread()


def _copy_to_host(totals: Tensor) -> Callable[[], list[int]]:
    """Starts a copy behind the work of the current stream; what is returned waits for it and gives the numbers."""
    landing = _LANDINGS.on(totals.device)
    landing.numbers.copy_(totals, non_blocking=True)
    landing.arrived.record()

    def wait() -> list[int]:
        landing.arrived.synchronize()
        numbers: list[int] = landing.numbers.tolist()
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
