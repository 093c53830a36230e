"""Files of all kinds become cut-outs."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maquette.errors import FileFormatError
from maquette.io import read_image, write_image
from maquette.picture.prepare import prepare_picture
from picture_scenes import BROWN, SIZE, disc, flat, over, overlap


@pytest.fixture(autouse=True)
def no_rembg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without models of rembg."""
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "models"))


def pillow_picture() -> Image.Image:
    """A brown disc on light gray, off centre."""
    image = over(BROWN, disc(0.2, -0.1, 0.4), flat(0.9, 0.9, 0.9))
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def deep_png(path: Path, values: np.ndarray, color_type: int) -> None:
    """A PNG of 16 bits per channel: gray 0, RGB 2, gray with alpha 4, RGBA 6."""
    height, width = values.shape[:2]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = values.astype(">u2").reshape(height, -1)
    packed = zlib.compress(b"".join(b"\x00" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def save(kind: str, folder: Path) -> Path:
    picture = pillow_picture()
    path = folder / f"{kind}.png"
    if kind == "jpeg":
        path = folder / "picture.jpg"
        picture.save(path, quality=80)
    elif kind == "cmyk":
        path = folder / "cmyk.jpg"
        picture.convert("CMYK").save(path, quality=95)
    elif kind == "palette":
        picture.quantize(16).save(path)
    elif kind == "palette-alpha":
        indexed = picture.quantize(16)
        indexed.save(path, transparency=indexed.getpixel((0, 0)))
    elif kind == "webp":
        path = folder / "picture.webp"
        picture.save(path, quality=80)
    elif kind.startswith("deep"):
        color = np.asarray(picture).astype(np.int64) * 257
        alpha = (disc(0.2, -0.1, 0.4).numpy() * 65535).astype(np.int64)[..., None]
        gray = color.mean(axis=-1, keepdims=True)
        channels = {"0": [gray], "2": [color], "4": [gray, alpha], "6": [color, alpha]}[kind[-1]]
        deep_png(path, np.concatenate(channels, axis=-1), int(kind[-1]))
    elif kind == "transparent-black":
        pixels = np.zeros((SIZE, SIZE, 4), dtype=np.uint8)
        pixels[..., 3] = (disc(0.2, -0.1, 0.4).numpy() * 255).astype(np.uint8)
        pixels[pixels[..., 3] > 0, :3] = (102, 51, 26)
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    "kind",
    ["jpeg", "cmyk", "palette", "palette-alpha", "webp", "deep0", "deep2", "deep4", "deep6", "transparent-black"],
)
def test_every_kind_of_file_is_prepared(kind: str, tmp_path: Path) -> None:
    prepared = prepare_picture(read_image(save(kind, tmp_path)), size=128)
    has_alpha = kind in ("palette-alpha", "deep4", "deep6", "transparent-black")
    assert prepared.cut_out_by == ("alpha" if has_alpha else "plain")
    assert overlap(prepared.image[3], disc(radius=0.8, size=128)) > 0.93
    center = prepared.image[:3, 54:74, 54:74].mean(dim=(1, 2))
    gray = kind in ("deep0", "deep4")
    expected = torch.full((3,), 0.7 / 3) if gray else torch.tensor([0.4, 0.2, 0.1])
    assert float((center - expected).abs().max()) < 0.06
    write_image(tmp_path / "prepared.png", prepared.image)


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    upright = over(BROWN, disc(0.0, -0.5, 0.3) + disc(0.0, 0.2, 0.4), flat(0.9, 0.9, 0.9))
    picture = Image.fromarray((upright * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    found = prepare_picture(read_image(tmp_path / "turned.jpg")).image
    assert overlap(found[3], prepare_picture(upright).image[3]) > 0.97


def test_files_beyond_the_limit_are_refused_before_they_are_read(tmp_path: Path) -> None:
    Image.new("L", (9000, 8000)).save(tmp_path / "huge.png")
    with pytest.raises(FileFormatError, match="9000 x 8000"):
        read_image(tmp_path / "huge.png")
