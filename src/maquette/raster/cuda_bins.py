"""CUDA backend, first half of the forward pass: projection, and lists of Gaussians per tile from front to back.

The host allocates records and the pair list by what recent calls of the same shape needed, so that the GPU does not
wait for it, and looks at the true numbers afterwards: if there are more, it begins again.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from maquette.errors import UnsupportedError
from maquette.raster.cuda_landing import NUMBERS, Ticket, new_ticket
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
_COPIES = 16
"""Counters of each tile; as in gaussian_bin.cu."""
_ROWS_THREADS = 1024
_NEEDS: dict[Key, Needs] = {}
_ROWS: dict[Key, int] = {}
"""What recent calls needed, and how many rows of gradients, by device, shape and items per part."""
_MAX_SHAPES = 256


class Needs(NamedTuple):
    """Room that calls of one shape need: pairs, and the most visible Gaussians of a part of the batch."""

    pairs: int
    visible: int

    def with_slack(self) -> Needs:
        """A sixteenth more, because the next call will differ."""
        return Needs(*(_with_slack(number) for number in self))

    def after(self, call: Needs) -> Needs:
        """The same after one more call: what it needed, or a little less than the largest before it."""
        return Needs(*(_after(recent, now) for recent, now in zip(self, call, strict=True)))


def _with_slack(number: int) -> int:
    return min(number + number // 16, MAX_INDEX)


def _after(recent: int, now: int) -> int:
    return max(now, recent - recent // 32)


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
    """Items of a batch that go backward together: the first one, and how many."""

    first_item: int
    items: int


Key: TypeAlias = tuple[int | None, Shape, int]
"""Index of the device, shape and items per part."""


class Counters(NamedTuple):
    """Numbers that begin at zero, one behind the other.

    - Totals of binning, 8 of 64 bits: pairs, medium tiles, large tiles and their pairs, visible Gaussians of each part.
    - Totals of rows, 8 of 64 bits: rows of each part, and what counting them needs.
    - Words for 32 slots, each two numbers of 32 bits: the row of gradients of the first, which `number_rows` adds, and
      bits of the slots that a pixel may see, which blending sets; see `Ranked` in gaussian_common.cuh.
    - Cursors of the tiles, several for each, which begin as counts.

    Attributes:
        memory: int32.
        words: for 32 slots each.
    """

    memory: Tensor
    words: int

    @staticmethod
    def for_shape(shape: Shape, device: torch.device, words: int) -> Counters:
        """Counters for so many words of slots."""
        size = 4 * NUMBERS + 2 * words + _COPIES * shape.tiles
        return Counters(torch.zeros(size, dtype=torch.int32, device=device), words)

    @property
    def totals(self) -> int:
        """Address of the totals of binning."""
        return self.memory.data_ptr()

    @property
    def row_totals(self) -> int:
        """Address of the totals of rows."""
        return self.totals + 8 * NUMBERS

    @property
    def rows(self) -> int:
        """Address of the words."""
        return self.totals + 16 * NUMBERS

    @property
    def cursors(self) -> int:
        """Address of the cursors."""
        return self.rows + 8 * self.words

    def row_words(self) -> Tensor:
        """The words, `[W, 2]`: row of the first, and bits."""
        return self.memory[4 * NUMBERS :][: 2 * self.words].view(-1, 2)

    def read_totals(self) -> list[int]:
        """The totals of binning, for which the host waits."""
        return self._read(0)

    def read_row_totals(self) -> list[int]:
        """The totals of rows, for which the host waits."""
        return self._read(2 * NUMBERS)

    def _read(self, start: int) -> list[int]:
        numbers: list[int] = self.memory[start : start + 2 * NUMBERS].view(torch.int64).tolist()
        return numbers


class Bins(NamedTuple):
    """Projected Gaussians and, per tile, its segment of the pair list ordered front to back.

    Most are addresses within a few large allocations, because each allocation costs the host some microseconds.

    Attributes:
        pairs: slots of records, int32.
        records: address of the records by slot, `[S, 8]` float32, see gaussian_common.cuh.
        starts, ends: addresses of the tiles' segments, `[T]` int32.
        seen: slots of the visible ones of every 32 Gaussians, `[BV, W, 2]` int32, see `Ranked` in gaussian_common.cuh.
        counters: among them those of the rows of gradients.
        parts: of the batch.
        kept: the allocation of the other addresses.
        key: of what calls like this one need.
    """

    pairs: Tensor
    records: int
    starts: int
    ends: int
    seen: Tensor
    counters: Counters
    parts: tuple[Part, ...]
    kept: Tensor
    key: Key


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
    settings = (scale_modifier, antialiased)
    bins, needs = _try_bin(key, gaussians, cameras, *settings, None if recent is None else recent.with_slack())
    if bins is None:
        bins, needs = _try_bin(key, gaussians, cameras, *settings, None)
        assert bins is not None
    if len(_NEEDS) >= _MAX_SHAPES:
        _NEEDS.clear()
        _ROWS.clear()
    _NEEDS[key] = needs if recent is None else recent.after(needs)
    return bins


def _try_bin(
    key: Key,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    scale_modifier: float,
    antialiased: bool,
    granted: Needs | None,
) -> tuple[Bins | None, Needs]:
    """The bins, or None when there are more records or pairs than granted; and what was needed.

    With None granted there is room for all records, and the host waits for the number of pairs.
    """
    kernels = load_kernels("gaussian_bin.cu", ("project_and_count", "allocate_segments", "write_pairs"))
    device, stream, (_, shape, items_per_part) = cameras[0].device, current_stream(), key
    views_per_part = items_per_part * shape.views
    slots_per_part = _WARP * math.ceil((views_per_part * shape.count if granted is None else granted.visible) / _WARP)
    firsts = range(0, shape.items, items_per_part)
    slots = len(firsts) * slots_per_part
    room, counters = _Room.for_shape(shape, device, slots), Counters.for_shape(shape, device, slots // _WARP)
    blocks_per_view = math.ceil(shape.count / _PROJECT_THREADS)
    grid, tiles = shape.images * blocks_per_view, shape.tiles
    sizes = (blocks_per_view, tiles, shape.width, shape.height)
    settings = (shape.image_width, shape.image_height, int(antialiased), scale_modifier)
    probed = gaussians if gaussians[4].ndim == 3 else (*gaussians[:4], gaussians[0])  # colours of views are not probed
    outputs = (room.records, room.depths, room.seen, room.packed_tiles, counters.cursors, counters.totals)
    counts = (shape.count, shape.views, views_per_part, slots_per_part)
    project = kernels["project_and_count"]
    launch(project, grid, _PROJECT_THREADS, *probed, *cameras, *outputs, *counts, *sizes, *settings, stream=stream)
    lists = (counters.cursors, room.starts, counters.totals, room.medium, room.large, room.scratch_starts)
    limits = (tiles, MEDIUM_TILE_PAIRS, LARGE_TILE_PAIRS)
    segment_grid = math.ceil(tiles / _SEGMENT_THREADS)
    launch(kernels["allocate_segments"], segment_grid, _SEGMENT_THREADS, *lists, *limits, stream=stream)
    capacity = _checked(counters.read_totals()[0]) if granted is None else granted.pairs
    pairs = torch.empty(capacity, dtype=torch.int32, device=device)
    ticket = new_ticket(device)
    listed = (room.records, room.seen, room.packed_tiles, counters.cursors, pairs, capacity)
    report = (counters.totals, ticket.address, ticket.number)
    launch(kernels["write_pairs"], grid, _PROJECT_THREADS, *listed, *report, shape.count, *sizes, stream=stream)
    ends = counters.cursors + 4 * (_COPIES - 1) * tiles  # where the last cursor of each tile stops
    segments = (pairs, room.depths, room.records, room.starts, ends)
    sorts = load_kernels("gaussian_sort.cu", ("sort_small", "sort_medium", "sort_large"))
    launch(sorts["sort_small"], tiles, 128, *segments, capacity, stream=stream)
    totals = ticket.wait(counters.read_totals) if grid else [0] * NUMBERS
    num_pairs, num_medium, num_large, large_pairs, *visible = totals
    needs = Needs(_checked(num_pairs), max(visible))
    if num_pairs > capacity or needs.visible > slots_per_part:
        return None, needs
    if num_medium:
        launch(sorts["sort_medium"], num_medium, 512, *segments, room.medium, stream=stream)
    if num_large:
        scratch = torch.empty(large_pairs, dtype=torch.int64, device=device)
        listed_tiles = (room.large, room.scratch_starts)
        launch(sorts["sort_large"], num_large, 1024, pairs, scratch, *segments[1:], *listed_tiles, stream=stream)
    parts = tuple(Part(first, min(items_per_part, shape.items - first)) for first in firsts)
    return Bins(pairs, room.records, room.starts, ends, room.seen, counters, parts, room.kept, key), needs


def number_rows(bins: Bins) -> Ticket | None:
    """Gives the slots whose bits are set a row of gradients each.

    Returns:
        For the numbers of rows of all parts; None when there is no slot.
    """
    counters, words = bins.counters, bins.counters.words // len(bins.parts)
    if words == 0:
        return None
    kernel = load_kernels("gaussian_bin.cu", ("number_rows",))["number_rows"]
    blocks, ticket = math.ceil(words / _ROWS_THREADS), new_ticket(bins.pairs.device)
    sizes = (words, blocks, ticket.address, ticket.number)
    launch(kernel, len(bins.parts) * blocks, _ROWS_THREADS, counters.rows, counters.row_totals, *sizes)
    return ticket


def rows_to_expect(bins: Bins) -> int | None:
    """Room for the rows of gradients of a part, by what recent calls needed; None when there was none."""
    recent = _ROWS.get(bins.key)
    return None if recent is None else _with_slack(recent)


def count_rows(bins: Bins, ticket: Ticket | None) -> int:
    """The most rows of gradients of a part, given what `number_rows` returned."""
    totals = [0] if ticket is None else ticket.wait(bins.counters.read_row_totals)
    most = max(totals[: len(bins.parts)])
    _ROWS[bins.key] = _after(_ROWS.get(bins.key, 0), most)
    return most


class _Room(NamedTuple):
    """Memory for binning: what is kept and what is not, with the addresses therein.

    Attributes:
        kept, passing: the allocations, int32.
        seen: as in `Bins`.
        records, starts: as in `Bins`, in `kept`.
        packed_tiles, depths: of each Gaussian of each view, `[BV * N]` of 8 bytes, and of each record, `[S]` of 4
            bytes, in `passing`.
        medium, large, scratch_starts: medium and large tiles, and the starts of the latter in the scratch space,
            `[T]` int32 each, in `passing`.
    """

    kept: Tensor
    passing: Tensor
    seen: Tensor
    records: int
    starts: int
    packed_tiles: int
    depths: int
    medium: int
    large: int
    scratch_starts: int

    @staticmethod
    def for_shape(shape: Shape, device: torch.device, slots: int) -> _Room:
        """Memory for one call with at most so many records."""
        count, tiles = shape.records, shape.tiles
        kept = torch.empty(_RECORD_FLOATS * slots + tiles, dtype=torch.int32, device=device)
        passing = torch.empty(2 * count + slots + 3 * tiles, dtype=torch.int32, device=device)
        seen = torch.empty(shape.images, shape.warps_per_view, 2, dtype=torch.int32, device=device)
        records, packed_tiles = kept.data_ptr(), passing.data_ptr()
        starts, depths = records + 4 * _RECORD_FLOATS * slots, packed_tiles + 8 * count
        medium = depths + 4 * slots
        lists = (medium, medium + 4 * tiles, medium + 8 * tiles)
        return _Room(kept, passing, seen, records, starts, packed_tiles, depths, *lists)


def _checked(num_pairs: int) -> int:
    if num_pairs > MAX_INDEX:
        raise UnsupportedError(
            f"{num_pairs} (tile, Gaussian) pairs are more than the CUDA backend indexes ({MAX_INDEX}): render fewer "
            "views per call, or check that the scales are not far too large"
        )
    return num_pairs
