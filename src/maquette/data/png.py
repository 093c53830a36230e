"""Fast decoding of the pictures that this package wrote: PNG without interlacing, 8-bit RGBA or 16-bit grey.

Data sets hold a hundred thousand of them. Unlike a general reader, everything here runs outside of the interpreter
lock (zlib and one compiled function), so threads scale with the cores. Format: ISO/IEC 15948, section 9 for filters.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from maquette.errors import FileFormatError
from maquette.raster.cpu_jit import compiled

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGBA8 = (8, 6, 0, 0, 0)  # bit depth, colour type, compression, filter method, interlace
_GRAY16 = (16, 0, 0, 0, 0)


def decode_rgba(data: bytes, target: NDArray[np.uint8]) -> None:
    """Decodes one picture into `target` `[4, H, W]`.

    Raises:
        FileFormatError: not a PNG of this kind and size, or truncated or damaged.
    """
    _decode(data, target, _RGBA8, "an 8-bit RGBA PNG")


def decode_gray16(data: bytes, target: NDArray[np.uint16]) -> None:
    """Decodes one 16-bit grey picture into `target` `[H, W]`.

    Raises:
        FileFormatError: not a PNG of this kind and size, or truncated or damaged.
    """
    planes = np.empty((2, *target.shape), np.uint8)  # high bytes, low bytes
    _decode(data, planes, _GRAY16, "a 16-bit grey PNG")
    np.left_shift(planes[0], 8, out=target, dtype=np.uint16)
    target |= planes[1]


def _decode(data: bytes, target: NDArray[np.uint8], wanted: tuple[int, ...], name: str) -> None:
    """Decodes into one plane per byte of a pixel, `[C, H, W]`."""
    channels, height, width = target.shape
    chunks = memoryview(data)
    if not data.startswith(_SIGNATURE) or len(data) < 33 or data[12:16] != b"IHDR":
        raise FileFormatError("it is not a PNG")
    found_width, found_height, *kind = struct.unpack(">IIBBBBB", chunks[16:29])
    if tuple(kind) != wanted:
        raise FileFormatError(f"it is not {name} without interlacing (depth {kind[0]}, type {kind[1]})")
    if (found_width, found_height) != (width, height):
        raise FileFormatError(f"it has {found_width} x {found_height} pixels, expected {width} x {height}")
    size = height * (1 + channels * width)
    raw = _inflate(b"".join(_picture_chunks(chunks)), size)
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + channels * width)
    if not _unfilter(rows, target):
        raise FileFormatError("it is damaged (unknown filter)")


def _picture_chunks(data: memoryview) -> list[memoryview]:
    """Contents of the IDAT chunks."""
    found: list[memoryview] = []
    position = len(_SIGNATURE)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        name = bytes(data[position + 4 : position + 8])
        if position + 12 + length > len(data):
            break
        if name == b"IDAT":
            found.append(data[position + 8 : position + 8 + length])
        if name == b"IEND":
            return found
        position += 12 + length
    raise FileFormatError("it is truncated")


def _inflate(packed: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(packed, size)
        surplus = inflater.decompress(inflater.unconsumed_tail, 1)  # also reads the checksum
    except zlib.error as error:
        raise FileFormatError(f"it is damaged ({error})") from error
    if len(raw) != size or surplus or not inflater.eof:
        raise FileFormatError("it is damaged (wrong amount of data)")
    return raw


@compiled()
def _unfilter(rows: NDArray[np.uint8], target: NDArray[np.uint8]) -> bool:
    """Undoes the row filters of `[H, 1 + C W]` into `[C, H, W]`; False for an unknown filter."""
    channels, height, width = target.shape
    for y in range(height):
        kind = rows[y, 0]
        if kind > 4:
            return False
        for x in range(width):
            for c in range(channels):
                left = int(target[c, y, x - 1]) if x > 0 else 0
                up = int(target[c, y - 1, x]) if y > 0 else 0
                guess = 0
                if kind == 1:
                    guess = left
                elif kind == 2:
                    guess = up
                elif kind == 3:
                    guess = (left + up) // 2
                elif kind == 4:
                    corner = int(target[c, y - 1, x - 1]) if x > 0 and y > 0 else 0
                    guess = _paeth(left, up, corner)
                target[c, y, x] = (int(rows[y, 1 + channels * x + c]) + guess) & 0xFF
    return True


@compiled()
def _paeth(left: int, up: int, corner: int) -> int:
    estimate = left + up - corner
    to_left, to_up, to_corner = abs(estimate - left), abs(estimate - up), abs(estimate - corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner
