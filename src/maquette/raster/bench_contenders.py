"""The rasterizers that the benchmark compares, each as one function from Gaussians to its own outputs.

Ours without the argument checks of `render_gaussians`; gsplat on the whole batch; and the official rasterizer as LGM
and Gamba call it, view by view in a loop.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.raster.api import Rasterize

NEAR_Z = 0.2
OFFICIAL = "official loop"
_OFFICIAL_NEAR, _OFFICIAL_FAR = 0.5, 2.5


@dataclass(frozen=True)
class Contender:
    """A rasterizer.

    Attributes:
        name: for the report.
        render: Gaussians `[B, N]` to its own outputs.
        as_images: its outputs as colour `[B, V, 3, H, W]` and, where it has them, depth and alpha `[B, V, H, W]`.
    """

    name: str
    render: Callable[[Gaussians], tuple[Tensor, ...]]
    as_images: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


def gpu_contenders(cameras: Cameras) -> list[Contender]:
    """Ours, then gsplat and the official rasterizer where they are installed."""
    return [own_contender("cuda", cameras), *gsplat_contender(cameras), *official_contender(cameras)]


def cpu_contenders(cameras: Cameras) -> list[Contender]:
    """Ours, and for a single view the reference (which takes minutes for many)."""
    backends = ("cpu", "reference") if cameras.batch_shape == (1, 1) else ("cpu",)
    return [own_contender(backend, cameras) for backend in backends]


def gsplat_contender(cameras: Cameras) -> list[Contender]:
    """gsplat on all views of all items at once; nothing where it is not installed."""
    try:
        gsplat = importlib.import_module("gsplat")
    except ImportError:
        return []
    names = ("width", "height", "near_plane", "packed", "render_mode")
    settings = dict(zip(names, (cameras.width, cameras.height, NEAR_Z, False, "RGB+D"), strict=True))

    def render(g: Gaussians) -> tuple[Tensor, ...]:
        colors, alphas, _ = gsplat.rasterization(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            g.colors,
            cameras.world_to_camera,
            cameras.intrinsics,
            **settings,
        )
        return colors, alphas

    def as_images(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        colors, alphas = outputs
        return colors[..., :3].movedim(-1, -3), colors[..., 3], alphas[..., 0]

    return [Contender(f"gsplat {gsplat.__version__}", render, as_images)]


def own_contender(backend: str, cameras: Cameras) -> Contender:
    """A backend's own `rasterize`, without the argument checks that `render_gaussians` makes before it."""
    black = torch.zeros(*cameras.batch_shape, 3, device=cameras.device)
    rasterize: Rasterize = importlib.import_module(f"maquette.raster.{backend}").rasterize

    def render(g: Gaussians) -> tuple[Tensor, ...]:
        return rasterize(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            g.colors,
            cameras.world_to_camera,
            cameras.intrinsics,
            cameras.height,
            cameras.width,
            black,
            1.0,
        )

    return Contender(backend, render, lambda outputs: outputs)


def official_contender(cameras: Cameras) -> list[Contender]:
    """diff-gaussian-rasterization in a loop over items and views; nothing where it is not installed.

    The fork that LGM and Gamba use gives colour, radii, depth and alpha; of others only the colour is taken.
    """
    try:
        official = importlib.import_module("diff_gaussian_rasterization")
    except ImportError:
        return []
    settings_of = _official_settings(official.GaussianRasterizationSettings, cameras)
    items, views = cameras.batch_shape

    def render(g: Gaussians) -> tuple[Tensor, ...]:
        images = []
        for item in range(items):
            for view in range(views):
                outputs = official.GaussianRasterizer(settings_of(item, view))(
                    means3D=g.means[item],
                    means2D=torch.zeros_like(g.means[item]),
                    shs=None,
                    colors_precomp=g.colors[item],
                    opacities=g.opacities[item, :, None],
                    scales=g.scales[item],
                    rotations=g.quats[item],
                    cov3D_precomp=None,
                )
                images.append((outputs[0], outputs[2], outputs[3]) if len(outputs) == 4 else (outputs[0],))
        size = (cameras.height, cameras.width)
        return tuple(torch.stack(kind).view(items, views, -1, *size) for kind in zip(*images, strict=True))

    def as_images(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (outputs[0], *(output[:, :, 0] for output in outputs[1:]))

    return [Contender(OFFICIAL, render, as_images)]


def _official_settings(settings_class: Any, cameras: Cameras) -> Callable[[int, int], Any]:
    """A function from item and view to the settings of a picture, which are made anew at every call."""
    views, projections, tangents = official_cameras(cameras)
    positions, black = cameras.positions.contiguous(), torch.zeros(3, device=cameras.device)
    newer = {"antialiasing": False} if "antialiasing" in settings_class._fields else {}

    def settings(item: int, view: int) -> Any:
        return settings_class(
            image_height=cameras.height,
            image_width=cameras.width,
            tanfovx=tangents[item][view][0],
            tanfovy=tangents[item][view][1],
            bg=black,
            scale_modifier=1.0,
            viewmatrix=views[item, view],
            projmatrix=projections[item, view],
            sh_degree=0,
            campos=positions[item, view],
            prefiltered=False,
            debug=False,
            **newer,
        )

    return settings


def official_cameras(cameras: Cameras) -> tuple[Tensor, Tensor, list[list[list[float]]]]:
    """Cameras `[B, V]` as the official rasterizer takes them.

    Returns:
        World to camera and world to clip space for row vectors (transposed), `[B, V, 4, 4]` each; and the tangents of
        half the fields of view in x and y, `[B, V, 2]` as numbers of Python.
    """
    focal = torch.stack([cameras.intrinsics[..., 0, 0], cameras.intrinsics[..., 1, 1]], dim=-1)  # [B, V, 2]
    size = focal.new_tensor([cameras.width, cameras.height])
    center = 2 * cameras.intrinsics[..., :2, 2] / size - 1
    clip = torch.zeros_like(cameras.world_to_camera)
    clip[..., 0, 0], clip[..., 1, 1] = (2 * focal / size).unbind(-1)
    clip[..., 0, 2], clip[..., 1, 2] = center.unbind(-1)
    near, far = _OFFICIAL_NEAR, _OFFICIAL_FAR
    clip[..., 2, 2], clip[..., 2, 3], clip[..., 3, 2] = (far + near) / (far - near), -far * near / (far - near), 1.0
    transposed = (cameras.world_to_camera.mT, (clip @ cameras.world_to_camera).mT)
    tangents: list[list[list[float]]] = (size / (2 * focal)).tolist()
    return transposed[0].contiguous(), transposed[1].contiguous(), tangents
