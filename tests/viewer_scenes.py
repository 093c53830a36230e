"""Objects for the viewer's tests, the reading of its pages without its program, and a headless Chromium."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from maquette.gaussians import Gaussians
from maquette.mesh import Material, Mesh
from raster_scenes import surface_scene

FLAGS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
READY_MS = 120_000


def surface_gaussians(count: int = 20_000, scale: float = 0.006, seed: int = 0) -> Gaussians:
    """A bumpy closed surface in all colours; a third of the Gaussians is nearly transparent."""
    return Gaussians(*(value[0] for value in surface_scene(count=count, scale=scale, seed=seed).values))


def smooth_gaussians(count: int = 20_000, scale: float = 0.006) -> Gaussians:
    """The same surface in colours that change slowly, and from -Z all green, from +Z all red."""
    rough = surface_gaussians(count, scale)
    colors = torch.full((count, 3), 0.15)
    colors[:, 0] += 0.7 * (rough.means[:, 2] > 0)
    colors[:, 1] += 0.7 * (rough.means[:, 2] <= 0)
    return Gaussians(rough.means, rough.quats, rough.scales, rough.opacities.clamp_min(0.7), colors)


def cube_mesh(textured: bool = True) -> Mesh:
    """A cube of side 0.8 with vertices of its own for every side: four textured sides, or coloured vertices."""
    corners, normals, uvs = [], [], []
    for axis in range(3):
        for sign in (1.0, -1.0):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                corner = [0.0, 0.0, 0.0]
                corner[axis], corner[u], corner[v] = 0.4 * sign, 0.4 * a * sign, 0.4 * b
                corners.append(corner)
                normals.append([sign * float(i == axis) for i in range(3)])
                uvs.append([0.5 + 0.5 * a, 0.5 - 0.5 * b])
    faces = [[4 * side + i for i in triangle] for side in range(6) for triangle in ((0, 1, 2), (0, 2, 3))]
    texture = torch.ones(64, 64, 4)
    texture[:32, :, 1:3] = 0.2
    texture[:, :32, 2] = torch.linspace(0, 1, 64)[:, None]
    colors = torch.cat([torch.rand(24, 3, generator=torch.Generator().manual_seed(0)), torch.ones(24, 1)], dim=1)
    plain = Material((0.2, 0.4, 0.8, 1.0))
    return Mesh(
        torch.tensor(corners),
        torch.tensor(faces),
        normals=torch.tensor(normals),
        uvs=torch.tensor(uvs) if textured else None,
        vertex_colors=None if textured else colors,
        materials=(Material(base_color_texture=texture), plain) if textured else (Material(),),
        face_materials=torch.tensor([0] * 8 + [1] * 4) if textured else None,
    )


def facts_of(page: str) -> dict[str, Any]:
    """What a page says about its object."""
    found = re.search(r'<script id="facts" type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    facts: dict[str, Any] = json.loads(found[1])
    return facts


def arrays_of(page: str) -> dict[str, NDArray[Any]]:
    """The arrays of a page, `[rows]` or `[rows, columns]`."""
    found = re.search(r'<script id="payload" type="text/plain">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    stream = np.frombuffer(zlib.decompress(base64.b64decode(found[1])), np.uint8)
    arrays = {}
    for entry in facts_of(page)["arrays"]:
        rows, stride, offset = entry["rows"], entry["stride"], entry["offset"]
        joined = stream[offset : offset + rows * stride].reshape(stride, rows).T.tobytes()
        kind = entry["type"].removesuffix("Array").lower()
        arrays[entry["name"]] = np.frombuffer(joined, kind).reshape(rows, -1)
    return arrays


def gaussians_of(page: str) -> Gaussians:
    """What the browser will show, from the documented format."""
    arrays = {name: torch.from_numpy(value.astype(np.float64)) for name, value in arrays_of(page).items()}
    near, count = facts_of(page)["near"], len(arrays["positions"])
    starts = torch.tensor([*range(0, near, 256), *range(near, count, 256), count])
    chunks = arrays["chunks"].repeat_interleave(starts.diff(), 0)
    codes = arrays_of(page)["rotations"][:, 0].astype(np.int64)
    quats = np.zeros((len(codes), 4))
    for largest in range(4):
        chosen = codes >> 30 == largest
        parts = np.stack([codes >> shift & 1023 for shift in (20, 10, 0)], axis=1)[chosen]
        others = (parts - 511) / 511 / 2**0.5
        rest = np.sqrt(np.clip(1 - (others**2).sum(1), 0, None))
        quats[chosen] = np.insert(others, largest, rest, axis=1)
    return Gaussians(
        chunks[:, 0:3] + chunks[:, 3:6] * arrays["positions"],
        torch.from_numpy(quats),
        (chunks[:, 6:7] + chunks[:, 7:8] * arrays["scales"]).exp(),
        arrays["colors"][:, 3] / 255,
        arrays["colors"][:, :3] / 255 * chunks[:, 8:9],
    ).to(torch.float32)


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2) + 1e-12))


def picture_of(url: str) -> NDArray[np.float64]:
    """A data URL of a PNG as `[H, W, 4]`, 0..1."""
    assert url.startswith("data:image/png;base64,")
    return picture_of_bytes(base64.b64decode(url.split(",")[1]))


def picture_of_bytes(data: bytes) -> NDArray[np.float64]:
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGBA")) / 255


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()
