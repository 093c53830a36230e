"""From one picture to Gaussians: time and memory of the networks with random weights."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from maquette.gaussians import Gaussians
from maquette.io.atomic import atomic_write_text
from maquette.models.gamba.inputs import front_cameras, network_inputs
from maquette.models.gamba.network import Gamba
from maquette.models.gamba.params import GAMBA, GAMBA_MINI, GambaParams
from maquette.raster.bench import time_cpu, time_gpu

FORMAT = "maquette-bench-gamba/1"
GPU_RUNS, CPU_RUNS = 20, 5


@dataclass(frozen=True)
class Measurement:
    """One network in one precision.

    Attributes:
        model: name of the preset.
        precision: of the weights.
        num_gaussians: of the result.
        median_ms: from the picture on the device to Gaussians there.
        graph_ms: the same as a replayed CUDA graph; None on a CPU.
        peak_mib: GPU memory, weights included; None on a CPU.
    """

    model: str
    precision: str
    num_gaussians: int
    median_ms: float
    graph_ms: float | None
    peak_mib: float | None


def bench_networks(device: torch.device) -> list[Measurement]:
    """Measures the official sizes and ours on a GPU, ours on a CPU."""
    if device.type == "cpu":
        return [_bench(GAMBA_MINI, torch.float32, device)]
    return [
        _bench(params, dtype, device)
        for params in (GAMBA, GAMBA_MINI)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    ]


def _bench(params: GambaParams, dtype: torch.dtype, device: torch.device) -> Measurement:
    torch.manual_seed(0)
    params = dataclasses.replace(params, join_mirrored=False)  # one pass of the network
    network = Gamba(params).to(device, dtype).eval().requires_grad_(False)
    picture = torch.rand(1, 4, params.input_size, params.input_size, device=device)
    camera = front_cameras(1, params.input_size, params).to(device)

    def whole() -> Gaussians:
        color, alpha = picture[:, :3] * picture[:, 3:] + (1 - picture[:, 3:]), picture[:, 3:]
        result: Gaussians = network(*network_inputs(color, camera, params, alpha))
        return result

    on_gpu = device.type == "cuda"
    time_runs: Callable[[Callable[[], None], int], Sequence[float]] = time_gpu if on_gpu else time_cpu
    graph_ms = peak_mib = None
    with torch.no_grad():
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        times = time_runs(lambda: _discard(whole()), GPU_RUNS if on_gpu else CPU_RUNS)
        if on_gpu:
            peak_mib = torch.cuda.max_memory_allocated(device) / 2**20
            inputs = network_inputs(picture[:, :3], camera, params, picture[:, 3:])
            graph_ms = statistics.median(time_gpu(_graph(network, inputs), GPU_RUNS))
    name = str(dtype).removeprefix("torch.")
    return Measurement(params.name, name, params.num_gaussians, statistics.median(times), graph_ms, peak_mib)


def _discard(_: Gaussians) -> None:
    """A result that is not looked at."""


def _graph(network: Gamba, inputs: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """A replay of the network on fixed inputs."""
    new_stream: Callable[[], torch.cuda.Stream] = torch.cuda.Stream
    side = new_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        network(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        network(*inputs)
    return graph.replay


def markdown(results: Sequence[Measurement], where: dict[str, str]) -> str:
    """The results as a table, with the machine above it."""
    lines = [
        "# Gamba: one picture to Gaussians",
        "",
        f"{where['device']}, torch {where['torch']}, CUDA {where['cuda']}, Python {where['python']}; "
        f"maquette {where['maquette']}, commit {where['commit']}, {where['date']}.",
        "",
        "Random weights, one picture that is on the device already. Milliseconds are medians; a graph replays the "
        "network without the making of rays. Peak memory includes the weights.",
        "",
        "| model | precision | Gaussians | ms | as a CUDA graph, ms | peak MiB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for m in results:
        graph = "" if m.graph_ms is None else f"{m.graph_ms:.1f}"
        peak = "" if m.peak_mib is None else f"{m.peak_mib:,.0f}"
        lines.append(f"| {m.model} | {m.precision} | {m.num_gaussians:,} | {m.median_ms:.1f} | {graph} | {peak} |")
    return "\n".join(lines) + "\n"


def write_report(results: Sequence[Measurement], where: dict[str, str], folder: Path, name: str) -> list[Path]:
    """Writes `name`.json and .md into `folder` and returns their paths."""
    paths = [folder / f"{name}{suffix}" for suffix in (".json", ".md")]
    document = {"format": FORMAT, "machine": where, "networks": [dataclasses.asdict(m) for m in results]}
    atomic_write_text(paths[0], json.dumps(document, indent=2) + "\n")
    atomic_write_text(paths[1], markdown(results, where))
    return paths
