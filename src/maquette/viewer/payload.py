"""`Payload`: the arrays of one object as they travel in a page, and their packing."""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_TYPES = {"uint8": "Uint8Array", "int8": "Int8Array", "uint16": "Uint16Array", "uint32": "Uint32Array"}
_TYPES |= {"float32": "Float32Array"}
_LEVEL = 7
"""Of zlib: higher levels take several times as long for about 1 % of the size."""


@dataclass(frozen=True)
class Payload:
    """One object, ready for a page.

    Attributes:
        kind: what the arrays describe.
        count: Gaussians, or triangles.
        center: middle of the object in the world.
        radius: of the sphere about `center` that holds (nearly) all of it, world units, > 0.
        arrays: by name, `[rows]` or `[rows, columns]`, of a type that the browser has.
        details: further facts for the page, as JSON.
    """

    kind: Literal["gaussians", "mesh"]
    count: int
    center: tuple[float, float, float]
    radius: float
    arrays: dict[str, Array]
    details: dict[str, Any]


def pack_arrays(arrays: dict[str, Array]) -> tuple[list[dict[str, Any]], bytes]:
    """Joins arrays to one zlib stream, and says where each lies.

    Of every array come the first bytes of all rows, then all second bytes and so on, which compresses far better than
    row after row.

    Returns:
        For every array its name, type (as JavaScript calls it), number of rows, bytes of a row and first byte in the
        unpacked stream; and the stream.
    """
    entries: list[dict[str, Any]] = []
    compressor = zlib.compressobj(_LEVEL)
    parts: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        rows = np.ascontiguousarray(array)
        little = rows if sys.byteorder == "little" else rows.byteswap()
        stride = little.nbytes // max(len(little), 1)
        planes = np.ascontiguousarray(little.view(np.uint8).reshape(len(little), stride).T)
        entry = {"name": name, "type": _TYPES[rows.dtype.name], "rows": len(rows), "stride": stride, "offset": offset}
        entries.append(entry)
        parts.append(compressor.compress(planes.tobytes()))
        offset += little.nbytes
    parts.append(compressor.flush())
    return entries, b"".join(parts)
