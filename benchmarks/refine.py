"""Measures refinement by normals: python benchmarks/refine.py --data DIR --assets DIR [-o DIR] [--ids ...] [--steps N].

Starts from a ball and takes the true normal maps of the 8 target views of every object. DIR of --data is a folder that
`maquette data render ASSETS --split test --plan standard` wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maquette.data.assets import open_assets
from maquette.io.atomic import atomic_write_text
from maquette.mesh import Mesh
from maquette.raster.bench_report import machine
from maquette.surface.bench import compare_surfaces, normal_consistency, normalized
from maquette.surface.fields import field_mesh
from maquette.surface.manifold import topology
from maquette.surface.normal_maps import read_normal_maps
from maquette.surface.refine import RefineOptions, folded, refine

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
    "kenney-2019-furniture_pack-loungechair",
)
TARGET_FRAMES = list(range(4, 12))


def measure(name: str, data: Path, truth: Mesh, start: Mesh, steps: int) -> dict[str, Any]:
    maps = read_normal_maps(data / name, frames=TARGET_FRAMES)
    clock = time.perf_counter()
    made = refine(start, maps, RefineOptions(steps=steps, edge_lengths=(0.015, 0.15)))
    seconds = time.perf_counter() - clock
    points, faces = made.vertices.double().numpy(), made.faces.numpy()
    return {
        "object": name,
        "seconds": seconds,
        "triangles": made.num_faces,
        "chamfer_before": compare_surfaces(start, truth)[0],
        "chamfer": compare_surfaces(made, truth)[0],
        "normals_before": normal_consistency(start, truth),
        "normals": normal_consistency(made, truth),
        "watertight": topology(points, faces).watertight,
        "folded": int(folded(points, faces).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--ids", nargs="+", default=IDS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    start = field_mesh(lambda points: 0.5 - points.norm(dim=1), resolution=32)
    load = os.getloadavg()[0]
    rows = []
    with open_assets(args.assets, ids=tuple(args.ids)) as listed:
        for asset in listed.assets:
            rows.append(measure(asset.info.id, args.data, normalized(asset.read_mesh()), start, args.steps))
            print(rows[-1], file=sys.stderr)
    where = machine(torch.device("cpu"))
    falls = np.mean([row["chamfer_before"] / row["chamfer"] for row in rows])
    lines = [
        f"Refinement of a ball by the normals of 8 views of 256 px, {args.steps} steps, {len(rows)} test objects; "
        f"{where['device']}, commit {where['commit']}, {where['date']}, load average {load:.1f}",
        "",
        "| object | Chamfer before | after | normals before | after | watertight | folded | seconds | triangles |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['object']} | {r['chamfer_before']:.4f} | {r['chamfer']:.4f} | {r['normals_before']:.3f} | "
        f"{r['normals']:.3f} | {'yes' if r['watertight'] else 'no'} | {r['folded']} | {r['seconds']:.0f} | "
        f"{r['triangles']:,} |"
        for r in rows
    ]
    lines += ["", f"Chamfer distance falls {falls:.1f} times on average."]
    args.output.mkdir(parents=True, exist_ok=True)
    document = {"machine": where, "load_average": load, "steps": args.steps, "objects": rows}
    atomic_write_text(args.output / "refine.json", json.dumps(document, indent=2) + "\n")
    atomic_write_text(args.output / "refine.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
