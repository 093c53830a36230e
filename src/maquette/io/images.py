"""Pictures: PNG, JPEG and WebP through Pillow, sizes checked from the header before anything is decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from maquette.errors import FileFormatError, InvalidInputError
from maquette.io import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES
from maquette.io.atomic import atomic_path
from maquette.io.regular import checked_file_size

_FORMATS = ("PNG", "JPEG", "WEBP")
_GRAY16_MODES = ("I;16", "I;16L", "I;16B", "I")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageInfo:
    """Upright size in pixels and whether the file has an alpha channel."""

    width: int
    height: int
    has_alpha: bool


def read_image(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Tensor:
    """Reads a picture as RGBA `[4, H, W]`, float32 0..1, sRGB-encoded, straight alpha, turned upright by EXIF.

    Gray, palette, 16-bit gray and CMYK pictures are converted; alpha is 1 where the file has none.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: wrong suffix, not a picture, truncated, or larger than `max_pixels`.
    """
    with _open_stream(path) as stream:
        return _decode(stream, str(path), max_pixels)


def decode_image(data: bytes, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Tensor:
    """`read_image` for bytes; `name` stands in error messages."""
    return _decode(io.BytesIO(data), name, max_pixels)


def read_image_info(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageInfo:
    """Size and kind from the header alone; the same errors as `read_image` apart from truncated pixels."""
    with _open_stream(path) as stream:
        return _read_info(stream, str(path), max_pixels)


def decode_image_info(data: bytes, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageInfo:
    """`read_image_info` for bytes; `name` stands in error messages."""
    return _read_info(io.BytesIO(data), name, max_pixels)


def _read_info(stream: BinaryIO, name: str, max_pixels: int) -> ImageInfo:
    image = _open_checked(stream, name, max_pixels)
    try:
        # Of a PNG, getexif() would decode all pixels when there is no EXIF in front of them.
        known = image.format != "PNG" or "exif" in image.info
        turned = known and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise FileFormatError(f"{name}: malformed metadata: {error}") from error
    width, height = image.size[::-1] if turned else image.size
    return ImageInfo(width, height, _has_alpha(image))


def _open_stream(path: str | Path) -> BinaryIO:
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise FileFormatError(f"{path}: '{suffix}' is not a suffix of a picture; valid are {', '.join(IMAGE_SUFFIXES)}")
    checked_file_size(path, "a picture")
    return Path(path).open("rb")


def _open_checked(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """Opens a picture without decoding it. Pillow raises many kinds of errors for malformed files."""
    try:
        image = Image.open(stream, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise FileFormatError(f"{name}: the picture is too large, at most {max_pixels:,} pixels are read") from error
    except Exception as error:
        raise FileFormatError(f"{name}: not a readable PNG, JPEG or WebP picture: {error}") from error
    width, height = image.size
    if width * height > max_pixels or width < 1 or height < 1:
        raise FileFormatError(
            f"{name}: the picture is {width} x {height} pixels, at most {max_pixels:,} pixels are read; make it smaller"
        )
    return image


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _decode(stream: BinaryIO, name: str, max_pixels: int) -> Tensor:
    image = _open_checked(stream, name, max_pixels)
    try:
        image.load()
        pixels = _to_rgba(ImageOps.exif_transpose(image))
    except Exception as error:
        raise FileFormatError(f"{name}: the picture is truncated or malformed: {error}") from error
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _to_rgba(image: Image.Image) -> NDArray[np.float32]:
    """Float `[H, W, 4]` of a decoded picture of any mode."""
    if image.mode in _GRAY16_MODES:
        gray = np.asarray(image).astype(np.float32) / 65535
        return np.stack([gray, gray, gray, np.ones_like(gray)], axis=-1).clip(0, 1)
    return np.asarray(image.convert("RGBA"), dtype=np.float32) / np.float32(255)


def write_image(path: str | Path, image: Tensor) -> None:
    """Writes an 8-bit picture by suffix, atomically (PNG and WebP lossless, JPEG quality 95).

    Args:
        path: `.png`, `.jpg`, `.jpeg` or `.webp`; missing parent folders are made.
        image: `[3|4, H, W]`, sRGB-encoded; clamped to 0..1.

    Raises:
        InvalidInputError: wrong suffix, shape, NaN values, or alpha in a JPEG.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InvalidInputError(f"{path}: write pictures as {', '.join(IMAGE_SUFFIXES)}, not '{suffix}'")
    if image.ndim != 3 or image.shape[0] not in (3, 4) or image.numel() == 0:
        raise InvalidInputError(f"image must be [3, H, W] or [4, H, W], got {list(image.shape)}")
    if suffix in (".jpg", ".jpeg") and image.shape[0] == 4:
        raise InvalidInputError(f"{path}: JPEG has no alpha; pass 3 channels or write .png")
    pixels = _quantized(image, 255).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    options: dict[str, Any] = {}
    if suffix in (".jpg", ".jpeg"):
        options = {"quality": 95, "subsampling": 0}
    elif suffix == ".webp":
        options = {"lossless": True, "exact": True}
    with atomic_path(path) as temporary:
        picture.save(temporary, **options)


def read_gray16(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Tensor:
    """Reads a 16-bit gray PNG as `[H, W]`, float32 in 0..1 (value / 65535).

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: as `read_image`, or the picture does not have 16 bits and one channel.
    """
    with _open_stream(path) as stream:
        image = _open_checked(stream, str(path), max_pixels)
        if image.mode not in _GRAY16_MODES:
            raise FileFormatError(f"{path}: expected a 16-bit gray PNG, the picture has mode {image.mode}")
        try:
            values = np.asarray(image).astype(np.float32)
        except Exception as error:
            raise FileFormatError(f"{path}: the picture is truncated or malformed: {error}") from error
    return torch.from_numpy(values / np.float32(65535))


def write_gray16(path: str | Path, image: Tensor) -> None:
    """Writes `[H, W]` (clamped to 0..1) as a 16-bit gray PNG, atomically.

    Raises:
        InvalidInputError: another suffix than `.png`, wrong shape, or NaN values.
    """
    if Path(path).suffix.lower() != ".png":
        raise InvalidInputError(f"{path}: 16-bit pictures are written as .png")
    if image.ndim != 2 or image.numel() == 0:
        raise InvalidInputError(f"image must be [H, W], got {list(image.shape)}")
    values = _quantized(image, 65535).astype(np.uint16)
    with atomic_path(path) as temporary:
        Image.fromarray(values).save(temporary)


def _quantized(image: Tensor, maximum: int) -> NDArray[np.float64]:
    values = image.detach().to("cpu", torch.float64).numpy()
    bad = int(np.isnan(values).sum())
    if bad:
        raise InvalidInputError(f"the picture has {bad:,} NaN values of {values.size:,}; nothing written")
    rounded: NDArray[np.float64] = np.rint(values.clip(0, 1) * maximum)
    return rounded
