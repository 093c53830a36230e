"""CUDA backend, first half of the forward pass: projection, and lists of Gaussians per tile from front to back.

The host allocates records and the pair list by what recent calls of the same shape needed, so that the GPU does not
wait for it, and looks at the true numbers afterwards: if there are more, it begins again.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

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

MAX_PARTS = 4
"""Most parts of a batch whose visible Gaussians are counted apart."""

_PROJECT_THREADS = 256
_WARP = 32
_SEGMENT_THREADS = 1024
_RECORD_FLOATS = 8
_TOTALS = 4 + MAX_PARTS
"""Pairs, medium tiles, large tiles and their pairs, visible Gaussians of each part; as in gaussian_bin.cu."""
_COPIES = 16
"""Counters of each tile; as in gaussian_bin.cu."""
_POLLS = 10_000

_NEEDS: dict[tuple[int | None, Shape, int], Needs] = {}
"""What recent calls needed, by device, shape and items per part."""
_MAX_SHAPES = 256


class Needs(NamedTuple):
    """Room that calls of one shape need: pairs, and the most visible Gaussians of a part of the batch."""

    pairs: int
    visible: int

    def with_slack(self) -> Needs:
        """A sixteenth more, because the next call will differ."""
        return Needs(*(min(number + number // 16, MAX_INDEX) for number in self))

    def after(self, call: Needs) -> Needs:
        """The same after one more call: what it needed, or a little less than the largest before it."""
        return Needs(*(max(now, recent - recent // 32) for now, recent in zip(call, self, strict=True)))


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
        """Gaussians of all images, visible or not."""
        return self.images * self.count

    @cached_property
    def warps_per_view(self) -> int:
        """Groups of 32 Gaussians of an image, in whole blocks."""
        return math.ceil(self.count / _PROJECT_THREADS) * (_PROJECT_THREADS // _WARP)

    def blend_arguments(self, colors: Tensor) -> tuple[int, ...]:
        """Sizes for the blend kernels; views that share colours are counted, one where each has its own."""
        sharing = self.views if colors.ndim == 3 else 1
        return (self.count, sharing, self.tiles_x, self.tiles_per_view, self.width, self.height)


shape_of = functools.lru_cache(_MAX_SHAPES)(Shape)
"""`Shape`, kept for the next call of the same sizes."""


class Part(NamedTuple):
    """Items of a batch that go backward together: the first one, how many, and the same of their records."""

    first_item: int
    items: int
    first_slot: int
    visible: int


class Bins(NamedTuple):
    """Projected Gaussians and, per tile, its segment of the pair list ordered front to back.

    Most are addresses within a few large allocations, because each allocation costs the host some microseconds.

    Attributes:
        pairs: slots of records, int32.
        records: address of the records by slot, `[S, 8]` float32, see gaussian_common.cuh.
        starts, ends: addresses of the tiles' segments, `[T]` int32.
        seen: slots of the visible ones of every 32 Gaussians, `[BV, W, 2]` int32, see `Seen` in gaussian_common.cuh.
        parts: of the batch.
        memory: the allocations of the addresses.
    """

    pairs: Tensor
    records: int
    starts: int
    ends: int
    seen: Tensor
    parts: tuple[Part, ...]
    memory: tuple[Tensor, ...]


def bin_gaussians(
    shape: Shape,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    scale_modifier: float,
    antialiased: bool,
    items_per_part: int,
) -> Bins:
    """Projects the Gaussians and lists them by tile, front to back.

    A part begins after so many items; there are at most `MAX_PARTS`.
    """
    key = (cameras[0].device.index, shape, items_per_part)
    recent = _NEEDS.get(key)
    settings = (scale_modifier, antialiased, items_per_part)
    bins, needs = _try_bin(shape, gaussians, cameras, *settings, None if recent is None else recent.with_slack())
    if bins is None:
        bins, needs = _try_bin(shape, gaussians, cameras, *settings, None)
        assert bins is not None
    if len(_NEEDS) >= _MAX_SHAPES:
        _NEEDS.clear()
    _NEEDS[key] = needs if recent is None else recent.after(needs)
    return bins


def _try_bin(
    shape: Shape,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    scale_modifier: float,
    antialiased: bool,
    items_per_part: int,
    granted: Needs | None,
) -> tuple[Bins | None, Needs]:
    """The bins, or None when there are more records or pairs than granted; and what was needed.

    With None granted there is room for all records, and the host waits for the number of pairs.
    """
    kernels = load_kernels("gaussian_bin.cu", ("project_and_count", "allocate_segments", "write_pairs"))
    device, stream = cameras[0].device, current_stream()
    views_per_part = items_per_part * shape.views
    slots_per_part = views_per_part * shape.count if granted is None else granted.visible
    firsts = range(0, shape.items, items_per_part)
    room = _Room.for_shape(shape, device, len(firsts) * slots_per_part)
    blocks_per_view = math.ceil(shape.count / _PROJECT_THREADS)
    grid, tiles = shape.images * blocks_per_view, shape.tiles
    sizes = (blocks_per_view, tiles, shape.width, shape.height)
    settings = (shape.image_width, shape.image_height, int(antialiased), scale_modifier)
    probed = gaussians if gaussians[4].ndim == 3 else (*gaussians[:4], gaussians[0])  # colours of views are not probed
    outputs = (room.records, room.depths, room.seen, room.packed_tiles, room.cursors, room.totals)
    counts = (shape.count, shape.views, views_per_part, slots_per_part)
    project = kernels["project_and_count"]
    launch(project, grid, _PROJECT_THREADS, *probed, *cameras, *outputs, *counts, *sizes, *settings, stream=stream)
    lists = (room.cursors, room.starts, room.totals, room.medium, room.large, room.scratch_starts)
    limits = (tiles, MEDIUM_TILE_PAIRS, LARGE_TILE_PAIRS)
    segment_grid = math.ceil(tiles / _SEGMENT_THREADS)
    launch(kernels["allocate_segments"], segment_grid, _SEGMENT_THREADS, *lists, *limits, stream=stream)
    capacity = _checked(room.read_totals()[0]) if granted is None else granted.pairs
    pairs = torch.empty(capacity, dtype=torch.int32, device=device)
    landing = _LANDINGS.on(device)
    listed = (room.records, room.seen, room.packed_tiles, room.cursors, pairs, capacity)
    report = (room.totals, landing.address, landing.new_ticket())
    launch(kernels["write_pairs"], grid, _PROJECT_THREADS, *listed, *report, shape.count, *sizes, stream=stream)
    segments = (pairs, room.depths, room.records, room.starts, room.ends)
    sorts = load_kernels("gaussian_sort.cu", ("sort_small", "sort_medium", "sort_large"))
    launch(sorts["sort_small"], tiles, 128, *segments, capacity, stream=stream)
    num_pairs, num_medium, num_large, large_pairs, *visible = landing.wait() if grid else [0] * _TOTALS
    needs = Needs(_checked(num_pairs), max(visible))
    if num_pairs > capacity or needs.visible > slots_per_part:
        return None, needs
    if num_medium:
        launch(sorts["sort_medium"], num_medium, 512, *segments, room.medium, stream=stream)
    if num_large:
        scratch = torch.empty(large_pairs, dtype=torch.int64, device=device)
        listed_tiles = (room.large, room.scratch_starts)
        launch(sorts["sort_large"], num_large, 1024, pairs, scratch, *segments[1:], *listed_tiles, stream=stream)
    parts = (
        Part(first, min(items_per_part, shape.items - first), i * slots_per_part, visible[i])
        for i, first in enumerate(firsts)
    )
    kept = (room.kept, room.counters)
    return Bins(pairs, room.records, room.starts, room.ends, room.seen, tuple(parts), kept), needs


class _Room(NamedTuple):
    """Memory for binning: what is kept, what is not, and numbers that begin at zero, with the addresses therein.

    Attributes:
        kept, passing, counters: the allocations, int32.
        seen: as in `Bins`.
        records, starts: as in `Bins`, in `kept`.
        packed_tiles, depths: of each Gaussian of each view, `[BV * N]` of 8 bytes, and of each record, `[S]` of 4
            bytes, in `passing`.
        medium, large, scratch_starts: medium and large tiles, and the starts of the latter in the scratch space,
            `[T]` int32 each, in `passing`.
        totals: 64-bit sums, in `counters`, and behind them cursors: several for each tile, which begin as counts.
        ends: where the last cursor of each tile stops.
    """

    kept: Tensor
    passing: Tensor
    counters: Tensor
    seen: Tensor
    records: int
    starts: int
    packed_tiles: int
    depths: int
    medium: int
    large: int
    scratch_starts: int
    totals: int
    cursors: int
    ends: int

    @staticmethod
    def for_shape(shape: Shape, device: torch.device, slots: int) -> _Room:
        """Memory for one call with at most so many records."""
        count, tiles = shape.records, shape.tiles
        kept = torch.empty(_RECORD_FLOATS * slots + tiles, dtype=torch.int32, device=device)
        passing = torch.empty(2 * count + slots + 3 * tiles, dtype=torch.int32, device=device)
        counters = torch.zeros(2 * _TOTALS + _COPIES * tiles, dtype=torch.int32, device=device)
        seen = torch.empty(shape.images, shape.warps_per_view, 2, dtype=torch.int32, device=device)
        records, packed_tiles, totals = kept.data_ptr(), passing.data_ptr(), counters.data_ptr()
        starts, depths = records + 4 * _RECORD_FLOATS * slots, packed_tiles + 8 * count
        medium = depths + 4 * slots
        lists = (medium, medium + 4 * tiles, medium + 8 * tiles)
        cursors = totals + 8 * _TOTALS
        ends = cursors + 4 * (_COPIES - 1) * tiles
        addresses = (records, starts, packed_tiles, depths, *lists, totals, cursors, ends)
        return _Room(kept, passing, counters, seen, *addresses)

    def read_totals(self) -> list[int]:
        """The totals, for which the host waits."""
        totals: list[int] = self.counters[: 2 * _TOTALS].view(torch.int64).tolist()
        return totals


class _Landing:
    """Page-locked memory where a kernel leaves the totals, so that the host needs no call of the driver to get them."""

    def __init__(self, pinned: bool) -> None:
        self._memory = torch.zeros(_TOTALS + 1, dtype=torch.int64, pin_memory=pinned)
        self.address = self._memory.data_ptr()
        self._numbers = (ctypes.c_int64 * (_TOTALS + 1)).from_address(self.address)
        self._ticket = 0

    def new_ticket(self) -> int:
        """What the kernel writes behind the totals when they are there."""
        self._ticket += 1
        return self._ticket

    def wait(self) -> list[int]:
        """The totals of the last ticket. Other threads of Python may run meanwhile.

        Raises:
            torch.AcceleratorError: a kernel failed.
        """
        for _ in range(_POLLS):
            if self._numbers[_TOTALS] == self._ticket:
                break
            _let_others_run()
        else:
            torch.cuda.current_stream().synchronize()
        return self._numbers[:_TOTALS]


def _let_others_run() -> None:
    """Lets go of the interpreter for a moment."""
    if sys.platform == "win32":
        time.sleep(0)  # elsewhere it takes 80 microseconds
    else:
        os.sched_yield()


class _LandingsOfThread(threading.local):
    """One per device, kept: a thread reads the numbers of a call before its next one."""

    def __init__(self) -> None:
        self._landings: dict[int | None, _Landing] = {}

    def on(self, device: torch.device) -> _Landing:
        landing = self._landings.get(device.index)
        if landing is None:
            landing = self._landings[device.index] = _Landing(device.type == "cuda")
        return landing


_LANDINGS = _LandingsOfThread()


def _checked(num_pairs: int) -> int:
    if num_pairs > MAX_INDEX:
        raise UnsupportedError(
            f"{num_pairs} (tile, Gaussian) pairs are more than the CUDA backend indexes ({MAX_INDEX}): render fewer "
            "views per call, or check that the scales are not far too large"
        )
    return num_pairs
