"""Stand-ins for the two networks: what they make says which request it was made for."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maquette.gaussians import Gaussians
from maquette.models.mvdream.params import MVDREAM_MINI
from maquette.views import Views

NUM_GAUSSIANS = 64


def color_of(*parts: object) -> tuple[int, int, int]:
    """A colour, 16..239 per channel, that stands for a request."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return (16 + digest[0] % 224, 16 + digest[1] % 224, 16 + digest[2] % 224)


def disc_picture(color: tuple[int, int, int], size: int = 160) -> bytes:
    """PNG of a disc of one colour on a transparent background."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    pixels[np.hypot(x, y) < 0.35 * size] = (*color, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def zipped(folder: Path, prefix: str = "") -> bytes:
    """A .zip of a folder of views."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, prefix + path.relative_to(folder).as_posix())
    return stream.getvalue()


class DiscGenerator:
    """Stands for the diffusion network: the picture on all four sides, or a disc in the colour of prompt and seed."""

    params = MVDREAM_MINI
    device = torch.device("cpu")

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.before = before

    def __call__(self, prompt: str, picture: Tensor | None, *, seed: int, progress: Any, **_: Any) -> Tensor:
        self.before()
        for step in range(3):
            progress(step, 3)
        if picture is None:
            with Image.open(io.BytesIO(disc_picture(color_of(prompt, seed), self.params.image_size))) as image:
                pixels = torch.from_numpy(np.asarray(image).copy())
            picture = pixels.permute(2, 0, 1).float() / 255
        return picture[None, None].repeat(1, 4, 1, 1, 1)


class DiscModel:
    """Stands for the reconstruction network: Gaussians in the mean colour of the first view."""

    name = "disc-model"

    def __call__(self, views: Views) -> Gaussians:
        inside = views.images[0, 3] > 0.99
        color = views.images[0, :3, inside].median(dim=1).values
        angle = torch.linspace(0, 6.28, NUM_GAUSSIANS)
        means = torch.stack([angle.cos(), angle.sin(), angle / 10], dim=1) * 0.3
        return Gaussians(
            means,
            torch.tensor([[1.0, 0, 0, 0]]).repeat(NUM_GAUSSIANS, 1),
            torch.full((NUM_GAUSSIANS, 3), 0.05),
            torch.full((NUM_GAUSSIANS,), 0.9),
            color.repeat(NUM_GAUSSIANS, 1),
        )


def color_in_ply(data: bytes) -> tuple[int, int, int]:
    """The colour of the first Gaussian of a 3DGS .ply, read here independently of the library's reader."""
    header, _, body = data.partition(b"end_header\n")
    names = [line.split()[2].decode() for line in header.splitlines() if line.startswith(b"property float")]
    row = np.frombuffer(body, "<f4", len(names))
    assert f"element vertex {NUM_GAUSSIANS}".encode() in header
    assert len(body) == NUM_GAUSSIANS * len(names) * 4
    values = [0.5 + 0.28209479177387814 * row[names.index(f"f_dc_{channel}")] for channel in range(3)]
    red, green, blue = (round(float(value) * 255) for value in values)
    return red, green, blue
