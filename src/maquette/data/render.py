"""Renders the variants of one mesh and writes them as one object of a rendered data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.data.color import linear_to_srgb
from maquette.data.plans import RenderOptions, Variant, plan_variant
from maquette.data.surface import Samples, Surface, pack_surface, sample_surface
from maquette.errors import InvalidInputError
from maquette.mesh import Mesh
from maquette.raster.mesh import MeshFragments, rasterize_mesh

_PNG_LEVEL = 1
_SAMPLES_PER_BATCH = 1 << 23


@dataclass(frozen=True)
class RenderedVariant:
    """Pictures of one variant, on the CPU.

    Attributes:
        number: of the variant, from 0.
        variant: its look and frames.
        cameras: `[V]`.
        colors: RGBA, sRGB, straight alpha, uint8 `[V, H, W, 4]`.
        depth: nearest z (OpenCV camera) in each pixel, 0 where empty, float32 `[V, H, W]`; None without geometry.
        normals: world axes, `(n + 1) / 2 * 255`, 0 where empty, uint8 `[V, H, W, 3]`; None without geometry.
    """

    number: int
    variant: Variant
    cameras: Cameras
    colors: NDArray[np.uint8]
    depth: NDArray[np.float32] | None
    normals: NDArray[np.uint8] | None


def render_variants(
    mesh: Mesh, object_id: str, realistic: bool, options: RenderOptions, device: torch.device | str = "cpu"
) -> Iterator[RenderedVariant]:
    """Renders all variants of a mesh, one after the other.

    Args:
        mesh: any position and size: it is centred and scaled to the variant's bounding sphere.
        object_id, realistic: with the seed they decide everything random.
        options: see there.
        device: where to render.

    Raises:
        InvalidInputError: the mesh has no triangle of finite, positive size.
    """
    center, radius = bounding_sphere(mesh)
    surface = pack_surface(mesh, device)
    for number in range(options.num_variants):
        variant = plan_variant(options, object_id, realistic, number)
        cameras = Cameras.orbit(
            [frame.azimuth_deg for frame in variant.frames],
            [frame.elevation_deg for frame in variant.frames],
            radius=options.radius,
            fov_deg=options.fov_deg,
            height=options.image_size,
            width=options.image_size,
        )
        shape, middle, size = surface, center, radius
        if variant.reshape is not None:
            shape = variant.reshape.apply(surface.placed(center, 1 / radius))
            middle, size = bounding_sphere(shape)
        yield _render(shape.placed(middle, variant.bounding_radius / size), variant, number, cameras, options)


def bounding_sphere(mesh: Mesh | Surface) -> tuple[tuple[float, float, float], float]:
    """Centre of the bounding box of all finite vertices that a face uses, and the largest distance from it."""
    used = mesh.vertices[torch.unique(mesh.faces)].double()
    used = used[torch.isfinite(used).all(-1)]
    if not used.numel():
        raise InvalidInputError("the mesh has no triangles with finite corners")
    center = (used.amin(0) + used.amax(0)) / 2
    radius = float((used - center).norm(dim=-1).max())
    if not 1e-12 < radius < 1e12:
        raise InvalidInputError(f"the mesh has the radius {radius:g}, it must lie between 1e-12 and 1e12")
    return (float(center[0]), float(center[1]), float(center[2])), radius


def _render(
    surface: Surface, variant: Variant, number: int, cameras: Cameras, options: RenderOptions
) -> RenderedVariant:
    fine = cameras.resized(cameras.height * options.supersample, cameras.width * options.supersample)
    fine = fine.to(surface.vertices.device)
    step = max(1, _SAMPLES_PER_BATCH // (fine.height * fine.width))
    parts = [
        _render_views(surface, variant, fine[first : first + step], options)
        for first in range(0, len(variant.frames), step)
    ]
    colors, depth, normals = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    kept = (depth, normals) if options.geometry else (None, None)
    return RenderedVariant(number, variant, cameras, colors, *kept)


def _render_views(
    surface: Surface, variant: Variant, cameras: Cameras, options: RenderOptions
) -> tuple[Tensor, Tensor, Tensor]:
    fragments = rasterize_mesh(surface.vertices, surface.faces, cameras)
    samples = sample_surface(surface, fragments, cameras)
    albedo = variant.augmentation.apply(samples.albedo, samples.positions, samples.materials)
    light = (albedo * variant.light.irradiance(samples.normals)).clamp(0, 1)
    colors = _average_colors(light, samples, fragments, options.supersample)
    if not options.geometry:
        nothing = torch.empty(len(colors), 0)
        return colors, nothing, nothing
    return colors, _nearest_depth(fragments, options.supersample), _average_normals(samples, fragments, options)


def _scatter(values: Tensor, samples: Samples, fragments: MeshFragments) -> Tensor:
    """Values of the covered pixels `[P, C]` in place, 0 elsewhere, `[V, C, H, W]`."""
    num_views, height, width = fragments.triangle_id.shape
    flat = values.new_zeros(num_views * height * width, values.shape[1])
    flat[samples.index] = values
    return flat.reshape(num_views, height, width, -1).permute(0, 3, 1, 2)


def _average_colors(light: Tensor, samples: Samples, fragments: MeshFragments, supersample: int) -> Tensor:
    """Averages linear light and coverage over the samples of each pixel: sRGB with straight alpha, uint8."""
    with_alpha = torch.cat([light, torch.ones_like(light[:, :1])], dim=1)
    picture = _scatter(with_alpha, samples, fragments)
    if supersample > 1:
        picture = functional.avg_pool2d(picture, supersample)
    alpha = picture[:, 3:]
    rgb = linear_to_srgb(picture[:, :3] / alpha.clamp_min(1e-6))
    encoded = torch.cat([rgb, alpha], dim=1) * 255
    return encoded.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _nearest_depth(fragments: MeshFragments, supersample: int) -> Tensor:
    depth = torch.where(fragments.triangle_id >= 0, fragments.depth, torch.inf)
    nearest = -functional.max_pool2d(-depth[:, None], supersample)[:, 0]
    return torch.where(nearest.isfinite(), nearest, 0.0)


def _average_normals(samples: Samples, fragments: MeshFragments, options: RenderOptions) -> Tensor:
    picture = functional.avg_pool2d(_scatter(samples.normals, samples, fragments), options.supersample)
    covered = picture.abs().amax(1, keepdim=True) > 0
    encoded = ((functional.normalize(picture, dim=1) + 1) * 127.5).round()
    return torch.where(covered, encoded, 0.0).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def write_object(
    folder: Path, rendered: Iterator[RenderedVariant], options: RenderOptions, extra: dict[str, Any]
) -> list[NDArray[np.uint8]]:
    """Writes all variants of one object into an existing, empty folder.

    Args:
        folder: gets `rgb/`, `depth/`, `normal/` and, last, `transforms.json`.
        rendered: from `render_variants`.
        options: the same ones.
        extra: more entries for `transforms.json`.

    Returns:
        Three of the pictures, RGBA `[H, W, 4]`, for a contact sheet.
    """
    depth_scale = 2 * options.radius
    for name in ("rgb", "depth", "normal") if options.geometry else ("rgb",):
        (folder / name).mkdir()
    frames: list[dict[str, Any]] = []
    pictures: list[NDArray[np.uint8]] = []
    variants: list[dict[str, Any]] = []
    focal = (0.0, 0.0)
    for item in rendered:
        poses = item.cameras.to(torch.float64).opengl_poses().tolist()
        focal = (float(item.cameras.intrinsics[0, 0, 0]), float(item.cameras.intrinsics[0, 1, 1]))
        variants.append(item.variant.settings())
        for view, frame in enumerate(item.variant.frames):
            name = f"{len(frames):03d}.png"
            entry: dict[str, Any] = {"file_path": f"rgb/{name}", "transform_matrix": poses[view]}
            _save(folder / "rgb" / name, item.colors[view])
            if item.depth is not None and item.normals is not None:
                levels = np.clip(np.rint(item.depth[view] * (65535 / depth_scale)), 0, 65535).astype(np.uint16)
                _save(folder / "depth" / name, levels)
                _save(folder / "normal" / name, item.normals[view])
                entry |= {"depth_file_path": f"depth/{name}", "normal_file_path": f"normal/{name}"}
            changed = {} if item.variant.reshape is None else {"reshaped": True}
            frames.append({**entry, "variant": item.number, "role": frame.role, **changed})
        pictures.extend(item.colors)
    size = options.image_size
    document = {
        "camera_model": "PINHOLE",
        "w": size,
        "h": size,
        "fl_x": focal[0],
        "fl_y": focal[1],
        "cx": size / 2,
        "cy": size / 2,
        **({"depth_scale": depth_scale, "normal_axes": "world"} if options.geometry else {}),
        **extra,
        "variants": variants,
        "frames": frames,
    }
    (folder / "transforms.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    count = len(pictures)
    return [pictures[i] for i in sorted({0, count // 3, 2 * count // 3})]


def _save(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    Image.fromarray(pixels).save(path, compress_level=_PNG_LEVEL)
