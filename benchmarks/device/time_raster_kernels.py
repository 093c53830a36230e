"""Milliseconds of every kernel of the CUDA rasterizer, and of the host, per benchmark scene.

python benchmarks/device/time_raster_kernels.py [-o DIR --commit HASH]: medians over some calls with gradients, by
CUDA events around each launch. The events cost some microseconds per launch, so the sum is longer than a plain call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maquette.raster import cuda, cuda_bins
from maquette.raster.bench_scenes import GPU_SCENES, BenchScene, make_scene

CALLS = 12


def measure(scene: BenchScene) -> dict[str, float]:
    """Medians by kernel name; "host forward", "host total": until Python goes on; "forward", "total": whole calls."""
    gaussians, cameras = make_scene(scene, torch.device("cuda", 0))
    leaves = [value.clone().requires_grad_() for value in vars(gaussians).values() if isinstance(value, Tensor)]
    black = torch.zeros(*cameras.batch_shape, 3, device="cuda")
    views = (cameras.world_to_camera, cameras.intrinsics, cameras.height, cameras.width, black, 1.0)
    upstream = [torch.rand_like(image) for image in cuda.rasterize(*leaves, *views)]
    times: dict[str, list[float]] = defaultdict(list)

    def total() -> None:
        torch.autograd.grad(cuda.rasterize(*leaves, *views), leaves, upstream)

    def timed(name: str, function: Callable[[], object]) -> None:
        torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        times[f"host {name}"].append(1000 * (time.perf_counter() - began))
        torch.cuda.synchronize()
        times[name].append(1000 * (time.perf_counter() - began))

    for _ in range(3 + CALLS):
        timed("forward", lambda: cuda.rasterize(*leaves, *views))
        timed("total", total)
    result = {name: statistics.median(values[3:]) for name, values in times.items()}
    return {**result, **by_kernel(total)}


def by_kernel(call: Callable[[], None]) -> dict[str, float]:
    """Medians by kernel name over calls whose launches stand between events; launches of one call are added up."""
    events: list[tuple[str, Any, Any]] = []
    sums: dict[str, list[float]] = defaultdict(list)
    plain_launch = cuda.launch

    def launch(kernel: Any, *args: Any, **options: Any) -> None:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        plain_launch(kernel, *args, **options)
        end.record()
        events.append((kernel.name, start, end))

    cuda.launch = cuda_bins.launch = launch
    try:
        for index in range(CALLS):
            events.clear()
            call()
            torch.cuda.synchronize()
            for name, start, end in events:
                sums[name] += [0.0] * (index + 1 - len(sums[name]))
                sums[name][index] += start.elapsed_time(end)
    finally:
        cuda.launch = cuda_bins.launch = plain_launch
    return {name: statistics.median(values) for name, values in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--commit", default="unknown", help="what the file names")
    args = parser.parse_args()
    results = {scene.name: measure(scene) for scene in GPU_SCENES}
    names = list(dict.fromkeys(name for result in results.values() for name in result))
    print(f"{'ms':20}" + "".join(f"{scene:>10}" for scene in results))
    for name in names:
        print(f"{name:20}" + "".join(f"{result.get(name, 0.0):10.3f}" for result in results.values()))
    if args.output:
        (args.output / "raster_kernels.json").write_text(
            json.dumps({"commit": args.commit, **results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
