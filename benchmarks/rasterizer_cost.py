"""What the CUDA rasterizer's kernels have to do, and how long an H200 needs for that at least.

python benchmarks/rasterizer_cost.py -o benchmarks/results: counts on the CPU (in a minute) what benchmark scenes ask of
every kernel, multiplies by the bytes and instructions per unit of work, which are read off the kernels' sources, and
sets the time that the tightest limit of the card allows beside the measured one of `raster_kernels.json` in the same
folder. Writes `raster_cost.json` and `raster_cost.md` there. The pairs are those of the CPU backend, whose test of the
tiles has another margin for rounding: on one view of `lgm_big` they are 0.13 % fewer than the GPU's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from maquette.raster.bench_scenes import GPU_SCENES, BenchScene, make_scene
from maquette.raster.cpu_project import SPLAT_FIELDS, fill_slots, project_views, sort_pairs
from maquette.raster.reference import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, TILE

SCENES = ("lgm_big", "geolrm")
# An H200: bytes per second as specified; multiprocessors times results per clock, by kind, times clocks per second.
BYTES_PER_S, CLOCK_HZ = 4.8e12, 132 * 1.98e9
INSTRUCTIONS_PER_S, SPECIAL_PER_S, FLOATS_PER_S = 128 * CLOCK_HZ, 16 * CLOCK_HZ, 256 * CLOCK_HZ
TENSOR_FLOATS_PER_S = 495e12  # tf32 as specified, without sparsity
TENSOR_FLOATS_OF_GROUP = 32 * 2 * 16 * 8 * 8  # 32 products of 16 x 8 by 8 x 8 for 16 Gaussians and 64 pixels

COPIES, BATCH, GROUP = 16, 128, 16  # as in gaussian_bin.cu, gaussian_stage.cuh, gaussian_blend_backward.cu
LOG2_MIN_ALPHA, QUADRANT_SLACK = math.log2(MIN_ALPHA), 0.01
PACKED_TILES = 32  # a rectangle of more tiles is walked twice
COUNTED = 8


@dataclass(frozen=True)
class Work:
    """Instructions of a thread for one unit of work.

    Attributes:
        fused: multiplications fused with an addition.
        single: other additions and multiplications.
        select: comparisons, minima, maxima, selections, masks.
        special: exponentials, logarithms, reciprocals, roots, conversions.
        other: moves from and to memory, shuffles, tensor cores, arithmetic of indices.
    """

    fused: float = 0
    single: float = 0
    select: float = 0
    special: float = 0
    other: float = 0


# Read off the sources. An exact division or root is one special function and six fused operations.
RECORD = Work(fused=2, single=2, select=2, other=60)  # depth, share in the warp's prefix sum, slot, packed tiles
CANDIDATE = Work(fused=107, single=85, select=15, special=8)  # projection of what is in front and not faint
FOOTPRINT = Work(fused=72, single=38, select=26, special=20)
RECTANGLE_TILE = Work(fused=14, single=21, select=20, special=8, other=45)  # `columns` and the search of the owner
SEGMENT = Work(other=120)  # a tile in allocate_segments, a word in number_rows
WRITTEN_RECORD, WRITTEN_PAIR = Work(other=20), Work(other=12)
SORTED_TILE, SORTED_PAIR = Work(other=128 * 160), Work(other=40)  # a block of 128 threads, its buckets
STAGED = Work(fused=24, single=53, select=66, special=3, other=65)  # four tests of a quadrant, four lists
FORWARD = Work(fused=6.5, single=5.5, select=7, special=1, other=3)  # a Gaussian in a pixel
FORWARD_PIXEL = Work(fused=3, single=1, other=15)
BACKWARD = Work(fused=7.5, single=8.5, select=9, special=2, other=3.75)
BACKWARD_GROUP = Work(fused=320, single=3072, select=2048, other=2592)  # 32 threads splitting, multiplying and adding
BACKWARD_PIXEL = Work(fused=5, single=3, other=25)
RECORD_BACKWARD = Work(fused=134, single=100, select=12, special=5, other=25)  # projection again, and its gradient
GAUSSIAN_BACKWARD = Work(fused=50, single=80, special=1, other=40)


@dataclass(frozen=True)
class Counts:
    """What a scene asks for; pairs are of a tile or quadrant and a Gaussian.

    Attributes:
        gaussians: of all items.
        records: views times Gaussians.
        candidates: records whose opacity is not under 1/255.
        visible: records with a rectangle of tiles.
        large: visible records whose rectangle has more than 32 tiles.
        rectangle_tiles, large_rectangle_tiles: tiles in all rectangles, and in those.
        pixels, tiles: of all views.
        occupied_tiles: tiles with pairs.
        pairs: (tile, Gaussian).
        staged_pairs: those that are staged before all pixels of the tile are done.
        quadrant_pairs: (8 x 8 quadrant, Gaussian) that the test while staging keeps.
        walked_pairs: those that are walked before all pixels of the quadrant are done, looked up every 16.
        adding_pairs: those that reach a pixel with alpha 1/255: with a gradient.
        groups: of up to 16 walked pairs.
        open_evaluations: walked Gaussians times pixels that are not done yet.
        contributions: those with alpha from 1/255.
        rows: visible records that are staged and reach a quadrant: with a row of gradients.
    """

    gaussians: int
    records: int
    candidates: int
    visible: int
    large: int
    rectangle_tiles: int
    large_rectangle_tiles: int
    pixels: int
    tiles: int
    occupied_tiles: int
    pairs: int
    staged_pairs: int
    quadrant_pairs: int
    walked_pairs: int
    adding_pairs: int
    groups: int
    open_evaluations: int
    contributions: int
    rows: int

    @property
    def evaluations(self) -> int:
        """Pixels that a Gaussian is evaluated in, done or not: 64 for every walked pair."""
        return 64 * self.walked_pairs


@numba.njit
def reaches(splat: Any, left: int, top: int) -> bool:
    """The test of a quadrant while staging: `largest_power` in gaussian_stage.cuh."""
    u, v, xx, xy, yy = splat[0], splat[1], splat[2], splat[3], splat[4]
    dx, dy = u - min(max(u, left), left + 7), v - min(max(v, top), top + 7)
    best = -1e30
    if dx == 0 and dy == 0:
        best = 0.0
    if dx != 0:
        other = v - min(max(v + xy / (2 * yy) * dx, top), top + 7)
        best = xx * dx * dx + xy * dx * other + yy * other * other
    if dy != 0:
        other = u - min(max(u + xy / (2 * xx) * dy, left), left + 7)
        best = max(best, xx * other * other + xy * other * dy + yy * dy * dy)
    return best >= LOG2_MIN_ALPHA - QUADRANT_SLACK - splat[5]


@numba.njit
def evaluate(splat: Any, left: int, top: int, light: Any) -> tuple[int, int, int]:
    """Blends a Gaussian into the `light` of 64 pixels, -1 once done: how many were open, got some, are done now."""
    was_open = reached = done = 0
    for pixel in range(64):
        if light[pixel] < 0:
            continue
        was_open += 1
        dx, dy = splat[0] - (left + pixel % 8), splat[1] - (top + pixel // 8)
        power = splat[5] + splat[2] * dx * dx + splat[3] * dx * dy + splat[4] * dy * dy
        if power < LOG2_MIN_ALPHA:
            continue
        after = light[pixel] * (1 - min(MAX_ALPHA, 2**power))
        if after < MIN_TRANSMITTANCE:
            light[pixel] = -1
            done += 1
        else:
            light[pixel] = after
            reached += 1
    return was_open, reached, done


@numba.njit
def walk(splats: Any, tile_starts: Any, gaussians: Any, tiles_x: int) -> Any:
    """Walks the tiles of a view as the blend kernels do; returns what the last eight fields of `Counts` count."""
    sums, with_row = np.zeros(COUNTED, np.int64), np.zeros(len(splats), np.bool_)
    for tile in range(len(tile_starts) - 1):
        light, open_pixels = np.ones((4, 64)), np.full(4, 64)
        end = tile_starts[tile + 1]
        for first in range(tile_starts[tile], end, BATCH):
            if open_pixels.sum() == 0:
                break
            batch = gaussians[first : min(first + BATCH, end)]
            sums[0] += len(batch)
            for quadrant in range(4):
                left = tile % tiles_x * TILE + quadrant % 2 * 8
                top = tile // tiles_x * TILE + quadrant // 2 * 8
                listed, walking = 0, True
                for n in batch:
                    if not reaches(splats[n], left, top):
                        continue
                    sums[1] += 1
                    with_row[n] = True
                    if listed % GROUP == 0:
                        walking = open_pixels[quadrant] > 0
                        sums[4] += walking
                    listed += 1
                    if not walking:
                        continue
                    was_open, reached, done = evaluate(splats[n], left, top, light[quadrant])
                    open_pixels[quadrant] -= done
                    sums[2] += 1
                    sums[3] += reached > 0
                    sums[5] += was_open
                    sums[6] += reached
    sums[7] = with_row.sum()
    return sums


def count_scene(scene: BenchScene) -> Counts:
    """Counts a made scene, whose images must consist of whole tiles, view by view."""
    gaussians, cameras = make_scene(scene, torch.device("cpu"))
    values = [value.numpy() for value in (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)]
    usable, tiles_x = np.ones((scene.items, scene.count), bool), scene.image_size // TILE
    views, size = scene.items * scene.views, (scene.image_size, scene.image_size)
    shape = (1, scene.count)
    sums = np.zeros(COUNTED, np.int64)
    visible = large = rectangle_tiles = large_rectangle_tiles = occupied = pairs = 0
    for view in range(views):
        item, place = np.array([view // scene.views]), (view // scene.views, view % scene.views)
        pose, intrinsics = (t[place].numpy()[None] for t in (cameras.world_to_camera, cameras.intrinsics))
        splats, rectangles = np.empty((*shape, SPLAT_FIELDS), np.float32), np.zeros((*shape, 4), np.int32)
        counts, origins = np.empty(shape, np.int64), np.zeros((1, 2), np.int64)
        camera = (item, pose, intrinsics, size, origins, size, False)
        project_views(*values, usable, *camera, splats, rectangles, counts)
        ends = counts.reshape(-1).cumsum()
        slots = (ends - counts.reshape(-1)).reshape(shape)
        slot_tiles, order = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.int32)
        fill_slots(splats, rectangles, counts, slots, tiles_x, slot_tiles)
        starts = np.empty((1, tiles_x * tiles_x + 1), np.int64)
        sort_pairs(splats, counts, slots, slot_tiles, starts, order, np.empty(ends[-1], np.int64))
        sums += walk(splats[0], starts[0], order, tiles_x)
        corners = np.maximum(rectangles[0, :, 2:] - rectangles[0, :, :2], 0).prod(1)
        visible += int((corners > 0).sum())
        large += int((corners > PACKED_TILES).sum())
        rectangle_tiles += int(corners.sum())
        large_rectangle_tiles += int(corners[corners > PACKED_TILES].sum())
        occupied += int((np.diff(starts[0]) > 0).sum())
        pairs += int(ends[-1])
    pixels, candidates = views * scene.image_size**2, int((values[3] >= MIN_ALPHA).sum()) * scene.views
    of_records = (scene.items * scene.count, views * scene.count, candidates, visible, large)
    of_tiles = (rectangle_tiles, large_rectangle_tiles, pixels, pixels // TILE**2, occupied, pairs)
    return Counts(*of_records, *of_tiles, *(int(value) for value in sums))


@dataclass(frozen=True)
class Kernel:
    """Bytes that must move at least once, units of work, atomic operations in memory, products on tensor cores."""

    bytes: float
    work: tuple[tuple[float, Work], ...]
    atomics: float = 0
    tensor_floats: float = 0

    def total(self, *kinds: str) -> float:
        """Instructions of these kinds."""
        return sum(units * sum(getattr(work, kind) for kind in kinds) for units, work in self.work)

    def floats(self) -> float:
        """Floating-point operations, two of them in a fused one."""
        return 2 * self.total("fused") + self.total("single")

    def limits_ms(self) -> dict[str, float]:
        """Least milliseconds by limit of the card."""
        everything = (field.name for field in dataclasses.fields(Work))
        seconds = {
            "memory": self.bytes / BYTES_PER_S,
            "float32": self.floats() / FLOATS_PER_S,
            "special functions": self.total("special") / SPECIAL_PER_S,
            "tensor cores": self.tensor_floats / TENSOR_FLOATS_PER_S,
            "instructions": self.total(*everything) / INSTRUCTIONS_PER_S,
        }
        return {name: 1000 * value for name, value in seconds.items()}


def kernels_of(counts: Counts) -> dict[str, Kernel]:
    """The kernels in the order of their launches; every array is moved once, what is added to once in and once out."""
    counters, segments = 2 * 4 * COPIES * counts.tiles, 2 * 4 * counts.tiles
    inputs = 4 * (3 + 4 + 3 + 1)  # bytes of a Gaussian without its colour
    seen, words = 8 * counts.records // 32, 8 * counts.visible // 32
    blended = 4 * counts.pairs + 32 * counts.visible + 12 * counts.gaussians + segments
    shown = counts.occupied_tiles * TILE**2
    staged = (counts.staged_pairs, STAGED)
    return {
        "project_and_count": Kernel(
            (inputs + 12) * counts.gaussians + (32 + 4) * counts.visible + 8 * counts.records + seen + counters,
            (
                (counts.records, RECORD),
                (counts.candidates, CANDIDATE),
                (counts.visible, FOOTPRINT),
                (counts.rectangle_tiles, RECTANGLE_TILE),
            ),
            atomics=counts.pairs,
        ),
        "allocate_segments": Kernel(counters + 4 * counts.tiles, ((counts.tiles, SEGMENT),)),
        "write_pairs": Kernel(
            8 * counts.records + seen + 32 * counts.large + counters + 4 * counts.pairs,
            (
                (counts.records, WRITTEN_RECORD),
                (counts.pairs, WRITTEN_PAIR),
                (counts.large, FOOTPRINT),
                (counts.large_rectangle_tiles, RECTANGLE_TILE),
            ),
            atomics=counts.pairs,
        ),
        "sort": Kernel(
            2 * 4 * counts.pairs + 4 * counts.visible + segments,
            ((counts.occupied_tiles, SORTED_TILE), (counts.pairs, SORTED_PAIR)),
        ),
        "blend_forward": Kernel(
            blended + 2 * words + 4 * 5 * counts.pixels,
            (staged, (counts.evaluations, FORWARD), (counts.pixels, FORWARD_PIXEL)),
            atomics=counts.staged_pairs,
        ),
        "number_rows": Kernel(2 * words, ((counts.visible // 32, SEGMENT),)),
        "blend_backward": Kernel(
            blended + words + 2 * 40 * counts.rows + 2 * 4 * 5 * shown,
            (staged, (counts.evaluations, BACKWARD), (counts.groups, BACKWARD_GROUP), (shown, BACKWARD_PIXEL)),
            atomics=3 * counts.adding_pairs,
            tensor_floats=counts.groups * TENSOR_FLOATS_OF_GROUP,
        ),
        "project_backward": Kernel(
            (2 * inputs + 12) * counts.gaussians + seen + words + 40 * counts.rows,
            ((counts.rows, RECORD_BACKWARD), (counts.gaussians, GAUSSIAN_BACKWARD)),
        ),
    }


def rows_of(counts: Counts, measured: dict[str, float]) -> list[dict[str, Any]]:
    """What each kernel does, the limits, and the measured milliseconds; the three kernels that sort count as one."""
    rows = []
    for name, kernel in kernels_of(counts).items():
        limits = kernel.limits_ms()
        tightest = max(limits, key=lambda limit: limits[limit])
        ms = sum(value for key, value in measured.items() if key == name or key.startswith(f"{name}_"))
        work = {
            "bytes": kernel.bytes,
            "float32_operations": kernel.floats(),
            "special_functions": kernel.total("special"),
            "atomics": kernel.atomics,
        }
        times = {"limits_ms": limits, "tightest": tightest, "measured_ms": ms, "ratio": ms / limits[tightest]}
        rows.append({"kernel": name, **work, **times})
    return rows


def microseconds(milliseconds: float) -> str:
    return f"{1000 * milliseconds:.{0 if milliseconds >= 0.01 else 1}f}"


def markdown(scene: BenchScene, counts: Counts, rows: list[dict[str, Any]]) -> list[str]:
    """A table of a scene, and what was counted below it."""
    lines = [
        f"## {scene.title}",
        "",
        "| kernel | MB | 10^9 float32 operations | 10^9 special functions | 10^6 atomics "
        f"| {' | '.join(rows[0]['limits_ms'])} | measured | measured / tightest |",
        f"|---{11 * '|---:'}|",
    ]
    for row in rows:
        cells = [
            row["kernel"],
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['float32_operations'] / 1e9:.2f}",
            f"{row['special_functions'] / 1e9:.2f}",
            f"{row['atomics'] / 1e6:.1f}",
        ]
        for name, limit in row["limits_ms"].items():
            shown = microseconds(limit) if limit else ""
            cells.append(f"**{shown}**" if name == row["tightest"] else shown)
        cells += [microseconds(row["measured_ms"]), f"{row['ratio']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    counted = [f"{value:,} {name.replace('_', ' ')}" for name, value in dataclasses.asdict(counts).items()]
    return [*lines, "", f"Counted: {', '.join(counted)}.", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    measured = json.loads((args.output / "raster_kernels.json").read_text())
    lines = [
        "# CUDA rasterizer: what the kernels do, and the limits of an H200",
        "",
        "Microseconds that the card needs at least, by limit, the tightest in bold, beside the measured ones of "
        f"[raster_kernels.json](raster_kernels.json) (H200, commit {measured['commit']}; events around each launch add "
        "some microseconds). Made by `python benchmarks/rasterizer_cost.py -o benchmarks/results`, which says what is "
        "counted.",
        "",
        "Limits: memory 4.8 TB/s, every array once; float32 67 TFLOP/s, tensor cores 495 TFLOP/s in tf32; of each of "
        "132 multiprocessors and clock (1.98 GHz) 16 special functions and 128 instructions of any kind, a thread's "
        "each. For atomics on memory none is specified.",
        "",
    ]
    document = {}
    for scene in (scene for scene in GPU_SCENES if scene.name in SCENES):
        counts = count_scene(scene)
        rows = rows_of(counts, measured[scene.name])
        document[scene.name] = {"counts": dataclasses.asdict(counts), "kernels": rows}
        lines += markdown(scene, counts, rows)
    (args.output / "raster_cost.json").write_text(json.dumps(document, indent=1) + "\n")
    (args.output / "raster_cost.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
