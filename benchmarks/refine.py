"""Measures refinement by normals: python benchmarks/refine.py --assets DIR [-o DIR] [--ids ...] [--steps N].

Starts from a ball and takes the true normals of 8 views around every object, turn by turn 45 degrees from above and 30
from below.
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
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.data.assets import open_assets
from maquette.io.atomic import atomic_write_text
from maquette.mesh import Mesh
from maquette.raster.bench_report import machine
from maquette.raster.mesh import rasterize_mesh
from maquette.surface.bench import compare_surfaces, normal_consistency, normalized
from maquette.surface.fields import field_mesh
from maquette.surface.manifold import topology
from maquette.surface.normal_maps import NormalMaps
from maquette.surface.folds import folded
from maquette.surface.refine import RefineOptions, refine

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
AZIMUTHS, ELEVATIONS = [45.0 * i for i in range(8)], [-30.0, 45.0] * 4
SIZE = 256


def true_maps(truth: Mesh) -> NormalMaps:
    """Normals of the triangles, towards the camera, and coverage: means of 2 x 2 pixels."""
    large, small = (Cameras.orbit(AZIMUTHS, ELEVATIONS, height=size, width=size) for size in (2 * SIZE, SIZE))
    fragments = rasterize_mesh(truth.vertices.float(), truth.faces, large)
    seen = (fragments.triangle_id >= 0)[..., None]
    corners = truth.vertices[truth.faces].double()
    crossed = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    ids = fragments.triangle_id.clamp_min(0).long()
    normals, middles = functional.normalize(crossed, dim=1).float()[ids], corners.mean(dim=1).float()[ids]
    towards = ((large.positions[:, None, None] - middles) * normals).sum(dim=-1, keepdim=True)
    shown = torch.cat([torch.where(towards < 0, -normals, normals) * seen, seen.float()], dim=-1)
    pooled = functional.avg_pool2d(shown.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    return NormalMaps(small, functional.normalize(pooled[..., :3], dim=-1), pooled[..., 3].contiguous())


def measure(name: str, truth: Mesh, start: Mesh, steps: int, device: str) -> dict[str, Any]:
    maps = true_maps(truth).to(device)
    clock, cpu_clock = time.perf_counter(), time.process_time()
    made = refine(start, maps, RefineOptions(steps=steps, edge_lengths=(0.02, 0.15)))
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu_clock
    points, faces = made.vertices.double().numpy(), made.faces.numpy()
    return {
        "object": name,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "triangles": made.num_faces,
        "chamfer_before": compare_surfaces(start, truth)[0],
        "chamfer": compare_surfaces(made, truth)[0],
        "normals_before": normal_consistency(start, truth),
        "normals": normal_consistency(made, truth),
        "visible_chamfer_before": compare_surfaces(start, truth, visible=True)[0],
        "visible_chamfer": compare_surfaces(made, truth, visible=True)[0],
        "visible_normals": normal_consistency(made, truth, visible=True),
        "watertight": topology(points, faces).watertight,
        "folded": int(folded(points, faces).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--ids", nargs="+", default=IDS)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    start = field_mesh(lambda points: 0.5 - points.norm(dim=1), resolution=32)
    load = os.getloadavg()[0]
    rows = []
    with open_assets(args.assets, ids=tuple(args.ids)) as listed:
        for asset in listed.assets:
            rows.append(measure(asset.info.id, normalized(asset.read_mesh()), start, args.steps, args.device))
            print(rows[-1], file=sys.stderr)
    where = machine(torch.device(args.device))
    falls = np.mean([row["chamfer_before"] / row["chamfer"] for row in rows])
    lines = [
        f"Refinement of a ball by the normals of 8 views of {SIZE} px, {args.steps} steps, {len(rows)} test objects; "
        f"{where['device']}, commit {where['commit']}, {where['date']}, load average {load:.1f}",
        "",
        "Visible: without what no view from outside sees of the true asset.",
        "",
        "| object | Chamfer before | after | visible | normals before | after | visible | watertight | folded "
        "| seconds | CPU seconds | triangles |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['object']} | {r['chamfer_before']:.4f} | {r['chamfer']:.4f} | {r['visible_chamfer']:.4f} | "
        f"{r['normals_before']:.3f} | {r['normals']:.3f} | {r['visible_normals']:.3f} | "
        f"{'yes' if r['watertight'] else 'no'} | {r['folded']} | {r['seconds']:.0f} | {r['cpu_seconds']:.0f} | "
        f"{r['triangles']:,} |"
        for r in rows
    ]
    normals, visible = (np.mean([row[key] for row in rows]) for key in ("normals", "visible_normals"))
    lines += [
        "",
        f"Chamfer distance falls {falls:.1f} times on average; normal consistency is {normals:.3f}, "
        f"visible {visible:.3f}.",
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    document = {"machine": where, "load_average": load, "steps": args.steps, "objects": rows}
    atomic_write_text(args.output / "refine.json", json.dumps(document, indent=2) + "\n")
    atomic_write_text(args.output / "refine.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
