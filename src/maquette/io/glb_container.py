"""The GLB container (glTF 2.0, chapters 3.6 and 4): chunks, buffer views and accessors, every range checked."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maquette.errors import FileFormatError, UnsupportedError

_MAGIC = b"glTF"
_CHUNK_JSON, _CHUNK_BIN = 0x4E4F534A, 0x004E4942
_MAX_JSON_BYTES = 32 << 20
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_KNOWN_EXTENSIONS = {
    "EXT_texture_webp",
    "KHR_lights_punctual",
    "KHR_mesh_quantization",
    "KHR_texture_transform",
}
_COMPRESSIONS = {"KHR_draco_mesh_compression": "Draco", "EXT_meshopt_compression": "meshopt"}


class GlbDocument:
    """A parsed container: checked access to its JSON objects, accessors and embedded images.

    Args:
        data: the whole file.
        name: stands in error messages.

    Raises:
        FileFormatError: not a GLB or a malformed one.
        UnsupportedError: the file requires an extension that is not known here.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        text, self._binary = _split_chunks(data, name)
        self.json = _parse_json(text, name)
        version = str(self.obj(self.json.get("asset", {}), "asset").get("version", ""))
        if version.split(".")[0] != "2":
            raise FileFormatError(f"{name}: glTF asset version '{version[:20]}'; only 2.x is read")
        self._check_extensions()

    def _check_extensions(self) -> None:
        required = self.json.get("extensionsRequired", [])
        unknown = []
        for extension in required if isinstance(required, list) else []:
            if extension in _COMPRESSIONS:
                raise UnsupportedError(
                    f"{self.name}: the mesh is compressed with {_COMPRESSIONS[extension]} ({extension}); "
                    "export it without compression"
                )
            if extension not in _KNOWN_EXTENSIONS and not str(extension).startswith("KHR_materials_"):
                unknown.append(str(extension)[:60])
        if unknown:
            raise UnsupportedError(f"{self.name}: requires glTF extensions that are not read: {', '.join(unknown[:8])}")

    def fail(self, message: str) -> FileFormatError:
        """An error of this file, to be raised."""
        return FileFormatError(f"{self.name}: {message}")

    def obj(self, value: Any, what: str) -> dict[str, Any]:
        """`value` if it is a JSON object."""
        if not isinstance(value, dict):
            raise self.fail(f"{what} is not a JSON object")
        return value

    def index(self, value: Any, what: str) -> int:
        """`value` if it is a non-negative integer."""
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
            raise self.fail(f"{what} must be a non-negative integer, got {str(value)[:40]}")
        return value

    def numbers(self, value: Any, count: int, what: str) -> list[float]:
        """`value` if it is a list of `count` finite numbers."""
        good = isinstance(value, list) and len(value) == count
        good = good and all(isinstance(v, int | float) and abs(v) < 1e30 for v in value)
        if not good:
            raise self.fail(f"{what} must be {count} finite numbers")
        return [float(v) for v in value]

    def number(self, value: Any, what: str) -> float:
        """`value` if it is a finite number."""
        return self.numbers([value], 1, what)[0]

    def item(self, table: str, index: Any) -> dict[str, Any]:
        """Entry `index` of a top-level array such as "meshes"."""
        items = self.json.get(table, [])
        position = self.index(index, f"index into {table}")
        if not isinstance(items, list) or position >= len(items):
            raise self.fail(f"{table}[{position}] does not exist")
        return self.obj(items[position], f"{table}[{position}]")

    def view_bytes(self, index: Any) -> memoryview:
        """Bytes of a buffer view, which must lie inside the binary chunk."""
        view = self.item("bufferViews", index)
        if "EXT_meshopt_compression" in self.obj(view.get("extensions", {}), "extensions"):
            raise UnsupportedError(f"{self.name}: the mesh is compressed with meshopt; export it without compression")
        buffer_index = self.index(view.get("buffer"), "bufferView.buffer")
        if buffer_index != 0 or "uri" in self.item("buffers", 0):
            raise UnsupportedError(f"{self.name}: uses a buffer outside the file; export one self-contained .glb")
        start = self.index(view.get("byteOffset", 0), "bufferView.byteOffset")
        length = self.index(view.get("byteLength"), "bufferView.byteLength")
        if start + length > len(self._binary):
            raise self.fail(
                f"bufferViews[{index}] claims bytes {start:,} to {start + length:,}, the file has {len(self._binary):,}"
            )
        return self._binary[start : start + length]

    def accessor_count(self, index: Any) -> int:
        """Number of elements that an accessor claims."""
        return self.index(self.item("accessors", index).get("count"), f"accessors[{index}].count")

    def accessor(self, index: Any, types: tuple[str, ...]) -> NDArray[Any]:
        """Values of an accessor `[count, width]`: normalised integers as float32 in 0..1, others as stored.

        Args:
            index: into "accessors".
            types: allowed types such as "VEC3".
        """
        accessor = self.item("accessors", index)
        what = f"accessors[{index}]"
        if "sparse" in accessor or "bufferView" not in accessor:
            raise UnsupportedError(f"{self.name}: {what} is sparse or compressed; export without compression")
        kind, component = accessor.get("type"), accessor.get("componentType")
        if kind not in types or not isinstance(kind, str):
            raise self.fail(f"{what} has type {str(kind)[:20]}, expected {' or '.join(types)}")
        if not isinstance(component, int) or component not in _COMPONENTS:
            raise self.fail(f"{what} has componentType {str(component)[:20]}")
        dtype = np.dtype(_COMPONENTS[component])
        count, width = self.accessor_count(index), _WIDTHS[kind]
        element = dtype.itemsize * width
        view = self.item("bufferViews", accessor["bufferView"])
        stride = self.index(view.get("byteStride", element), "byteStride")
        offset = self.index(accessor.get("byteOffset", 0), "accessor.byteOffset")
        data = self.view_bytes(accessor["bufferView"])
        if count == 0 or stride < element or stride > 252 + element:
            raise self.fail(f"{what} has count {count} and stride {stride} for elements of {element} bytes")
        if offset + stride * (count - 1) + element > len(data):
            raise self.fail(f"{what} claims {count:,} elements of {element} bytes, its buffer view has {len(data):,}")
        values: NDArray[Any] = np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize))
        if accessor.get("normalized") is True and dtype.kind in "iu":
            scaled = values.astype(np.float32) / np.float32(np.iinfo(dtype).max)
            values = np.maximum(scaled, np.float32(-1))
        return values.astype(values.dtype.newbyteorder("="))

    def image_bytes(self, index: Any) -> bytes:
        """Encoded bytes of an embedded image."""
        image = self.item("images", index)
        if "bufferView" in image:
            return bytes(self.view_bytes(image["bufferView"]))
        uri = image.get("uri")
        if not isinstance(uri, str) or not uri.startswith("data:") or ";base64," not in uri[:128]:
            raise UnsupportedError(f"{self.name}: images[{index}] is an external file; export one self-contained .glb")
        try:
            return base64.b64decode(uri.split(",", 1)[1], validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.fail(f"images[{index}] is not valid base64") from error


def _split_chunks(data: bytes, name: str) -> tuple[bytes, memoryview]:
    """JSON text and binary chunk of a container."""
    if len(data) < 20 or data[:4] != _MAGIC:
        raise FileFormatError(f"{name}: not a GLB file (it does not begin with 'glTF', or is cut off)")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise FileFormatError(f"{name}: GLB version {version}; only 2 is read")
    if length > len(data):
        raise FileFormatError(f"{name}: truncated: the header claims {length:,} bytes, the file has {len(data):,}")
    text: bytes | None = None
    binary = memoryview(b"")
    position = 12
    while position + 8 <= length:
        size, kind = struct.unpack_from("<II", data, position)
        position += 8
        if position + size > length:
            raise FileFormatError(f"{name}: a chunk claims {size:,} bytes, the file has {length - position:,} left")
        if kind == _CHUNK_JSON and text is None:
            if size > _MAX_JSON_BYTES:
                raise FileFormatError(
                    f"{name}: the JSON chunk has {size:,} bytes, at most {_MAX_JSON_BYTES:,} are read"
                )
            text = data[position : position + size]
        elif kind == _CHUNK_BIN and not len(binary):
            binary = memoryview(data)[position : position + size]
        position += size
    if text is None:
        raise FileFormatError(f"{name}: the GLB file has no JSON chunk")
    return text, binary


def _parse_json(text: bytes, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{name}: the JSON chunk is malformed: {error}") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{name}: the JSON chunk is not an object")
    return content
