"""Pictures and video: every mode, header limits, malformed files."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maquette.errors import FileFormatError, InvalidInputError
from maquette.io import read_gray16, read_image, read_video_info, write_gray16, write_image, write_video


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, color: int = 6) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))


def rgba(height: int = 6, width: int = 9) -> torch.Tensor:
    return torch.rand(4, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("channels", [3, 4])
def test_lossless_round_trip(tmp_path: Path, suffix: str, channels: int) -> None:
    image = rgba()[:channels]
    write_image(tmp_path / f"a{suffix}", image)
    got = read_image(tmp_path / f"a{suffix}")
    assert got.shape == (4, 6, 9) and got.dtype == torch.float32
    assert float((got[:channels] - image).abs().max()) <= 0.5 / 255 + 1e-6
    if channels == 3:
        assert bool((got[3] == 1).all())


def test_jpeg_is_close_and_has_no_alpha(tmp_path: Path) -> None:
    smooth = torch.linspace(0.1, 0.9, 64).expand(3, 48, 64) * torch.tensor([1.0, 0.6, 0.3]).reshape(3, 1, 1)
    write_image(tmp_path / "a.jpg", smooth)
    assert float((read_image(tmp_path / "a.jpg")[:3] - smooth).abs().max()) < 0.03
    with pytest.raises(InvalidInputError, match="alpha"):
        write_image(tmp_path / "b.jpg", rgba())


def test_values_are_rounded_and_clamped(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.tensor([-1.0, 0.5, 2.0]).reshape(3, 1, 1))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[[0, 128, 255]]]


def pictures() -> dict[str, tuple[Image.Image, dict[str, object], list[float]]]:
    """Picture, options for saving, RGBA of its one colour."""
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 51])
    return {
        "1": (Image.new("1", (4, 4), 1), {}, [1, 1, 1, 1]),
        "L": (Image.new("L", (4, 4), 51), {}, [0.2, 0.2, 0.2, 1]),
        "LA": (Image.new("LA", (4, 4), (51, 102)), {}, [0.2, 0.2, 0.2, 0.4]),
        "P": (palette, {}, [1, 0, 0.2, 1]),
        "P with transparency": (palette, {"transparency": 1}, [1, 0, 0.2, 0]),
        "RGB": (Image.new("RGB", (4, 4), (255, 51, 0)), {}, [1, 0.2, 0, 1]),
        "16 bit": (Image.fromarray(np.full((4, 4), 13107, np.uint16)), {}, [0.2, 0.2, 0.2, 1]),
    }


@pytest.mark.parametrize("mode", pictures())
def test_png_modes(tmp_path: Path, mode: str) -> None:
    picture, options, expected = pictures()[mode]
    picture.save(tmp_path / "a.png", **options)
    got = read_image(tmp_path / "a.png")
    torch.testing.assert_close(
        got, torch.tensor(expected, dtype=torch.float32).reshape(4, 1, 1).expand(4, 4, 4), atol=1e-6, rtol=0
    )


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    got = read_image(tmp_path / "a.jpg")[:, 8, 8]
    torch.testing.assert_close(got, torch.tensor([1.0, 0, 0, 1]), atol=0.03, rtol=0)


def test_exif_orientation(tmp_path: Path) -> None:
    stored = Image.new("RGB", (8, 4), (0, 0, 255))
    stored.paste((255, 0, 0), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    stored.save(tmp_path / "a.png", exif=exif)
    got = read_image(tmp_path / "a.png")
    assert got.shape == (4, 8, 4)
    assert got[:3, 0, 0].tolist() == [1, 0, 0] and got[:3, 7, 0].tolist() == [0, 0, 1]


def test_gray16(tmp_path: Path) -> None:
    depth = torch.linspace(0, 1, 1000).reshape(20, 50)
    write_gray16(tmp_path / "a.png", depth)
    assert np.asarray(Image.open(tmp_path / "a.png")).dtype == np.uint16
    assert float((read_gray16(tmp_path / "a.png") - depth).abs().max()) <= 0.5 / 65535 + 1e-7
    write_image(tmp_path / "b.png", rgba())
    with pytest.raises(FileFormatError, match="16-bit gray"):
        read_gray16(tmp_path / "b.png")
    with pytest.raises(InvalidInputError):
        write_gray16(tmp_path / "a.jpg", depth)


@pytest.mark.parametrize("size", [(50_000, 50_000), (9_000, 9_000), (1 << 30, 1 << 30)])
def test_large_claims_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    row = zlib.compress(bytes(1_000_000), 9)
    (tmp_path / "bomb.png").write_bytes(png_header(*size) + chunk(b"IDAT", row) + chunk(b"IEND", b""))
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_limit_is_an_option(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", rgba(10, 10))
    with pytest.raises(FileFormatError, match="10 x 10"):
        read_image(tmp_path / "a.png", max_pixels=99)
    assert read_image(tmp_path / "a.png", max_pixels=100).shape == (4, 10, 10)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_truncated_and_foreign_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    write_image(path, image)
    data = path.read_bytes()
    for broken in (b"", data[: len(data) // 2], data[:12], b"hello world" * 10):
        path.write_bytes(broken)
        with pytest.raises(FileFormatError):
            read_image(path)


def test_wrong_suffix_missing_file_and_other_formats(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(FileFormatError, match=r"\.png, \.jpg"):
        read_image(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "BMP")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    with pytest.raises(FileFormatError):
        read_image(tmp_path / "a.png")
    with pytest.raises(InvalidInputError, match="NaN"):
        write_image(tmp_path / "b.png", torch.full((3, 2, 2), torch.nan))
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_video(tmp_path: Path, size: tuple[int, int]) -> None:
    av = pytest.importorskip("av")
    height, width = size
    colors = torch.tensor([[0.8, 0.2, 0.1], [0.1, 0.7, 0.3], [0.2, 0.3, 0.9]])
    frames = colors[:, :, None, None].expand(3, 3, height, width).repeat_interleave(4, 0)
    path = tmp_path / "deep" / "a.mp4"
    write_video(path, frames, fps=24)
    info = read_video_info(path)
    assert (info.height, info.width) == (height + height % 2, width + width % 2)
    assert info.num_frames == 12 and info.fps == pytest.approx(24)
    assert info.codec == "h264" and info.pixel_format == "yuv420p"
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24", src_colorspace="ITU709") for frame in container.decode(video=0)]
    for index, color in enumerate(colors):
        mean = decoded[index * 4 + 2].reshape(-1, 3).mean(0) / 255
        np.testing.assert_allclose(mean, color.numpy(), atol=0.03)


def test_video_refuses(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"\.mp4"):
        write_video(tmp_path / "a.gif", torch.zeros(2, 3, 4, 4))
    with pytest.raises(InvalidInputError, match="at least one"):
        write_video(tmp_path / "a.mp4", torch.zeros(0, 3, 4, 4))
    with pytest.raises(InvalidInputError, match="one size"):
        write_video(tmp_path / "a.mp4", iter([torch.zeros(3, 4, 4), torch.zeros(3, 6, 4)]))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    with pytest.raises(FileFormatError):
        read_video_info(tmp_path / "a.mp4")
