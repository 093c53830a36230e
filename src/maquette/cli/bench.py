"""`maquette bench`: speed and memory on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg


@dataclass(frozen=True)
class RasterArgs:
    """Times the Gaussian rasterizer beside other backends that are installed (gsplat on a GPU)."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to measure; auto takes the GPU when there is one."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("benchmarks/results")
    """Folder for raster_cuda.{json,md,png} or raster_cpu.{json,md,png}."""
    commit: str | None = None
    """Commit to report when the sources are no git checkout."""


def run_raster(args: RasterArgs) -> int:
    """Measures, prints the table and writes the report."""
    import torch

    from maquette.errors import UnsupportedError
    from maquette.raster.bench import CPU_SCENES, GPU_SCENES, bench_scene
    from maquette.raster.bench_report import machine, markdown, write_report

    has_gpu = torch.cuda.is_available()
    if args.device == "cuda" and not has_gpu:
        raise UnsupportedError("--device cuda needs an NVIDIA GPU and a CUDA build of torch: try --device cpu")
    on_gpu = has_gpu if args.device == "auto" else args.device == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    results = [bench_scene(scene, device) for scene in (GPU_SCENES if on_gpu else CPU_SCENES)]
    where = machine(device, args.commit)
    print(markdown(results, where))
    for path in write_report(results, where, args.output, f"raster_{device.type}"):
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

    import torch

    from maquette.errors import UnsupportedError
    from maquette.models.mvdream.bench import bench_picture_to_gaussians, markdown, write_report
    from maquette.raster.bench_report import machine

    if not torch.cuda.is_available():
        raise UnsupportedError("the official sizes need an NVIDIA GPU with 16 GB and a CUDA build of torch")
    device = torch.device("cuda", torch.cuda.current_device())
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


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "raster": (RasterArgs, run_raster),
    "generate": (GenerateArgs, run_generate),
}
