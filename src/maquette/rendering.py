"""Pictures of any 3D asset: `render` for given cameras, `render_turntable` for a video that loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh

Asset = Gaussians | Mesh
Progress = Callable[[int, int], None]
"""Called with (views done, views in all)."""
Lighting = Literal["studio", "unlit"]

_Renderer = Callable[[Cameras], Tensor]
_SUPERSAMPLE = 2
_SEEN_OPACITY = 0.05
_PIXELS_PER_CHUNK = 4 * 512 * 512
_MAX_IMAGE_SIZE = 8192
_MAX_TURNTABLE_PIXELS = 2**29


@dataclass(frozen=True)
class Turntable:
    """A camera path once around the object; the frame after the last one would be the first again.

    Attributes:
        num_frames: frames of one turn, >= 1.
        fps: frames per second of the video, >= 1.
        image_size: height and width in pixels, 1 to 8192; all frames together at most 2^29 pixels (6 GiB of memory).
        elevation_deg: height of the camera, in [-90, 90].
        radius: distance of the camera, > 0.
        fov_deg: vertical field of view in degrees, in (0, 180).
    """

    num_frames: int = 60
    fps: int = 30
    image_size: int = 384
    elevation_deg: float = 10.0
    radius: float = 1.5
    fov_deg: float = 49.1

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.fps < 1:
            raise InvalidInputError(f"frames and fps must be >= 1, got {self.num_frames} and {self.fps}")
        if not 1 <= self.image_size <= _MAX_IMAGE_SIZE:
            raise InvalidInputError(f"image_size must be 1 to {_MAX_IMAGE_SIZE} pixels, got {self.image_size}")
        if self.num_frames * self.image_size**2 > _MAX_TURNTABLE_PIXELS:
            most = _MAX_TURNTABLE_PIXELS // self.image_size**2
            raise InvalidInputError(
                f"{self.num_frames} frames of {self.image_size} x {self.image_size} pixels are too many to hold in "
                f"memory: at most {most} of this size, or choose smaller ones"
            )

    def cameras(self) -> Cameras:
        """The cameras of one turn, `[num_frames]`, azimuth growing from 0."""
        azimuths = torch.arange(self.num_frames, dtype=torch.float64) * (360.0 / self.num_frames)
        return Cameras.orbit(
            azimuths,
            self.elevation_deg,
            radius=self.radius,
            fov_deg=self.fov_deg,
            height=self.image_size,
            width=self.image_size,
        )

    def camera(self, azimuth_deg: float, elevation_deg: float) -> Cameras:
        """One camera `[]` of the same size, radius and field of view, anywhere on the sphere."""
        cameras = Cameras.orbit(
            [azimuth_deg],
            elevation_deg,
            radius=self.radius,
            fov_deg=self.fov_deg,
            height=self.image_size,
            width=self.image_size,
        )
        return cameras.reshape()


def render(
    asset: Asset | str | Path,
    cameras: Cameras,
    *,
    background: Sequence[float] = (1.0, 1.0, 1.0),
    lighting: Lighting = "studio",
    progress: Progress | None = None,
) -> Tensor:
    """Renders Gaussians or a mesh, in chunks of views so that memory stays bounded, without gradients.

    Args:
        asset: Gaussians `[N]`, a mesh, or a file of either kind.
        cameras: `[V]`, or a single camera `[]`; moved to the asset's device.
        background: sRGB colour behind the object, 0..1.
        lighting: of meshes: "studio" shows their shape, "unlit" their colours as stored. Gaussians carry their light.
        progress: called after every chunk with the numbers of views done and in all.

    Returns:
        Pictures `[V, 3, H, W]` (`[3, H, W]` for a single camera), 0..1, sRGB-encoded, on the CPU.

    Raises:
        InvalidInputError: the Gaussians or cameras have more batch dimensions, or the lighting is not known.
        FileFormatError: the file cannot be read.
    """
    if lighting not in get_args(Lighting):
        raise InvalidInputError(f"unknown lighting {lighting!r}; valid: {', '.join(get_args(Lighting))}")
    if isinstance(asset, (str, Path)):
        asset = read_asset(asset)
    if isinstance(asset, Gaussians) and asset.batch_shape:
        raise InvalidInputError(f"render() needs one set of Gaussians [N], these have batch {list(asset.batch_shape)}")
    if len(cameras.batch_shape) > 1:
        raise InvalidInputError(f"render() needs cameras [V], these have batch {list(cameras.batch_shape)}")
    single = not cameras.batch_shape
    cameras = (cameras.reshape(1) if single else cameras).to(asset.device)
    count = cameras.batch_shape[0]
    chunk = max(1, _PIXELS_PER_CHUNK // (cameras.height * cameras.width))
    pictures = []
    with torch.inference_mode():
        if isinstance(asset, Gaussians):
            draw = _gaussian_renderer(asset, background)
        else:
            draw = _mesh_renderer(asset, background, lighting)
        for start in range(0, count, chunk):
            pictures.append(draw(cameras[start : start + chunk]).cpu())
            if progress is not None:
                progress(min(start + chunk, count), count)
    frames = torch.cat(pictures)
    return frames[0] if single else frames


def render_turntable(
    asset: Asset,
    turntable: Turntable | None = None,
    *,
    background: Sequence[float] = (1.0, 1.0, 1.0),
    lighting: Lighting = "studio",
    progress: Progress | None = None,
) -> Tensor:
    """Renders one turn around an asset, `[T, 3, H, W]`; see `render` for the rest."""
    cameras = (turntable or Turntable()).cameras()
    return render(asset, cameras, background=background, lighting=lighting, progress=progress)


def read_asset(path: str | Path) -> Asset:
    """Reads a file of Gaussians or a mesh, whichever it holds.

    Raises:
        FileFormatError: the file is missing, broken or of no known kind.
    """
    from maquette.io import asset_kind, read_gaussians, read_mesh

    return read_gaussians(path) if asset_kind(path) == "gaussians" else read_mesh(path)


def fitted(asset: Asset, radius: float = 0.6) -> Asset:
    """The asset moved and scaled so that its bounding sphere (about its box) is centred and has this radius.

    Of Gaussians, the outermost 1 % on each side and those under an opacity of 0.05 are not counted.

    Raises:
        InvalidInputError: nothing is visible, or everything lies in one point.
    """
    points = asset.vertices if isinstance(asset, Mesh) else asset.means[asset.opacities >= _SEEN_OPACITY]
    points = points[torch.isfinite(points).all(dim=-1)].to(torch.float64)
    if not len(points):
        raise InvalidInputError("there is nothing visible to fit into the picture")
    margin = 0 if isinstance(asset, Mesh) else len(points) // 100
    ordered = points.sort(dim=0).values
    low, high = ordered[margin], ordered[len(points) - 1 - margin]
    center, extent = (low + high) / 2, float((high - low).norm()) / 2
    if extent <= 0:
        raise InvalidInputError("the object has no extent: all its points are one")
    scale = radius / extent
    x, y, z = (-center * scale).tolist()
    if isinstance(asset, Mesh):
        return asset.transformed(scale, (x, y, z))
    return dataclasses.replace(
        asset, means=asset.means * scale + asset.means.new_tensor([x, y, z]), scales=asset.scales * scale
    )


def _gaussian_renderer(gaussians: Gaussians, background: Sequence[float]) -> _Renderer:
    from maquette.raster import render_gaussians

    return lambda cameras: render_gaussians(gaussians, cameras, background=background).color.clamp(0, 1)


def _mesh_renderer(mesh: Mesh, background: Sequence[float], lighting: Lighting) -> _Renderer:
    """Textured, lit by lights that are fixed in the world, with edges averaged over 2 x 2 samples a pixel."""
    from maquette.data.color import linear_to_srgb
    from maquette.data.lighting import STUDIO, UNLIT
    from maquette.data.surface import pack_surface, sample_surface
    from maquette.raster.mesh import rasterize_mesh

    light = STUDIO if lighting == "studio" else UNLIT
    surface = pack_surface(mesh, mesh.device)

    def draw(cameras: Cameras) -> Tensor:
        fine = cameras.resized(_SUPERSAMPLE * cameras.height, _SUPERSAMPLE * cameras.width)
        samples = sample_surface(surface, rasterize_mesh(surface.vertices, surface.faces, fine), fine)
        lit = linear_to_srgb((samples.albedo * light.irradiance(samples.normals)).clamp(0, 1))
        pixels = lit.new_tensor(background).repeat(fine.batch_shape[0] * fine.height * fine.width, 1)
        pixels[samples.index] = lit
        picture = pixels.reshape(-1, fine.height, fine.width, 3).permute(0, 3, 1, 2)
        return functional.avg_pool2d(picture, _SUPERSAMPLE)

    return draw
