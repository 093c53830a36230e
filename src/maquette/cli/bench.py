"""`maquette bench`: speed and memory on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg


@dataclass(frozen=True)
class RasterArgs:
    """Times the Gaussian rasterizer beside gsplat and the official one where installed, on made and real scenes."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to measure; auto takes the GPU when there is one."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("benchmarks/results")
    """Folder for raster_cuda.{json,md,png} or raster_cpu.{json,md,png}."""
    commit: str | None = None
    """Commit to report when the sources are no git checkout."""


@dataclass(frozen=True)
class ScanArgs:
    """Times the selective scan beside mamba-ssm's kernels (on a GPU, if there) or the torch loop (on a CPU)."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to measure; auto takes the GPU when there is one."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("benchmarks/results")
    """Folder for scan_cuda.{json,md,png} or scan_cpu.{json,md,png}."""
    mamba: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of mamba-ssm's compiled selective_scan_cuda*.so; else $MAQUETTE_MAMBA, else an installed one."""
    commit: str | None = None
    """Commit to report when the sources are no git checkout."""


def run_raster(args: RasterArgs) -> int:
    """Measures, prints the table and writes the report."""
    from maquette.device import choose_device
    from maquette.raster.bench import bench_machine
    from maquette.raster.bench_report import machine, markdown, write_report

    device = choose_device(args.device)
    results, notes = bench_machine(device)
    where = machine(device, args.commit)
    print(markdown(results, where, notes))
    for path in write_report(results, where, args.output, f"raster_{device.type}", notes):
        print(path)
    return 0


def run_scan(args: ScanArgs) -> int:
    """Measures, prints the table and writes the report."""
    from maquette.device import choose_device
    from maquette.nn.selective_scan.bench import CPU_CASES, GPU_CASES, bench_case, mamba_module
    from maquette.nn.selective_scan.bench_report import markdown, write_report
    from maquette.raster.bench_report import machine

    device = choose_device(args.device)
    on_gpu = device.type == "cuda"
    mamba = mamba_module(args.mamba) if on_gpu else None
    results = [bench_case(case, device, mamba=mamba) for case in (GPU_CASES if on_gpu else CPU_CASES)]
    where = machine(device, args.commit)
    print(markdown(results, where))
    for path in write_report(results, where, args.output, f"scan_{device.type}"):
        print(path)
    return 0


@dataclass(frozen=True)
class StepArgs:
    """Times one training step of an official LGM, random weights, stage by stage, and the rasterizer's share of it."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to measure; auto takes the GPU when there is one."""
    model: Literal["lgm-big", "lgm-small", "lgm-tiny"] = "lgm-big"
    """Which; lgm-big with eight objects needs a GPU of 80 GB."""
    batch_size: int = 8
    """Objects in a step."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("benchmarks/results")
    """Folder for step_cuda.{json,md} or step_cpu.{json,md}."""
    commit: str | None = None
    """Commit to report when the sources are no git checkout."""


def run_step(args: StepArgs) -> int:
    """Measures, prints the table and writes the report."""
    from maquette.device import choose_device
    from maquette.raster.bench_report import machine
    from maquette.training.bench import bench_step, markdown, recipe_of, write_report

    device = choose_device(args.device)
    params, config = recipe_of(args.model, args.batch_size)
    results, notes = bench_step(device, params, config)
    where = machine(device, args.commit)
    print(markdown(results, where, params, config, notes))
    for path in write_report(results, where, params, config, args.output, f"step_{device.type}", notes):
        print(path)
    return 0


@dataclass(frozen=True)
class GenerateArgs:
    """Times a picture's way to Gaussians, stage by stage: ImageDream with guidance, then LGM big, random weights."""

    steps: int = 30
    """Steps of the sampler."""
    guidance: float = 5.0
    """Strength of guidance."""
    repeats: int = 7
    """Runs that count, after two that do not."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("benchmarks/results")
    """Folder for generate_cuda.{json,md}."""
    commit: str | None = None
    """Commit to report when the sources are no git checkout."""


def run_generate(args: GenerateArgs) -> int:
    """Measures, prints the table and writes the report."""
    import sys

    from maquette.device import choose_device
    from maquette.evaluation.bench import bench_picture_to_gaussians, markdown, write_report
    from maquette.raster.bench_report import machine

    device = choose_device("cuda")  # the official sizes are too much for CPUs
    results = bench_picture_to_gaussians(
        device,
        steps=args.steps,
        guidance=args.guidance,
        repeats=args.repeats,
        report=lambda text: print(text, file=sys.stderr),
    )
    where = machine(device, args.commit)
    print(markdown(results, where, args.steps, args.guidance))
    for path in write_report(args.output, results, where, args.steps, args.guidance):
        print(path)
    return 0


@dataclass(frozen=True)
class GambaArgs:
    """Times Gamba from one picture to Gaussians, random weights: the official sizes (on a GPU) and ours."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to measure; auto takes the GPU when there is one."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("benchmarks/results")
    """Folder for gamba_cuda.{json,md} or gamba_cpu.{json,md}."""
    commit: str | None = None
    """Commit to report when the sources are no git checkout."""


def run_gamba(args: GambaArgs) -> int:
    """Measures, prints the table and writes the report."""
    from maquette.device import choose_device
    from maquette.models.gamba.bench import bench_networks, markdown, write_report
    from maquette.raster.bench_report import machine

    device = choose_device(args.device)
    results = bench_networks(device)
    where = machine(device, args.commit)
    print(markdown(results, where))
    for path in write_report(results, where, args.output, f"gamba_{device.type}"):
        print(path)
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "raster": (RasterArgs, run_raster),
    "step": (StepArgs, run_step),
    "scan": (ScanArgs, run_scan),
    "gamba": (GambaArgs, run_gamba),
    "generate": (GenerateArgs, run_generate),
}
