"""Measures refinement by normals: python benchmarks/refine.py --assets DIR [-o DIR] [--seen [--every N]] [...].

Starts from a ball, or from marching cubes of the visual hull of the 8 masks, and takes the true normals of 8 views
around every object, turn by turn 45 degrees from above and 30 from below. From the hull, the first stage carves it by
the depth that the normals imply, as `maquette refine` does without a mesh; --no-carve leaves that out.
Ten mixed test objects, among them some that hide half of their surface; with --seen every seventh (or --every N) of the
test objects whose surface the 8 views show (95 %). --start ball starts from a ball.
--collect DIR... makes one table of the results of several runs (one object each, say), without measuring.
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
from numpy.typing import NDArray
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.data.assets import open_assets
from maquette.io import write_mesh
from maquette.io.atomic import atomic_write_text
from maquette.mesh import Mesh
from maquette.raster.bench_report import machine
from maquette.raster.mesh import rasterize_mesh
from maquette.surface.bench import (
    compare_surfaces,
    normal_agreement,
    normal_consistency,
    normalized,
    sample_points,
    seen_by,
    seen_from_outside,
)
from maquette.surface.carve import carved_mesh
from maquette.surface.fields import field_mesh
from maquette.surface.folds import cross_products, folded
from maquette.surface.hull import hull_mesh
from maquette.surface.manifold import topology
from maquette.surface.normal_maps import NormalMaps
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
COARSE = 32
"""Points a side of a coarse start, for comparison."""
SEEN_SHARE, SEEN_EVERY = 0.95, 7
"""Of the surface that the 8 views show, at least, and which of the test objects with that are taken."""
CEILINGS = Path(__file__).parent / "results" / "refine_ceiling.json"
AZIMUTHS, ELEVATIONS = [45.0 * i for i in range(8)], [-30.0, 45.0] * 4


def seen_ids(assets: Path, every: int) -> tuple[str, ...]:
    """Test objects whose surface the views show, thinned out; chosen without a look at any refinement."""
    cameras, found = Cameras.orbit(AZIMUTHS, ELEVATIONS, height=1024, width=1024), []
    with open_assets(assets, split="test") as listed:
        for asset in listed.assets:
            truth = normalized(asset.read_mesh())
            if seen_by(truth, sample_points(truth, 50_000, 0).numpy(), cameras).mean() >= SEEN_SHARE:
                found.append(asset.info.id)
    return tuple(found[::every])


def true_maps(truth: Mesh, size: int) -> NormalMaps:
    """Normals of the triangles, towards the camera, and coverage: means of 2 x 2 pixels."""
    large, small = (Cameras.orbit(AZIMUTHS, ELEVATIONS, height=px, width=px) for px in (2 * size, size))
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


def folded_by_area(points: NDArray[np.float64], faces: NDArray[np.int64]) -> int:
    """Triangles that face away from their corners' normals weighted by areas, where sheets are thin also sound ones."""
    crossed = cross_products(points, faces)
    sums = np.stack([np.bincount(faces.reshape(-1), np.repeat(crossed[:, i], 3)) for i in range(3)], axis=1)
    normals = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-300)
    return int(((crossed[:, None] * normals[faces]).sum(axis=(1, 2)) <= 0).sum())


