"""Files in and out: one module per format, registered by suffix.

Readers raise `FileNotFoundError` for a missing path and `maquette.errors.FileFormatError` (or `UnsupportedError`)
for everything that is wrong inside a file; what a header claims is compared with the size of the file before
memory is taken. Writers are atomic. Importing this package imports no format module and not torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maquette.errors import FileFormatError, InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

    from maquette.gaussians import Gaussians
    from maquette.io.video import VideoInfo
    from maquette.mesh import Mesh
    from maquette.views import Views

__all__ = [
    "GAUSSIAN_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MESH_SUFFIXES",
    "asset_kind",
    "read_gaussians",
    "read_gray16",
    "read_image",
    "read_mesh",
    "read_mesh_bytes",
    "read_video_info",
    "read_views",
    "write_gaussians",
    "write_gray16",
    "write_image",
    "write_mesh",
    "write_video",
    "write_views",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of pictures that `read_image` and `write_image` know."""

_GAUSSIAN_FORMATS = {".ply": "gaussian_ply", ".splat": "splat"}
_MESH_FORMATS = {".glb": "glb", ".obj": "obj", ".stl": "stl", ".ply": "mesh_ply"}

GAUSSIAN_SUFFIXES = tuple(_GAUSSIAN_FORMATS)
"""Suffixes of Gaussian files, readable and writable."""
MESH_SUFFIXES = tuple(_MESH_FORMATS)
"""Suffixes of mesh files, readable and writable."""

DEFAULT_MAX_PIXELS = 64_000_000
"""Largest picture that is decoded unless the caller allows more (64 megapixels, 1 GiB as float RGBA)."""


def _format_module(path: str | Path, formats: dict[str, str], what: str, *, reading: bool) -> Any:
    """Imports the module of the format that the suffix of `path` names."""
    suffix = Path(path).suffix.lower()
    if suffix in formats:
        return importlib.import_module(f"maquette.io.{formats[suffix]}")
    error = FileFormatError if reading else InvalidInputError
    raise error(f"{path}: '{suffix}' is not a suffix of {what}; valid are {', '.join(formats)}")


