"""Video: H.264 in MP4 through PyAV (imported only when used)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.errors import FileFormatError, InvalidInputError, MissingDependencyError
from maquette.io.atomic import atomic_path
from maquette.io.regular import checked_file_size

_BT709 = 1
"""Code of BT.709 primaries, transfer and matrix in H.264 streams."""


@dataclass(frozen=True)
class VideoInfo:
    """Size in pixels, frames per second, number of frames, codec and pixel format of a video."""

    width: int
    height: int
    fps: float
    num_frames: int
    codec: str
    pixel_format: str


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError("videos need PyAV: pip install av") from error
    return av


def write_video(path: str | Path, frames: Tensor | Iterable[Tensor], fps: float = 30, *, crf: int = 18) -> None:
    """Writes an `.mp4` (H.264, yuv420p, BT.709) that browsers and players open, atomically.

    Args:
        path: the file; missing parent folders are made.
        frames: `[T, 3, H, W]`, or frames `[3, H, W]` of one size one after another; sRGB-encoded, clamped to
            0..1. Odd sizes are padded by repeating the last row or column.
        fps: frames per second, > 0.
        crf: quality, 0 (lossless) to 51.

    Raises:
        InvalidInputError: another suffix, no frames, or frames of wrong or changing shape.
        MissingDependencyError: PyAV is not installed.
    """
    if Path(path).suffix.lower() != ".mp4":
        raise InvalidInputError(f"{path}: videos are written as .mp4")
    if not 0 < fps <= 1000 or not 0 <= crf <= 51:
        raise InvalidInputError(f"fps must lie in (0, 1000] and crf in 0..51, got {fps} and {crf}")
    pictures = _even_frames(frames)
    first = next(pictures, None)
    if first is None:
        raise InvalidInputError(f"{path}: a video needs at least one frame")
    av = _import_av()
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf)}
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        for picture in _chain(first, pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _chain(first: NDArray[np.uint8], rest: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    yield first
    for picture in rest:
        if picture.shape != first.shape:
            raise InvalidInputError(f"all frames must have one size, got {first.shape[:2]} and {picture.shape[:2]}")
        yield picture


def _even_frames(frames: Tensor | Iterable[Tensor]) -> Iterator[NDArray[np.uint8]]:
    """Frames as uint8 `[H, W, 3]`, padded to even sizes."""
    for frame in frames:
        if frame.ndim != 3 or frame.shape[0] != 3 or frame.numel() == 0:
            raise InvalidInputError(f"frames must be [3, H, W], got {list(frame.shape)}")
        values = frame.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
        pixels = values.permute(1, 2, 0).numpy()
        yield np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")


def read_video_info(path: str | Path) -> VideoInfo:
    """Reads what a video says about itself and counts its frames (without decoding them).

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: not a video, or truncated.
        MissingDependencyError: PyAV is not installed.
    """
    checked_file_size(path, "a video")
    av = _import_av()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            count = sum(packet.size > 0 for packet in container.demux(stream))
            context = stream.codec_context
            rate = float(stream.average_rate or 0)
            return VideoInfo(context.width, context.height, rate, count, context.name, context.pix_fmt or "")
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise FileFormatError(f"{path}: not a readable video: {error}") from error
