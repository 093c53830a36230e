"""What the rasterizer's options do: the picture and the figures of docs/rasterizer.md.

python benchmarks/rasterizer_options.py -o docs/pictures/rasterizer.png: from the Gaussians that lgm-mini makes of the
views in examples/taxi. Prints how near small pictures are to the mean of a large one, without and with the antialiased
mode, and how many times longer features take than colours alone, on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

import maquette
from maquette.cameras import Cameras
from maquette.contact_sheet import SheetRow, contact_sheet
from maquette.evaluation.metrics import psnr
from maquette.gaussians import Gaussians
from maquette.raster import render_gaussians
from maquette.raster.bench_scenes import BenchScene, make_scene

SMALL, LARGE, SHOWN = 32, 1024, 512
AZIMUTH, ELEVATION = 35.0, 20.0
RUNS = 7
SCENE = BenchScene("features", items=1, views=4, count=16_384, image_size=256, scale=0.016)


def shortest_axes(gaussians: Gaussians, camera: Cameras) -> Tensor:
    """The shortest axis of every Gaussian, turned towards the camera, `[N, 3]`."""
    w, x, y, z = functional.normalize(gaussians.quats, dim=-1).unbind(-1)
    columns = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], dim=-1),
        torch.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], dim=-1),
        torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    axes = torch.stack(columns, dim=1)  # [N, axis, 3]
    axis = axes[torch.arange(len(axes)), gaussians.scales.argmin(dim=1)]
    away = ((gaussians.means - camera.positions[0]) * axis).sum(dim=1, keepdim=True) > 0
    return torch.where(away, -axis, axis)


def picture(gaussians: Gaussians) -> tuple[Tensor, float, float]:
    """The sheet `[3, H, W]`, and PSNR of the small pictures without and with the antialiased mode, in dB."""
    small, large, shown = (
        Cameras.orbit([AZIMUTH], ELEVATION, height=size, width=size) for size in (SMALL, LARGE, SHOWN)
    )
    normals = shortest_axes(gaussians, shown)
    seen = render_gaussians(gaussians, shown, features=normals, depth_mode="expected")
    assert seen.features is not None
    alpha, there = seen.alpha[0], seen.alpha[0] > 0.5
    near, far = float(seen.depth[0][there].min()), float(seen.depth[0][there].max())
    depth = torch.where(there, 1 - 0.85 * (seen.depth[0] - near) / (far - near), 1.0).expand(3, -1, -1)
    directions = functional.normalize(seen.features[0], dim=0)
    normal = torch.where(there, (directions + 1) / 2 * alpha + 1 - alpha, 1.0)
    plain, soft = (render_gaussians(gaussians, small, antialiased=on).color[0].clamp(0, 1) for on in (False, True))
    mean = functional.avg_pool2d(render_gaussians(gaussians, large).color.clamp(0, 1), LARGE // SMALL)[0]
    above = torch.stack([seen.color[0].clamp(0, 1), depth, normal])
    below = functional.interpolate(torch.stack([plain, soft, mean]), scale_factor=7, mode="nearest")
    rows = [
        SheetRow(f"{SHOWN} px", above, ["colour", "expected depth", "normals as features"]),
        SheetRow(f"{SMALL} px", below, ["official", "antialiased", f"mean of {LARGE} px"]),
    ]
    return contact_sheet(rows), float(psnr(plain, mean)), float(psnr(soft, mean))


def times_of_features() -> dict[int, tuple[float, float]]:
    """By number of features, how many times as long a call takes as with colours alone, without and with gradients."""
    gaussians, cameras = make_scene(SCENE, torch.device("cpu"))
    seconds: dict[int, list[tuple[float, float]]] = {0: [], 3: [], 16: []}
    for _ in range(1 + RUNS):  # in turn; the first one compiles
        for count, runs in seconds.items():
            leaves = gaussians.map(lambda value: value.clone().requires_grad_())
            features = torch.rand(1, SCENE.count, count).requires_grad_() if count else None
            start = time.perf_counter()
            result = render_gaussians(leaves, cameras, features=features)
            middle = time.perf_counter()
            total = result.color.sum() + (0.0 if result.features is None else result.features.sum())
            total.backward()
            runs.append((middle - start, time.perf_counter() - start))
    medians = {c: [statistics.median(v) for v in zip(*runs[1:], strict=True)] for c, runs in seconds.items()}
    return {c: (m[0] / medians[0][0], m[1] / medians[0][1]) for c, m in medians.items() if c}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    views = maquette.read_views(Path(__file__).parent.parent / "examples" / "taxi")
    sheet, plain, soft = picture(maquette.load("lgm-mini", "cpu")(views))
    image = Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).numpy().astype(np.uint8))
    image.quantize(128).save(args.output, optimize=True)
    print(f"{SMALL} px against the mean of {LARGE} px: {plain:.1f} dB, antialiased {soft:.1f} dB")
    for count, (forward, total) in times_of_features().items():
        print(f"{count} features: {forward:.1f} times colours alone, with gradients {total:.1f} times")


if __name__ == "__main__":
    main()
