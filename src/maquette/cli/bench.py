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


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {"raster": (RasterArgs, run_raster)}
