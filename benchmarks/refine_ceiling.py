"""Ceiling of refinement's normal consistency: python benchmarks/refine_ceiling.py --assets DIR [-o DIR] [--ids ...].

The closed surface of what is left when every view carves away all that it sees to be empty, with the TRUE depth, which
normal maps do not have: once with the 8 views of benchmarks/refine.py, once with 24. A grid of 224 points a side, so
creases are as fine as 0.006 world units.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from refine import AZIMUTHS, ELEVATIONS, IDS, seen_ids
from scipy import ndimage, spatial

from maquette.cameras import Cameras
from maquette.data.assets import open_assets
from maquette.io.atomic import atomic_write_text
from maquette.mesh import Mesh
from maquette.raster.mesh import rasterize_mesh
from maquette.raster.shading import screen_points
from maquette.surface.bench import (
    normal_agreement,
    normal_consistency,
    normalized,
    sample_points,
    seen_by,
    seen_from_outside,
)
from maquette.surface.triangles import marching_cubes
from maquette.surface.volume import clean_volume

POINTS, HALF = 224, 0.62
RINGS = ((0.0, -50.0), (0.0, -10.0), (30.0, 25.0), (30.0, 65.0))


def carved(truth: Mesh, cameras: Cameras) -> Mesh:
    """Surface of all that no camera sees to be empty."""
    depth = rasterize_mesh(truth.vertices.float(), truth.faces, cameras).depth
    surface = sample_points(truth, 1_500_000, 5).numpy()
    axis = np.linspace(-HALF, HALF, POINTS)
    spacing = axis[1] - axis[0]
    touched = np.zeros((POINTS,) * 3, bool)
    touched[tuple(np.rint((surface + HALF) / spacing).astype(int).T)] = True
    near = ndimage.binary_dilation(touched, np.ones((3, 3, 3)), iterations=2)
    labels, count = ndimage.label(~near)
    empty = labels == labels[0, 0, 0]
    for label in range(1, count + 1):
        index = np.argwhere(labels == label)
        if label != labels[0, 0, 0] and free(axis[index[:: max(1, len(index) // 200)]], depth, cameras).mean() > 0.5:
            empty |= labels == label
    field = np.where(empty, np.float32(-3), np.float32(3))
    points = axis[np.argwhere(near)]
    distance = spatial.cKDTree(surface).query(points)[0] / spacing
    field[near] = np.where(free(points, depth, cameras), -1, 1) * distance.clip(1e-4, 3)
    vertices, faces = marching_cubes(clean_volume(field, 0.0), 0.0)
    return Mesh(torch.from_numpy(vertices * spacing - HALF).float(), torch.from_numpy(faces))


def free(points: NDArray[np.float64], depth: torch.Tensor, cameras: Cameras) -> NDArray[np.bool_]:
    """Whether any camera sees past a point, or does not have it in its picture."""
    found = np.zeros(len(points), bool)
    for view in range(len(depth)):
        x, y, z = screen_points(torch.from_numpy(points), cameras[view : view + 1])[0].unbind(-1)
        column, row = x.long(), y.long()
        inside = (x >= 0) & (column < cameras.width) & (y >= 0) & (row < cameras.height)
        shown = depth[view][row.clamp(0, cameras.height - 1), column.clamp(0, cameras.width - 1)]
        found |= ((~inside) | (shown <= 0) | (z < shown)).numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--ids", nargs="+", help="objects to take instead of those of refine.py")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    eight = Cameras.orbit(AZIMUTHS, ELEVATIONS, height=1024, width=1024)
    around = [start + 60.0 * i for start, _ in RINGS for i in range(6)]
    many = Cameras.orbit(around, [height for _, height in RINGS for _ in range(6)], height=768, width=768)
    rows = []
    ids = args.ids or dict.fromkeys((*IDS, *seen_ids(args.assets)))
    with open_assets(args.assets, ids=tuple(ids)) as listed:
        for asset in listed.assets:
            truth = normalized(asset.read_mesh())
            row = {"object": asset.info.id, "itself": normal_consistency(truth, truth)}
            for name, cameras in (("8", eight), ("24", many)):
                made = carved(truth, cameras)
                _, there = normal_agreement(made, truth)
                points, here = normal_agreement(truth, made)
                shown, outside = seen_by(truth, points, eight), seen_from_outside(truth, points)
                row |= {
                    f"all_{name}": float(here.mean() + there.mean()) / 2,
                    f"outside_{name}": float(here[outside].mean() + there.mean()) / 2,
                    f"shown_{name}": float(here[shown].mean() + there.mean()) / 2,
                    "shown_share": float(shown.mean()),
                }
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    atomic_write_text(args.output / "refine_ceiling.json", json.dumps({"objects": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