def asset_kind(path: str | Path) -> Literal["gaussians", "mesh"]:
    """Says what a file holds, by its suffix and, for `.ply`, by its header.

    Raises:
        FileNotFoundError: a `.ply` that does not exist.
        FileFormatError: an unknown suffix, or a `.ply` that is neither.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".ply":
        ply = importlib.import_module("maquette.io.ply")
        return "gaussians" if ply.is_gaussian_header(ply.read_ply_header(path)) else "mesh"
    if suffix in _GAUSSIAN_FORMATS:
        return "gaussians"
    if suffix in _MESH_FORMATS:
        return "mesh"
    valid = ", ".join(dict.fromkeys((*_GAUSSIAN_FORMATS, *_MESH_FORMATS)))
    raise FileFormatError(f"{path}: '{suffix}' is not a suffix of a 3D asset; valid are {valid}")


def read_gaussians(path: str | Path, *, encoding: Literal["auto", "compatible", "activated"] = "auto") -> Gaussians:
    """Reads one set of Gaussians `[N]` (CPU, float32) from `.ply` or `.splat`.

    Args:
        path: the file.
        encoding: of a `.ply`, see `maquette.io.gaussian_ply.read_gaussian_ply`; `.splat` has only one.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: unknown suffix, or truncated, malformed or non-finite content.
    """
    module = _format_module(path, _GAUSSIAN_FORMATS, "a Gaussian file", reading=True)
    if Path(path).suffix.lower() == ".ply":
        gaussians: Gaussians = module.read_gaussian_ply(path, encoding=encoding)
    else:
        gaussians = module.read_splat(path)
    return gaussians


def write_gaussians(
    path: str | Path,
    gaussians: Gaussians,
    *,
    encoding: Literal["compatible", "activated"] = "compatible",
    min_opacity: float = 0.0,
) -> None:
    """Writes one unbatched set of Gaussians to `.ply` or `.splat`, atomically.

    Args:
        path: the file; missing parent folders are made.
        gaussians: `[N]`, finite.
        encoding: of a `.ply`: "compatible" is what every splat viewer reads, "activated" LGM's raw export.
        min_opacity: Gaussians below are left out; LGM's exporter uses 0.005
            (`maquette.io.gaussian_ply.LGM_MIN_OPACITY`).

    Raises:
        InvalidInputError: unknown suffix, a batch, non-finite values, or nothing left to write.
    """
    module = _format_module(path, _GAUSSIAN_FORMATS, "a Gaussian file", reading=False)
    if Path(path).suffix.lower() == ".ply":
        module.write_gaussian_ply(path, gaussians, encoding=encoding, min_opacity=min_opacity)
        return
    if encoding != "compatible":
        raise InvalidInputError(f"{path}: .splat has no encoding '{encoding}'; write a .ply")
    module.write_splat(path, gaussians, min_opacity=min_opacity)


def read_mesh(path: str | Path) -> Mesh:
    """Reads a mesh (CPU, float32) from `.glb`, `.obj`, `.stl` or `.ply`.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: unknown suffix, or truncated, malformed or non-finite content.
        UnsupportedError: a feature that this reader does not know (Draco compression, external files).
    """
    mesh: Mesh = _format_module(path, _MESH_FORMATS, "a mesh file", reading=True).read_file(path)
    return mesh


def read_mesh_bytes(data: bytes, name: str = "mesh.glb") -> Mesh:
    """Reads a mesh from the bytes of a `.glb`; `name` stands in error messages."""
    glb = importlib.import_module("maquette.io.glb")
    mesh: Mesh = glb.read_glb_bytes(data, name)
    return mesh


def write_mesh(path: str | Path, mesh: Mesh) -> None:
    """Writes a mesh to `.glb` (everything), `.obj`, `.ply` (no materials) or `.stl` (shape only), atomically.

    Raises:
        InvalidInputError: unknown suffix, no faces, or non-finite values.
    """
    _format_module(path, _MESH_FORMATS, "a mesh file", reading=False).write_file(path, mesh)


def read_image(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Tensor:
    """Reads PNG, JPEG or WebP as RGBA `[4, H, W]`, float32 0..1, sRGB-encoded, straight alpha, upright (EXIF).

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: not such a picture, truncated, or more than `max_pixels` (checked before decoding).
    """
    image: Tensor = importlib.import_module("maquette.io.images").read_image(path, max_pixels=max_pixels)
    return image


def write_image(path: str | Path, image: Tensor) -> None:
    """Writes `[3|4, H, W]` in 0..1 as an 8-bit picture, by suffix, atomically (JPEG takes 3 channels)."""
    importlib.import_module("maquette.io.images").write_image(path, image)


def read_gray16(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Tensor:
    """Reads a 16-bit gray PNG as `[H, W]`, float32 0..1 (value / 65535)."""
    image: Tensor = importlib.import_module("maquette.io.images").read_gray16(path, max_pixels=max_pixels)
    return image


def write_gray16(path: str | Path, image: Tensor) -> None:
    """Writes `[H, W]` in 0..1 as a 16-bit gray PNG, atomically."""
    importlib.import_module("maquette.io.images").write_gray16(path, image)


def read_views(
    folder: str | Path,
    *,
    frames: Sequence[int] | None = None,
    min_views: int = 1,
    require_alpha: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Views:
    """Reads a `transforms.json` folder; see `maquette.io.transforms.read_views`."""
    module = importlib.import_module("maquette.io.transforms")
    views: Views = module.read_views(
        folder, frames=frames, min_views=min_views, require_alpha=require_alpha, max_pixels=max_pixels
    )
    return views


def write_views(folder: str | Path, views: Views, *, overwrite: bool = False) -> None:
    """Writes a `transforms.json` folder atomically; see `maquette.io.transforms.write_views`."""
    importlib.import_module("maquette.io.transforms").write_views(folder, views, overwrite=overwrite)


def write_video(path: str | Path, frames: Tensor | Iterable[Tensor], fps: float = 30, *, crf: int = 18) -> None:
    """Writes frames `[T, 3, H, W]` in 0..1 as H.264 `.mp4`; see `maquette.io.video.write_video`."""
    importlib.import_module("maquette.io.video").write_video(path, frames, fps, crf=crf)


def read_video_info(path: str | Path) -> VideoInfo:
    """Size, rate, length and codec of a video; see `maquette.io.video.read_video_info`."""
    info: VideoInfo = importlib.import_module("maquette.io.video").read_video_info(path)
    return info
