"""One picture of many rendered objects, to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from maquette.io.atomic import atomic_path

_THUMBNAIL = 112
_LABEL_HEIGHT = 13
_COLUMNS = 12
_BACKGROUND = (203, 216, 230)


def write_contact_sheet(path: Path, pictures: Mapping[str, Sequence[NDArray[np.uint8]]]) -> None:
    """Writes a PNG sheet.

    Args:
        path: the file.
        pictures: RGBA `[H, W, 4]` uint8 per object id, in order; nothing is written when empty.
    """
    tiles = [(name, picture) for name, items in pictures.items() for picture in items]
    if not tiles:
        return
    rows = -(-len(tiles) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _THUMBNAIL, rows * (_THUMBNAIL + _LABEL_HEIGHT)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for position, (name, picture) in enumerate(tiles):
        x = position % _COLUMNS * _THUMBNAIL
        y = position // _COLUMNS * (_THUMBNAIL + _LABEL_HEIGHT)
        tile = Image.new("RGBA", (picture.shape[1], picture.shape[0]), (*_BACKGROUND, 255))
        tile.alpha_composite(Image.fromarray(np.ascontiguousarray(picture)))
        resized = tile.convert("RGB").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        sheet.paste(resized, (x, y))
        draw.text((x + 1, y + _THUMBNAIL), name[-18:], fill=(0, 0, 0), font_size=10)
    with atomic_path(path) as temporary:
        sheet.save(temporary, compress_level=6)
