"""Picture of refinement: python benchmarks/refine_picture.py --assets DIR --meshes DIR... --ids ID... -o FILE.

One row an object: start, result and truth, shaded flat, then the normals of result and truth. The meshes are those that
benchmarks/refine.py kept with --meshes. The view is none of the eight that refinement was given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.contact_sheet import SheetRow, contact_sheet
from maquette.data.assets import open_assets
from maquette.io import read_mesh, write_image
from maquette.mesh import Mesh
from maquette.raster.mesh import rasterize_mesh
from maquette.surface.bench import normalized

AZIMUTH, ELEVATION, SIZE = 22.5, 20.0, 300
LIGHT = (0.35, 0.8, 0.5)


def pictures(mesh: Mesh) -> tuple[Tensor, Tensor]:
    """Shaded flat, and normals towards the camera, `[3, H, W]` on white."""
    camera = Cameras.orbit([AZIMUTH], [ELEVATION], height=2 * SIZE, width=2 * SIZE)
    vertices = mesh.vertices.float()
    fragments = rasterize_mesh(vertices, mesh.faces, camera)
    ids = fragments.triangle_id[0].clamp_min(0).long()
    corners = vertices[mesh.faces].double()
    crossed = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = functional.normalize(crossed, dim=1)[ids]
    towards = camera.positions[0].double() - corners.mean(dim=1)[ids]
    normals = torch.where((normals * towards).sum(dim=-1, keepdim=True) < 0, -normals, normals)
    light = functional.normalize(normals.new_tensor(LIGHT), dim=0)
    shade = (0.25 + 0.65 * (normals @ light).clamp_min(0))[..., None].expand(-1, -1, 3)
    seen = (fragments.triangle_id[0] >= 0)[..., None]
    pair = torch.stack([torch.where(seen, shown, 1.0) for shown in (shade, (normals + 1) / 2)])
    small = functional.avg_pool2d(pair.permute(0, 3, 1, 2), 2).float()
    return small[0], small[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--meshes", type=Path, nargs="+", required=True)
    parser.add_argument("--ids", nargs="+", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    rows = []
    with open_assets(args.assets, ids=tuple(args.ids)) as listed:
        for asset in listed.assets:
            name = asset.info.id
            before, after = (
                read_mesh(next(folder / f for folder in args.meshes if (folder / f).exists()))
                for f in (f"{name}-before.ply", f"{name}-after.ply")
            )
            start, (made, made_normals) = pictures(before)[0], pictures(after)
            true, true_normals = pictures(normalized(asset.read_mesh()))
            labels = ["start", "refined", "truth", "normals, refined", "normals, truth"]
            rows.append(SheetRow(name, torch.stack([start, made, true, made_normals, true_normals]), labels))
    write_image(args.output, contact_sheet(rows, tile_size=SIZE))


if __name__ == "__main__":
    main()
