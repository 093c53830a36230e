"""`render_gaussians`: Gaussians and cameras to pictures, depth, alpha and features, on the backend of the device."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError, MissingDependencyError, UnsupportedError
from maquette.gaussians import Gaussians
from maquette.raster.crop import patches_of
from maquette.raster.sh import sh_colors

BACKENDS = ("reference", "cpu", "cuda")
"""Valid values of `backend`: plain PyTorch on any device, Numba on the CPU, CUDA C++ on NVIDIA GPUs."""

DepthMode = Literal["accumulated", "expected"]
"""What the depth image holds: the sum of z times blend weight, or that divided by alpha."""

Rasterize = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class RenderedGaussians:
    """Images of Gaussians; without a batch, the leading B (and V) dimensions are absent.

    Attributes:
        color: over the background, not clamped, `[B, V, 3, H, W]`.
        depth: view-space z weighted by the blend weights, in world units, `[B, V, H, W]`; with `depth_mode` "expected"
            divided by alpha, and 0 where alpha is 0.
        alpha: coverage, 0..1, `[B, V, H, W]`.
        features: features weighted by the blend weights, 0 where nothing is seen, not divided by alpha,
            `[B, V, C, H, W]`; None where none were given.
    """

    color: Tensor
    depth: Tensor
    alpha: Tensor
    features: Tensor | None = None


def render_gaussians(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    features: Tensor | None = None,
    background: Sequence[float] | Tensor = (1.0, 1.0, 1.0),
    scale_modifier: float = 1.0,
    antialiased: bool = False,
    depth_mode: DepthMode = "accumulated",
    crop: Sequence[int] | Tensor | None = None,
    backend: str | None = None,
) -> RenderedGaussians:
    """Renders Gaussians, differentiably in all their parameters and features (not in the cameras or the background).

    Gaussians with a value that is not finite (features included) are left out and get a gradient of zero.

    Args:
        gaussians: `[B, N]`, or one set `[N]`. Spherical harmonics of degree 0..3 are evaluated for every view.
        cameras: `[B, V]`; for one set `[V]` or a single camera `[]`.
        features: any C >= 1 values per Gaussian (normals, labels, embeddings), `[B, N, C]`, or `[N, C]` for one set.
        background: colour behind everything: three numbers, `[3]` or `[B, V, 3]` (`[V, 3]` for one set).
        scale_modifier: factor on all scales, >= 0.
        antialiased: multiplies each opacity by the root of the ratio of the determinants of the projected covariance
            without and with the 0.3 px^2 that are added to both variances, so that Gaussians smaller than a pixel
            become fainter instead of larger. For Gaussians that were trained so; False is the official renderer.
        depth_mode: "accumulated" or "expected" (divided by alpha), see `RenderedGaussians.depth`.
        crop: renders only the patch (x, y, width, height) in pixels of the whole image, or a patch per view as integers
            `[B, V, 4]` (`[V, 4]` for one set), all of one size. Pixels and gradients are those of the whole image.
            Patches that start at multiples of 16 cost least.
        backend: one of `BACKENDS`, or None to choose by device: "cuda" on NVIDIA GPUs, "cpu" on the CPU, "reference"
            for float64 and on other devices. "cpu" and "cuda" compute in float32.

    Returns:
        Images with the batch dimensions of the cameras, of the crop's size if there is one.

    Raises:
        InvalidInputError: batch dimensions, devices, the features, the background, the scale modifier or the crop do
            not fit, or the depth mode or the backend is unknown.
        UnsupportedError: the CUDA backend was asked for on a machine without an NVIDIA GPU.
        MissingDependencyError: the CUDA backend needs a package that is not installed.
    """
    batch, views = _batch_and_views(gaussians, cameras)
    if not (math.isfinite(scale_modifier) and scale_modifier >= 0):
        raise InvalidInputError(f"scale_modifier must be a finite number >= 0, got {scale_modifier}")
    if depth_mode not in get_args(DepthMode):
        raise InvalidInputError(f"unknown depth_mode {depth_mode!r}: valid are {', '.join(get_args(DepthMode))}")
    _check_features(features, gaussians)
    name = _choose_backend(gaussians, backend)
    rasterize = _load_backend(name, gaussians.device)
    outer = cameras.batch_shape
    dtype = torch.float64 if name == "reference" and gaussians.means.dtype == torch.float64 else torch.float32
    cameras = cameras.to(dtype).reshape(batch, views)
    gaussians = gaussians.to(dtype)
    features = None if features is None else features.to(dtype)
    if not gaussians.batch_shape:
        gaussians = gaussians.map(lambda value: value[None])
        features = None if features is None else features[None]
    background = _expand_background(background, cameras, outer)
    if batch * views == 0:
        return _empty_pictures(cameras, outer, features)
    patches = None if crop is None else patches_of(crop, cameras, outer)
    images = rasterize(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        gaussians.colors
        if gaussians.sh_degree is None
        else sh_colors(gaussians.colors, gaussians.means, cameras.positions.detach()),
        cameras.world_to_camera.detach(),
        cameras.intrinsics.detach(),
        cameras.height,
        cameras.width,
        background,
        float(scale_modifier),
        features=features,
        antialiased=antialiased,
        window=None if patches is None else patches.window,
    )
    color, depth, alpha, *extra = images if patches is None else map(patches.cut, images)
    if depth_mode == "expected":
        seen = alpha > 0
        depth = torch.where(seen, depth / torch.where(seen, alpha, 1.0), 0.0)
    color, depth, alpha, *extra = (image.reshape(*outer, *image.shape[2:]) for image in (color, depth, alpha, *extra))
    return RenderedGaussians(color, depth, alpha, extra[0] if extra else None)


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


def _check_features(features: Tensor | None, gaussians: Gaussians) -> None:
    """Refuses features that do not fit the Gaussians."""
    if features is None:
        return
    lead = [*gaussians.batch_shape, gaussians.num_gaussians]
    if list(features.shape[:-1]) != lead or features.ndim != len(lead) + 1 or features.shape[-1] < 1:
        raise InvalidInputError(
            f"features must be {[*lead, 'C']} with C >= 1 to fit the Gaussians, got {list(features.shape)}"
        )
    if not features.is_floating_point():
        raise InvalidInputError(f"features must be a floating-point tensor, got {features.dtype}")
    if features.device != gaussians.device:
        raise InvalidInputError(
            f"features are on {features.device}, Gaussians on {gaussians.device}: move both to one device with .to()"
        )


def _empty_pictures(cameras: Cameras, outer: tuple[int, ...], features: Tensor | None) -> RenderedGaussians:
    """Images of no views at all."""
    empty = cameras.intrinsics.new_zeros(*outer, cameras.height, cameras.width)
    color = empty[..., None, :, :].expand(*outer, 3, -1, -1)
    extra = None if features is None else empty[..., None, :, :].expand(*outer, features.shape[-1], -1, -1)
    return RenderedGaussians(color, empty, empty, extra)


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