def measure(
    name: str, truth: Mesh, start: Mesh, maps: NormalMaps, steps: int, keep: Path | None, carve: bool
) -> dict[str, Any]:
    clock, cpu_clock = time.perf_counter(), time.process_time()
    first = carved_mesh(maps) if carve else start
    carve_seconds, carve_cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu_clock
    made = refine(first, maps, RefineOptions(steps=steps, edge_lengths=(0.02, 0.15)))
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu_clock
    print(f"{name}: {seconds:.1f} s, now measuring", file=sys.stderr, flush=True)
    if keep is not None:
        for role, mesh in (("before", start), ("carved", first), ("after", made)):
            write_mesh(keep / f"{name}-{role}.ply", mesh)
    points, faces = made.vertices.double().numpy(), made.faces.numpy()
    _, made_cosines = normal_agreement(made, truth)
    true_points, true_cosines = normal_agreement(truth, made)
    shown = seen_by(truth, true_points, Cameras.orbit(AZIMUTHS, ELEVATIONS, height=1024, width=1024))
    outside = seen_from_outside(truth, true_points)
    return {
        "object": name,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "carve_seconds": carve_seconds,
        "carve_cpu_seconds": carve_cpu_seconds,
        "triangles": made.num_faces,
        "chamfer_before": compare_surfaces(start, truth)[0],
        "chamfer_carved": compare_surfaces(first, truth)[0],
        "chamfer": compare_surfaces(made, truth)[0],
        "chamfer_floor": compare_surfaces(truth, truth)[0],
        "normals_before": normal_consistency(start, truth),
        "normals": (true_cosines.mean() + made_cosines.mean()) / 2,
        "visible_normals": (true_cosines[outside].mean() + made_cosines.mean()) / 2,
        "shown_normals": (true_cosines[shown].mean() + made_cosines.mean()) / 2,
        "shown_share": shown.mean(),
        "normals_at_hidden_points": true_cosines[~shown].mean() if (~shown).any() else None,
        "watertight": topology(points, faces).watertight,
        "folded": int(folded(points, faces).sum()),
        "folded_by_area": folded_by_area(points, faces),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--ids", nargs="+", help="objects to take instead")
    parser.add_argument("--seen", action="store_true", help="objects whose surface the views show")
    parser.add_argument("--every", type=int, default=SEEN_EVERY, help="with --seen: every so many of them")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--start", choices=("hull", "ball"), default="hull")
    parser.add_argument("--no-carve", action="store_true", help="refine the start itself, not the carved hull")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--commit", help="what to report where there is no git checkout")
    parser.add_argument("--meshes", type=Path, help="folder to keep the meshes before and after in")
    parser.add_argument("--collect", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    args.no_carve |= args.start == "ball"
    part = "" if args.every == SEEN_EVERY else f"every{args.every}_"
    name = f"refine_{'seen_' + part if args.seen else ''}{torch.device(args.device).type}"
    if args.collect:
        parts = [json.loads((folder / f"{name}.json").read_text()) for folder in args.collect]
        document = parts[0] | {"objects": [row for part in parts for row in part["objects"]]}
        document["load_average"] = max(part["load_average"] for part in parts)
        for key in ("steps", "size", "start", "carve", "seen", "every"):
            if any(part[key] != document[key] for part in parts):
                raise SystemExit(f"the runs differ in {key}")
        document["commits"] = sorted({part["machine"]["commit"] for part in parts})
    else:
        document = run(args)
    args.output.mkdir(parents=True, exist_ok=True)
    atomic_write_text(args.output / f"{name}.json", json.dumps(document, indent=2) + "\n")
    text = table(document)
    atomic_write_text(args.output / f"{name}.md", text)
    print(text)


def run(args: argparse.Namespace) -> dict[str, Any]:
    load, warm = os.getloadavg()[0], 0.0
    rows: list[dict[str, Any]] = []
    ids = args.ids or (seen_ids(args.assets, args.every) if args.seen else IDS)
    with open_assets(args.assets, ids=tuple(ids)) as listed:
        for asset in listed.assets:
            truth = normalized(asset.read_mesh())
            maps = true_maps(truth, args.size)
            if not rows:
                clock = time.perf_counter()
                refine(carved_mesh(maps, resolution=32), maps.to(args.device), RefineOptions(steps=30, flatten=3))
                warm = time.perf_counter() - clock
                print(f"compiled and tried in {warm:.0f} s", file=sys.stderr, flush=True)
            ball = field_mesh(lambda points: 0.5 - points.norm(dim=1), resolution=32)
            start = hull_mesh(maps) if args.start == "hull" else ball
            row = measure(asset.info.id, truth, start, maps.to(args.device), args.steps, args.meshes, not args.no_carve)
            row["ball_chamfer"] = compare_surfaces(ball, truth)[0]
            row["coarse_chamfer"] = compare_surfaces(hull_mesh(maps, resolution=COARSE), truth)[0]
            rows.append({key: float(v) if isinstance(v, np.floating) else v for key, v in row.items()})
            print(rows[-1], file=sys.stderr, flush=True)
    return {
        "machine": machine(torch.device(args.device), args.commit),
        "load_average": load,
        "steps": args.steps,
        "size": args.size,
        "start": args.start,
        "carve": not args.no_carve,
        "seen": args.seen,
        "every": args.every,
        "warm_up_seconds": warm,
        "objects": rows,
    }


def table(document: dict[str, Any]) -> str:
    where, rows = document["machine"], document["objects"]
    commits = ", ".join(document.get("commits", [where["commit"]]))
    carved = ", first carved by the depth that the normals imply," if document["carve"] else ""
    share = "" if document.get("every") == 1 else f"one in {document.get('every')} "
    chosen = f", {share}of those whose surface the 8 views show ({SEEN_SHARE:.0%} of it)" if document["seen"] else ""
    starts = {"hull": "marching cubes of the visual hull of the 8 masks (72 points a side)", "ball": "a ball"}
    lines = [
        f"Refinement of {starts[document['start']]}{carved} by the true normals of 8 views of {document['size']} px, "
        f"{document['steps']} steps, {len(rows)} test objects{chosen}; {where['device']}, commit {commits}, "
        f"{where['date']}, load average up to {document['load_average']:.0f}",
        "",
        f"Coarse: marching cubes of the same hull with {COARSE} points a side, for comparison.",
        "",
        "Normals: normal consistency. All: the whole surface of the true asset, insides too (the figure of the bar). "
        "Outside: without points of the true surface that none of 64 views from outside sees. Shown: only points of "
        "the true surface that at least one of the 8 given views sees (their share beside it); the points of the "
        "result are always all. Ceiling: the same figure of a surface carved by the true depth of the 8 views on a "
        "grid of 224 points (refine_ceiling.py), whose creases are rounded, so that it can be passed. Floor: Chamfer "
        "distance of two samplings of the true surface. Folded: triangles without height, or that face away from their "
        "corners' normals weighted by angles, which do not depend on how the surface is cut. By area: that face away "
        "from those weighted by area, where the rims of thin sheets count too.",
        "",
        "| object | Chamfer ball | coarse | start | carved | after | floor | normals start | after, all | ceiling "
        "| outside | ceiling | shown | ceiling | share shown | watertight | folded | by area | seconds | CPU seconds "
        "| triangles |",
        "| --- |" + " ---: |" * 14 + " --- |" + " ---: |" * 5,
    ]
    ceilings = CEILINGS if CEILINGS.is_file() else None
    known = {} if ceilings is None else {r["object"]: r for r in json.loads(ceilings.read_text())["objects"]}

    def ceiling(row: dict[str, Any], over: str) -> str:
        value = known.get(row["object"], {}).get(f"{over}_8")
        return "" if value is None else f"{value:.3f}"

    lines += [
        f"| {r['object']} | {r['ball_chamfer']:.4f} | {r['coarse_chamfer']:.4f} | {r['chamfer_before']:.4f} | "
        f"{r['chamfer_carved']:.4f} | "
        f"{r['chamfer']:.4f} | {r['chamfer_floor']:.4f} | {r['normals_before']:.3f} | {r['normals']:.3f} | "
        f"{ceiling(r, 'all')} | {r['visible_normals']:.3f} | {ceiling(r, 'outside')} | "
        f"{r['shown_normals']:.3f} | {ceiling(r, 'shown')} | {r['shown_share']:.2f} | "
        f"{'yes' if r['watertight'] else 'no'} | {r['folded']} | {r.get('folded_by_area', '')} | "
        f"{r['seconds']:.0f} | {r['cpu_seconds']:.0f} | {r['triangles']:,} |"
        for r in rows
    ]
    mean = {key: np.mean([row[key] for row in rows]) for key in ("normals", "visible_normals", "shown_normals")}
    from_ball, from_coarse, from_start = (
        np.array([row[key] / row["chamfer"] for row in rows])
        for key in ("ball_chamfer", "coarse_chamfer", "chamfer_before")
    )
    lines += [
        "",
        f"Chamfer distance is {from_ball.mean():.1f} times (least {from_ball.min():.1f}) under that of the ball, "
        f"{from_coarse.mean():.1f} times (least {from_coarse.min():.1f}) under that of the coarse hull and "
        f"{from_start.mean():.1f} times (least {from_start.min():.1f}) under that of the start. Mean normal "
        f"consistency: {mean['normals']:.3f} all, {mean['visible_normals']:.3f} outside, {mean['shown_normals']:.3f} "
        "shown; "
        f"0.95 is reached by {sum(r['normals'] >= 0.95 for r in rows)} of {len(rows)} objects (all), "
        f"{sum(r['shown_normals'] >= 0.95 for r in rows)} (shown).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
