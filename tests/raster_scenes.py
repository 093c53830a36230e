"""Scenes for the Gaussian rasterizer's tests, and the official goldens as arguments of `rasterize`."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maquette.raster.api import Rasterize

GOLDENS = Path(__file__).parent / "goldens" / "lgm" / "raster.npz"
NAMES = ("means", "quats", "scales", "opacities", "colors")
FAST_BACKENDS = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ALL_BACKENDS = ["reference", *FAST_BACKENDS]


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def backend_function(backend: str) -> Rasterize:
    function: Rasterize = importlib.import_module(f"maquette.raster.{backend}").rasterize
    return function


@dataclass
class Scene:
    """Arguments of `rasterize`; `values` holds the five differentiable ones in the order of NAMES."""

    values: list[Tensor]
    world_to_camera: Tensor
    intrinsics: Tensor
    height: int
    width: int
    background: Tensor
    scale_modifier: float = 1.0

    def to(self, target: str | torch.dtype) -> Scene:
        return Scene(
            [value.detach().to(target) for value in self.values],
            self.world_to_camera.to(target),
            self.intrinsics.to(target),
            self.height,
            self.width,
            self.background.to(target),
            self.scale_modifier,
        )

    def replace(self, **changes: Tensor) -> Scene:
        """The same scene with some of the five values changed."""
        values = [changes.get(name, value) for name, value in zip(NAMES, self.values, strict=True)]
        return Scene(
            values,
            self.world_to_camera,
            self.intrinsics,
            self.height,
            self.width,
            self.background,
            self.scale_modifier,
        )

    def subset(self, index: Tensor) -> Scene:
        """Only (or in another order) the Gaussians `index`."""
        return self.replace(
            **{name: value[:, index.to(value.device)] for name, value in zip(NAMES, self.values, strict=True)}
        )

    def render(self, backend: str, values: list[Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return backend_function(backend)(
            *(self.values if values is None else values),
            self.world_to_camera,
            self.intrinsics,
            self.height,
            self.width,
            self.background,
            self.scale_modifier,
        )

    def gradients(self, backend: str, upstream: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and gradients of the five values."""
        values = [value.detach().clone().requires_grad_() for value in self.values]
        outputs = self.render(backend, values)
        torch.autograd.backward(outputs, [g.to(outputs[0]) for g in upstream])
        grads = [torch.zeros_like(v) if v.grad is None else v.grad for v in values]
        return [o.detach() for o in outputs], grads

    def upstream(self, seed: int = 0) -> list[Tensor]:
        """Random gradients of colour, depth and alpha."""
        generator = torch.Generator().manual_seed(seed)
        batch, views = self.world_to_camera.shape[:2]
        image = (batch, views, self.height, self.width)
        shapes = [(batch, views, 3, self.height, self.width), image, image]
        return [torch.randn(shape, generator=generator) for shape in shapes]


def pinhole(focal_x: float, focal_y: float, center_x: float, center_y: float) -> Tensor:
    return torch.tensor([[focal_x, 0.0, center_x], [0.0, focal_y, center_y], [0.0, 0.0, 1.0]])


