"""`render_gaussians`: Gaussians and cameras to colour, depth and alpha, on whichever backend fits the device."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError, MissingDependencyError, UnsupportedError
from maquette.gaussians import Gaussians
from maquette.raster.sh import sh_colors

BACKENDS = ("reference", "cpu", "cuda")
"""Valid values of `backend`: plain PyTorch on any device, Numba on the CPU, CUDA C++ on NVIDIA GPUs."""

Rasterize = Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class RenderedGaussians:
    """Images of Gaussians; without a batch, the leading B (and V) dimensions are absent.

    Attributes:
        color: over the background, not clamped, `[B, V, 3, H, W]`.
        depth: view-space z weighted by the blend weights, not divided by alpha, in world units, `[B, V, H, W]`.
        alpha: coverage, 0..1, `[B, V, H, W]`.
    """

    color: Tensor
    depth: Tensor
    alpha: Tensor


def render_gaussians(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    background: Sequence[float] | Tensor = (1.0, 1.0, 1.0),
    scale_modifier: float = 1.0,
    backend: str | None = None,
) -> RenderedGaussians:
    """Renders Gaussians, differentiably in all their parameters (not in the cameras or the background).

    Gaussians with a value that is not finite are left out and get a gradient of zero.

    Args:
        gaussians: `[B, N]`, or one set `[N]`.
        cameras: `[B, V]`; for one set `[V]` or a single camera `[]`.
        background: colour behind everything: three numbers, `[3]` or `[B, V, 3]` (`[V, 3]` for one set).
        scale_modifier: factor on all scales, >= 0.
        backend: one of `BACKENDS`, or None to choose by device: "cuda" on NVIDIA GPUs, "cpu" on the CPU, "reference"
            for float64 and on other devices. "cpu" and "cuda" compute in float32.

    Returns:
        Images with the batch dimensions of the cameras.

    Raises:
        InvalidInputError: batch dimensions, devices, the background or the scale modifier do not fit, or the backend
            is unknown.
        UnsupportedError: the CUDA backend was asked for on a machine without an NVIDIA GPU.
        MissingDependencyError: the CUDA backend needs a package that is not installed.
    """
    batch, views = _batch_and_views(gaussians, cameras)
    if not (math.isfinite(scale_modifier) and scale_modifier >= 0):
        raise InvalidInputError(f"scale_modifier must be a finite number >= 0, got {scale_modifier}")
    name = _choose_backend(gaussians, backend)
    rasterize = _load_backend(name, gaussians.device)
    outer = cameras.batch_shape
    dtype = torch.float64 if name == "reference" and gaussians.means.dtype == torch.float64 else torch.float32
    cameras = cameras.to(dtype).reshape(batch, views)
    gaussians = gaussians.to(dtype)
    if not gaussians.batch_shape:
        gaussians = gaussians.map(lambda value: value[None])
    background = _expand_background(background, cameras, outer)
    if batch * views == 0:
        empty = gaussians.means.new_zeros(*outer, cameras.height, cameras.width)
        return RenderedGaussians(empty[..., None, :, :].expand(*outer, 3, -1, -1), empty, empty)
    world_to_camera, intrinsics = cameras.world_to_camera.detach(), cameras.intrinsics.detach()
    means, quats, scales, opacities, colors = (
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        gaussians.colors,
    )
    if gaussians.sh_degree is not None:  # colours differ per view: every view becomes an item of its own
        colors = sh_colors(colors, means, cameras.positions.detach()).flatten(0, 1)
        means, quats, scales, opacities = (t.repeat_interleave(views, 0) for t in (means, quats, scales, opacities))
        world_to_camera, intrinsics, background = (
            t.flatten(0, 1)[:, None] for t in (world_to_camera, intrinsics, background)
        )
    color, depth, alpha = rasterize(
        means,
        quats,
        scales,
        opacities,
        colors,
        world_to_camera,
        intrinsics,
        cameras.height,
        cameras.width,
        background,
        float(scale_modifier),
    )
    image = (cameras.height, cameras.width)
    return RenderedGaussians(
        color.reshape(*outer, 3, *image), depth.reshape(*outer, *image), alpha.reshape(*outer, *image)
    )


def available_backends() -> tuple[str, ...]:
    """The backends that this machine can run."""
    names = []
    for name in BACKENDS:
        try:
            _load_backend(name, torch.device("cuda" if name == "cuda" else "cpu"))
        except (UnsupportedError, MissingDependencyError):
            continue
        names.append(name)
    return tuple(names)


def _batch_and_views(gaussians: Gaussians, cameras: Cameras) -> tuple[int, int]:
    """B and V, after checking that the Gaussians fit the cameras."""
    items, views = gaussians.batch_shape, cameras.batch_shape
    fits = len(views) <= 1 if not items else len(items) == 1 and len(views) == 2 and items[0] == views[0]
    if not fits:
        raise InvalidInputError(
            f"Gaussians with batch {list(items)} and cameras with batch {list(views)} do not fit: give Gaussians "
            "[B, N] with cameras [B, V], or one set of Gaussians [N] with cameras [V] or a single camera"
        )
    if gaussians.device != cameras.device:
        raise InvalidInputError(
            f"Gaussians are on {gaussians.device}, cameras on {cameras.device}: move both to one device with .to()"
        )
    if items:
        return views[0], views[1]
    return 1, math.prod(views)


def _expand_background(background: Sequence[float] | Tensor, cameras: Cameras, outer: tuple[int, ...]) -> Tensor:
    """The background as `[B, V, 3]` on the cameras' device."""
    try:
        color = torch.as_tensor(background, dtype=cameras.intrinsics.dtype, device=cameras.device).detach()
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"background must be three numbers 0..1 or a tensor, got {background!r}") from error
    if tuple(color.shape) not in {(3,), (*outer, 3)}:
        raise InvalidInputError(
            f"background must be three numbers, [3] or {[*outer, 3]} (one per view), got shape {list(color.shape)}"
        )
    if color.ndim > 1:
        color = color.reshape(*cameras.batch_shape, 3)
    return color.expand(*cameras.batch_shape, 3)


