"""Times Gaussians to a textured GLB: python benchmarks/convert.py [--views DIR...] [--device D] [-o DIR].

Gaussians of lgm-mini from the views of a folder with transforms.json: once the 16,384 that cover most (opacity times
the two larger scales), once all that are not faint. Each with --fast and with all steps, as `maquette convert` does,
the GLB written too, after one run of each kind that is not counted (compilers).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import maquette
from maquette.gaussians import Gaussians
from maquette.io import read_views, write_mesh
from maquette.io.atomic import atomic_write_text
from maquette.raster.bench_report import machine
from maquette.surface import SurfaceOptions, gaussians_to_asset

FEW, FAINT = 16_384, 0.005


def few(gaussians: Gaussians, count: int) -> Gaussians:
    """Those that cover most."""
    larger = gaussians.scales.sort(dim=-1).values[:, 1:].prod(dim=-1)
    most = torch.zeros_like(gaussians.opacities, dtype=torch.bool)
    most[(gaussians.opacities * larger).topk(min(count, gaussians.num_gaussians)).indices] = True
    return gaussians.select(most)


def timed(gaussians: Gaussians, fast: bool, folder: Path) -> dict[str, Any]:
    device = gaussians.device
    clock, cpu_clock = time.perf_counter(), time.process_time()
    made = gaussians_to_asset(gaussians, SurfaceOptions(fast=fast))
    write = time.perf_counter()
    write_mesh(folder / "made.glb", made.mesh)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    end = time.perf_counter()
    return {
        "seconds": end - clock,
        "cpu_seconds": time.process_time() - cpu_clock,
        "stages": made.report.seconds | {"write": end - write},
        "psnr_db": made.report.psnr_db,
        "triangles": made.report.triangles,
        "watertight": made.report.watertight,
        "bytes": (folder / "made.glb").stat().st_size,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    load, rows = os.getloadavg()[0], []
    network = maquette.load("lgm-mini", device=args.device)
    with tempfile.TemporaryDirectory() as folder:
        warm = time.perf_counter()
        for index, views in enumerate(args.views):
            with torch.inference_mode():
                made = network(read_views(views))
            solid = made.select(made.opacities >= FAINT)
            sets = {"few": few(solid, FEW), "all": solid}
            sets = {name: sets[name] for name in args.sets}
            if index == 0:
                for fast in (True, False):
                    timed(next(iter(sets.values())), fast, Path(folder))
                warm = time.perf_counter() - warm
            for name, gaussians in sets.items():
                for fast in (True, False):
                    runs = [timed(gaussians, fast, Path(folder)) for _ in range(args.repeats)]
                    middle = sorted(runs, key=lambda r: r["seconds"])[len(runs) // 2]
                    rows.append(
                        {"object": Path(views).name, "set": name, "gaussians": gaussians.num_gaussians, "fast": fast}
                        | middle
                        | {"all_seconds": [r["seconds"] for r in runs]}
                    )
                    print(rows[-1], flush=True)
    return {
        "machine": machine(torch.device(args.device), args.commit),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": load,
        "repeats": args.repeats,
        "warm_up_seconds": warm,
        "rows": rows,
    }


def table(document: dict[str, Any]) -> str:
    where = document["machine"]
    lines = [
        f"Gaussians of lgm-mini to a textured GLB, median of {document['repeats']} runs; {where['device']}, "
        f"{document['cores']} CPU cores, commit {where['commit']}, {where['date']}, load average "
        f"{document['load_average']:.1f}; the first run of each kind ({document['warm_up_seconds']:.0f} s together, "
        "with compiling) does not count",
        "",
        "| object | Gaussians | way | seconds | most | CPU s | triangles | PSNR dB | watertight | longest stages, s |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for r in document["rows"]:
        longest = sorted(r["stages"].items(), key=lambda item: -item[1])[:5]
        stages = ", ".join(f"{name.removeprefix('mesh: ')} {value:.2f}" for name, value in longest)
        lines.append(
            f"| {r['object']} | {r['gaussians']:,} | {'fast' if r['fast'] else 'full'} | {r['seconds']:.2f} | "
            f"{max(r['all_seconds']):.2f} | {r['cpu_seconds']:.1f} | {r['triangles']:,} | {r['psnr_db']:.2f} | "
            f"{'yes' if r['watertight'] else 'no'} | "
            f"{stages} |"
        )
    lines.append("")
    for name, label in (("few", f"{FEW:,} Gaussians"), ("all", "all Gaussians")):
        for fast in (True, False):
            seconds = [r["seconds"] for r in document["rows"] if r["set"] == name and r["fast"] == fast]
            if seconds:
                lines.append(f"{label}, {'fast' if fast else 'full'}: mean {statistics.mean(seconds):.2f} s.  ")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=Path, nargs="+", default=[Path("examples/taxi"), Path("examples/cactus")])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sets", nargs="+", choices=("few", "all"), default=["few", "all"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--commit", help="what to report where there is no git checkout")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".* expects cameras")
    document = run(args)
    args.output.mkdir(parents=True, exist_ok=True)
    name = f"convert_{torch.device(args.device).type}"
    atomic_write_text(args.output / f"{name}.json", json.dumps(document, indent=2) + "\n")
    atomic_write_text(args.output / f"{name}.md", table(document))
    print(table(document))


if __name__ == "__main__":
    main()
