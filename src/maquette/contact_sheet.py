"""Contact sheets: rows of labelled pictures on one white page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from maquette.errors import InvalidInputError

_MARGIN_PX = 8
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)
_FRAME = (214, 214, 214)


@dataclass(frozen=True)
class SheetRow:
    """One row of a contact sheet.

    Attributes:
        title: printed above the row.
        pictures: `[V, 3, H, W]`, 0..1, sRGB-encoded.
        labels: one per picture, printed below it.
    """

    title: str
    pictures: Tensor
    labels: Sequence[str]

    def __post_init__(self) -> None:
        if self.pictures.ndim != 4 or self.pictures.shape[1] != 3 or self.pictures.numel() == 0:
            raise InvalidInputError(f"pictures must be [V, 3, H, W], got {list(self.pictures.shape)}")
        if len(self.labels) != self.pictures.shape[0]:
            raise InvalidInputError(f"{self.pictures.shape[0]} pictures need as many labels, got {len(self.labels)}")


def contact_sheet(rows: Sequence[SheetRow], *, tile_size: int = 224, font_px: int = 15) -> Tensor:
    """Lays out rows of pictures with titles and labels.

    Args:
        rows: top to bottom; rows may differ in the number and size of pictures.
        tile_size: side of one picture on the sheet in pixels, >= 16; other sizes are resampled, keeping proportions.
        font_px: height of the letters in pixels, >= 6.

    Returns:
        `[3, H, W]`, 0..1.

    Raises:
        InvalidInputError: there is no row, or a size is too small.
    """
    if not rows:
        raise InvalidInputError("a contact sheet needs at least one row")
    if tile_size < 16 or font_px < 6:
        raise InvalidInputError(f"tile_size must be >= 16 and font_px >= 6, got {tile_size} and {font_px}")
    font = ImageFont.load_default(size=font_px)
    line = font_px + _MARGIN_PX
    columns = max(len(row.labels) for row in rows)
    row_height = line + tile_size + line
    width = _MARGIN_PX + columns * (tile_size + _MARGIN_PX)
    sheet = Image.new("RGB", (width, _MARGIN_PX + len(rows) * (row_height + _MARGIN_PX)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        top = _MARGIN_PX + index * (row_height + _MARGIN_PX)
        draw.text((_MARGIN_PX, top), row.title, fill=_INK, font=font)
        for column, (picture, label) in enumerate(zip(row.pictures, row.labels, strict=True)):
            left = _MARGIN_PX + column * (tile_size + _MARGIN_PX)
            sheet.paste(_tile(picture, tile_size), (left, top + line))
            draw.rectangle((left - 1, top + line - 1, left + tile_size, top + line + tile_size), outline=_FRAME)
            below = (left + tile_size // 2, top + line + tile_size + _MARGIN_PX // 2)
            draw.text(below, label, fill=_INK, font=font, anchor="ma")
    pixels = torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255.0)
    return pixels.permute(2, 0, 1).contiguous()


def _tile(picture: Tensor, size: int) -> Image.Image:
    height, width = picture.shape[-2:]
    scale = size / max(height, width)
    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    picture = picture.detach().to("cpu", torch.float32)
    resized = functional.interpolate(picture[None], shape, mode="bilinear", antialias=True, align_corners=False)[0]
    pixels = (resized.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    tile = Image.new("RGB", (size, size), _PAPER)
    tile.paste(Image.fromarray(pixels), ((size - shape[1]) // 2, (size - shape[0]) // 2))
    return tile