def _choose_backend(gaussians: Gaussians, backend: str | None) -> str:
    """The backend's name, checked."""
    device = gaussians.device.type
    if backend is None:
        if gaussians.means.dtype == torch.float64:
            return "reference"
        return device if device in ("cpu", "cuda") else "reference"
    if backend not in BACKENDS:
        raise InvalidInputError(f"unknown rasterizer backend {backend!r}: valid are {', '.join(BACKENDS)}")
    if backend == "cuda" and not torch.cuda.is_available():
        return backend  # `_load_backend` says what is missing, which matters more than the tensors' device
    if backend != "reference" and device != backend:
        raise InvalidInputError(
            f"backend {backend!r} needs tensors on {backend}, these are on {device}: "
            f"move Gaussians and cameras with .to({backend!r}), or leave backend=None to choose by device"
        )
    return backend


def _load_backend(name: str, device: torch.device) -> Rasterize:
    """The backend's `rasterize`."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            "backend 'cuda' needs an NVIDIA GPU and a CUDA build of torch, and torch.cuda.is_available() is False "
            f"(tensors are on {device}): use backend 'cpu', or install a CUDA build of torch and maquette[cuda]"
        )
    try:
        module = importlib.import_module(f"maquette.raster.{name}")
    except ImportError as error:
        raise MissingDependencyError(
            f"backend {name!r} needs the package {error.name}: run pip install 'maquette[cuda]'"
            if name == "cuda"
            else f"backend {name!r} needs the package {error.name}: run pip install --force-reinstall maquette"
        ) from error
    return cast(Rasterize, module.rasterize)