def orbit_view(azimuth: float, elevation: float, radius: float = 1.5) -> Tensor:
    """World to camera (OpenCV axes) of a camera that looks at the origin; angles in radians."""
    away = torch.tensor(
        [math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    )
    right = torch.linalg.cross(-away, torch.tensor([0.0, 1.0, 0.0]))
    right = right / right.norm()
    view = torch.eye(4)
    view[:3, :3] = torch.stack([right, torch.linalg.cross(-away, right), -away])
    view[2, 3] = radius
    return view


def surface_scene(
    *,
    batch: int = 1,
    views: int = 2,
    count: int = 300,
    height: int = 48,
    width: int = 48,
    scale: float = 0.03,
    seed: int = 0,
    faint_share: float = 0.3,
) -> Scene:
    """Gaussians on a bumpy closed surface, some nearly transparent, as feed-forward networks emit them."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(batch, count, 3, generator=generator), dim=-1)
    radius = 0.4 + 0.1 * torch.sin(9 * directions[..., :1]) * torch.cos(5 * directions[..., 1:2])
    opacities = torch.sigmoid(2 * torch.randn(batch, count, generator=generator))
    faint = torch.rand(batch, count, generator=generator) < faint_share
    values = [
        directions * radius + 0.01 * torch.randn(batch, count, 3, generator=generator),
        torch.nn.functional.normalize(torch.randn(batch, count, 4, generator=generator), dim=-1),
        scale * torch.exp(0.5 * torch.randn(batch, count, 3, generator=generator)),
        torch.where(faint, torch.full_like(opacities, 0.002), opacities),
        torch.rand(batch, count, 3, generator=generator),
    ]
    cameras, intrinsics = [], []
    for b in range(batch):
        for v in range(views):
            cameras.append(orbit_view(2 * math.pi * v / views + 0.3 * b, 0.2 * v - 0.3))
            focal = 0.5 * height / math.tan(math.radians(49.1 + 3 * v) / 2)
            intrinsics.append(pinhole(focal, focal * (1 + 0.02 * b), width / 2 + v, height / 2 - 2 * b))
    return Scene(
        values,
        torch.stack(cameras).reshape(batch, views, 4, 4),
        torch.stack(intrinsics).reshape(batch, views, 3, 3),
        height,
        width,
        torch.rand(batch, views, 3, generator=generator),
    )


def wild_scene(seed: int = 0, height: int = 37, width: int = 50) -> Scene:
    """Centres behind, beside and at the camera, huge, flat and tiny Gaussians, quaternions of any length."""
    scene = surface_scene(batch=2, views=2, count=120, height=height, width=width, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    means, quats, scales, opacities, _ = (value.clone() for value in scene.values)
    means[:, :40] = torch.randn(2, 40, 3, generator=generator) * 1.5
    quats = quats * torch.exp(0.3 * torch.randn(2, 120, 1, generator=generator))
    scales[:, 40:50] *= 8
    scales[:, 50:60, 0] = 0.0
    scales[:, 60:65] = 0.0
    opacities[:, 65:75] = 1.0
    opacities[:, 75:80] = 0.0
    result = scene.replace(means=means, quats=quats, scales=scales, opacities=opacities)
    result.scale_modifier = 0.7
    return result


def smooth_scene() -> Scene:
    """Few Gaussians, float64, away from every threshold, so that finite differences make sense.

    The Gaussians are so wide that the whole image sees more than 1/255 of each, and faint enough that no pixel
    reaches the clamp at 0.99 or stops early.
    """
    generator = torch.Generator().manual_seed(3)
    count, height, width = 6, 9, 13
    values = [
        0.15 * torch.randn(1, count, 3, generator=generator, dtype=torch.float64),
        torch.randn(1, count, 4, generator=generator, dtype=torch.float64),
        0.55 + 0.3 * torch.rand(1, count, 3, generator=generator, dtype=torch.float64),
        0.3 + 0.3 * torch.rand(1, count, generator=generator, dtype=torch.float64),
        torch.rand(1, count, 3, generator=generator, dtype=torch.float64),
    ]
    values[1] = torch.nn.functional.normalize(values[1], dim=-1) * 1.1
    views = torch.stack([orbit_view(0.3, 0.2, 2.0), orbit_view(2.0, -0.4, 2.2)])[None].double()
    intrinsics = torch.stack([pinhole(14.0, 13.0, 6.0, 5.0), pinhole(13.0, 14.0, 7.0, 4.0)])[None].double()
    background = torch.rand(1, 2, 3, generator=generator, dtype=torch.float64)
    return Scene(values, views, intrinsics, height, width, background, 0.8)


@dataclass
class Golden:
    """One scene that the official rasterizer rendered and differentiated."""

    scene: Scene
    outputs: list[Tensor]
    upstream: list[Tensor]
    gradients: list[Tensor]
    radii: Tensor
    means2d: Tensor
    conics: Tensor
    depths: Tensor


def golden(name: str) -> Golden:
    """The official scene "plain", "soft" or "odd"."""
    with np.load(GOLDENS) as data:
        item = {key.removeprefix(f"{name}_"): torch.from_numpy(data[key]) for key in data if key.startswith(f"{name}_")}
    width, height, tan_x, tan_y, modifier = (float(value) for value in item["wh_tanx_tany_mod"])
    focal_x, focal_y = (np.float32(size) / (2 * np.float32(tan)) for size, tan in ((width, tan_x), (height, tan_y)))
    intrinsics = pinhole(float(focal_x), float(focal_y), width / 2, height / 2)
    official = {"means": "means", "quats": "rotations", "scales": "scales", "opacities": "opacity", "colors": "colors"}

    def batched(key: str) -> Tensor:
        value = item[key]
        return value.squeeze(-1)[None] if key.endswith("opacity") else value[None]

    scene = Scene(
        [batched(official[key]) for key in NAMES],
        item["viewmatrix"].T[None, None],
        intrinsics[None, None],
        int(height),
        int(width),
        item["bg"][None, None],
        modifier,
    )
    gradients = [batched(f"grad_{official[key]}") for key in NAMES]
    # The official backward leaves out the factor scale_modifier: its gradient is that of the modified scale.
    gradients[2] = gradients[2] * modifier
    return Golden(
        scene,
        [item["color"][None, None], item["depth"][None], item["alpha"][None]],
        [item["upstream_color"][None, None], item["upstream_depth"][None], item["upstream_alpha"][None]],
        gradients,
        item["radii"],
        item["p_xy"],
        item["p_conic_opacity"][:, :3],
        item["p_depth"],
    )
