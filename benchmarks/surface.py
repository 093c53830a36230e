"""Measures the ways from Gaussians to a mesh: python benchmarks/surface.py --data DIR --assets DIR [--ids ...].

DIR of --data is a folder that `maquette data render ASSETS --split test --plan standard` wrote.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import warnings
from importlib import resources
from pathlib import Path

import torch

import maquette
from maquette.data.dataset import RenderedDataset
from maquette.io.atomic import atomic_write_text
from maquette.raster.bench_report import machine
from maquette.surface import SurfaceOptions, gaussians_to_asset
from maquette.surface.bench import bench_surfaces, means
from maquette.surface.extract import extract_density
from maquette.surface.fusion import fuse_gaussians

IDS = (
    "aws-house-shoerack_01",
    "gazebo-construction_barrel",
    "gazebo-cordless_drill",
    "gazebo-postbox",
    "kaykit-adventurers-spellbook_closed",
    "kaykit-city-car_sedan",
    "kaykit-furniture-cactus_medium_a",
    "kaykit-medieval-building_tavern_blue",
    "kaykit-medieval-mountain_a",
    "kaykit-medieval-wheelbarrow",
    "kenney-2019-castle_kit-siegecatapult",
    "kenney-2019-furniture_pack-loungechair",
)
METHODS = {
    "density": lambda gaussians: extract_density(gaussians, level=0.25),
    "fusion": fuse_gaussians,
    "fast": lambda gaussians: gaussians_to_asset(gaussians, SurfaceOptions(fast=True, measure=False)).mesh,
    "full": lambda gaussians: gaussians_to_asset(gaussians, SurfaceOptions(measure=False)).mesh,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--ids", nargs="+", default=IDS)
    parser.add_argument("--step", type=int, help="every Nth object of DATA instead of --ids; 1 for all", metavar="N")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".* expects cameras")
    load = os.getloadavg()[0]
    scores = []
    ids = args.ids
    if args.step:
        ids = [info.id for info in RenderedDataset.load(args.data).objects][:: args.step]
    methods = {name: METHODS[name] for name in args.methods}
    network = maquette.load("lgm-mini", device=args.device)
    for score in bench_surfaces(args.data, args.assets, network, methods, ids):
        print(score, file=sys.stderr)
        scores.append(score)
    summary = {name: means(scores, name) for name in methods}
    where = machine(torch.device(args.device))
    weights = hashlib.sha256(
        resources.files("maquette.weights").joinpath("lgm-mini.safetensors").read_bytes()
    ).hexdigest()
    document = {
        "machine": where,
        "weights_sha256": weights,
        "load_average": load,
        "mean": summary,
        "objects": [dataclasses.asdict(score) for score in scores],
    }
    lines = [
        f"Surfaces of lgm-mini's Gaussians, {len(ids)} test objects; {where['device']}, commit {where['commit']}, "
        f"{where['date']}, load average {load:.1f}; weights sha256 {weights[:16]}",
        "",
        "Visible: without what no view from outside sees of the true asset.",
        "",
        "| method | Chamfer | F 0.01 | F 0.05 | visible Chamfer | F 0.01 | F 0.05 | PSNR dB | limit dB | watertight "
        "| seconds | triangles |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {m['chamfer']:.4f} | {m['f_0.01']:.3f} | {m['f_0.05']:.3f} | "
        f"{m['visible_chamfer']:.4f} | {m['visible_f_0.01']:.3f} | {m['visible_f_0.05']:.3f} | {m['psnr']:.2f} | "
        f"{m['psnr_limit']:.2f} | {m['watertight']} of {m['objects']} | {m['seconds']:.2f} | {m['triangles']:,} |"
        for name, m in summary.items()
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    atomic_write_text(args.output / "surface.json", json.dumps(document, indent=2) + "\n")
    atomic_write_text(args.output / "surface.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
