"""The PLY container: header and tables of elements, in bounded memory. Meaning is given by the modules above it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maquette.errors import FileFormatError, UnsupportedError
from maquette.io.regular import checked_file_size

_MAX_HEADER_BYTES = 1 << 18
_SCALAR_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_BYTE_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True)
class PlyProperty:
    """One column: numpy type code without byte order; `count_type` is set for lists."""

    name: str
    type: str
    count_type: str | None = None


@dataclass(frozen=True)
class PlyElement:
    """One table: its name, number of rows and columns."""

    name: str
    count: int
    properties: tuple[PlyProperty, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(p.name for p in self.properties)


@dataclass(frozen=True)
class PlyHeader:
    """Encoding, tables in file order, offset of the first byte after the header and size of the file."""

    encoding: str
    elements: tuple[PlyElement, ...]
    body_offset: int
    file_size: int

    def element(self, name: str) -> PlyElement | None:
        """The table of that name, or None."""
        return next((e for e in self.elements if e.name == name), None)


def is_gaussian_header(header: PlyHeader) -> bool:
    """True when the vertices carry what only Gaussian files have (or are a compressed Gaussian file)."""
    vertex = header.element("vertex")
    names = set(vertex.names) if vertex else set()
    return bool(names & {"scale_0", "rot_0", "f_dc_0", "packed_position"})


def read_ply_header(path: str | Path) -> PlyHeader:
    """Reads and checks the header.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: not a PLY file, or a malformed header.
    """
    size = checked_file_size(path, "a .ply file")
    with Path(path).open("rb") as stream:
        head = stream.read(_MAX_HEADER_BYTES)
    if not head.startswith((b"ply\n", b"ply\r")):
        raise FileFormatError(f"{path}: not a PLY file (it does not begin with 'ply')")
    position = head.find(b"end_header")
    newline = head.find(b"\n", position)
    if position < 0 or newline < 0:
        raise FileFormatError(f"{path}: the PLY header does not end ('end_header' missing in {len(head):,} bytes)")
    lines = head[:position].decode("latin-1").split("\n")[1:]
    try:
        encoding, elements = _parse_header_lines([line.split() for line in lines])
    except ValueError as error:
        raise FileFormatError(f"{path}: malformed PLY header: {error}") from error
    return PlyHeader(encoding, elements, newline + 1, size)


def _parse_header_lines(lines: list[list[str]]) -> tuple[str, tuple[PlyElement, ...]]:
    encoding = ""
    elements: list[PlyElement] = []
    for words in lines:
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) == 3 and words[1] in _BYTE_ORDERS:
            encoding = words[1]
        elif words[0] == "element" and len(words) == 3 and words[2].isascii() and words[2].isdigit():
            elements.append(PlyElement(words[1], int(words[2][:20]), ()))
        elif words[0] == "property" and elements:
            last = elements[-1]
            column = _parse_property(words)
            if column.name in last.names:
                raise ValueError(f"property '{column.name}' occurs twice")
            elements[-1] = PlyElement(last.name, last.count, (*last.properties, column))
        else:
            raise ValueError(f"line '{' '.join(words)[:80]}'")
    if not encoding:
        raise ValueError(f"no 'format' line; valid are {', '.join(_BYTE_ORDERS)}")
    return encoding, tuple(elements)


def _parse_property(words: list[str]) -> PlyProperty:
    if len(words) == 3 and words[1] in _SCALAR_TYPES:
        return PlyProperty(words[2], _SCALAR_TYPES[words[1]])
    if len(words) == 5 and words[1] == "list" and words[2] in _SCALAR_TYPES and words[3] in _SCALAR_TYPES:
        return PlyProperty(words[4], _SCALAR_TYPES[words[3]], _SCALAR_TYPES[words[2]])
    raise ValueError(f"line '{' '.join(words)[:80]}'")


def read_ply_table(path: str | Path, header: PlyHeader, name: str) -> dict[str, NDArray[np.float64 | np.float32]]:
    """Reads one element as columns by name: `[count]`, or `[count, k]` for a list of constant length k.

    Raises:
        FileFormatError: the table is missing, larger than the file, or malformed.
        UnsupportedError: lists of varying length, or several lists in one element.
    """
    if header.element(name) is None:
        raise FileFormatError(f"{path}: the PLY file has no element '{name}'")
    table = _read_ascii(path, header, name) if header.encoding == "ascii" else _read_binary(path, header, name)
    return {str(column): table[column] for column in table.dtype.names or () if not column.startswith(_COUNT)}


_COUNT = "\0count "
"""Prefix of the columns that hold list lengths; no property can be called so."""


def _row_dtype(element: PlyElement, order: str, list_length: int) -> np.dtype[np.void]:
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
    for column in element.properties:
        if column.count_type is None:
            fields.append((column.name, order + column.type))
        else:
            fields.append((_COUNT + column.name, order + column.count_type))
            fields.append((column.name, order + column.type, (list_length,)))
    return np.dtype(fields)


def _check_lists(path: str | Path, element: PlyElement) -> PlyProperty | None:
    lists = [p for p in element.properties if p.count_type is not None]
    if len(lists) > 1:
        raise UnsupportedError(f"{path}: element '{element.name}' has {len(lists)} list properties; at most 1 is read")
    return lists[0] if lists else None


def _check_uniform(path: str | Path, element: PlyElement, table: NDArray[np.void], length: int) -> None:
    column = _check_lists(path, element)
    if column is not None and not bool((table[_COUNT + column.name] == length).all()):
        raise UnsupportedError(
            f"{path}: '{element.name}' mixes lists of different length (or is malformed); triangulate the mesh first"
        )


def _read_binary(path: str | Path, header: PlyHeader, name: str) -> NDArray[np.void]:
    order = _BYTE_ORDERS[header.encoding]
    offset = header.body_offset
    for element in header.elements:
        length = 0
        column = _check_lists(path, element)
        if column is not None and element.count:
            length = _peek_list_length(path, header, element, column, offset)
        dtype = _row_dtype(element, order, length)
        needed = element.count * dtype.itemsize
        if offset + needed > header.file_size:
            raise FileFormatError(
                f"{path}: the header claims {element.count:,} x {dtype.itemsize} bytes of '{element.name}', "
                f"the file has {header.file_size - offset:,} left (truncated or malformed)"
            )
        if element.name == name or column is not None:
            table: NDArray[np.void] = np.fromfile(path, dtype, count=element.count, offset=offset)
            _check_uniform(path, element, table, length)
            if element.name == name:
                return table
        offset += needed
    raise FileFormatError(f"{path}: the PLY file has no element '{name}'")


def _peek_list_length(
    path: str | Path, header: PlyHeader, element: PlyElement, column: PlyProperty, offset: int
) -> int:
    order = _BYTE_ORDERS[header.encoding]
    before = element.properties[: element.properties.index(column)]
    start = offset + sum(np.dtype(p.type).itemsize for p in before)
    dtype = np.dtype(order + str(column.count_type))
    if start + dtype.itemsize > header.file_size:
        raise FileFormatError(f"{path}: '{element.name}' is truncated")
    return _checked_length(path, float(np.fromfile(path, dtype, count=1, offset=start)[0]), header.file_size)


def _checked_length(path: str | Path, value: float, limit: int) -> int:
    if not 0 <= value <= min(limit, 1 << 16) or value != int(value):
        raise FileFormatError(f"{path}: a list claims {value:g} entries")
    return int(value)


def _read_ascii(path: str | Path, header: PlyHeader, name: str) -> NDArray[np.void]:
    with Path(path).open("rb") as stream:
        stream.seek(header.body_offset)
        tokens = stream.read(header.file_size).split()
    position = 0
    for element in header.elements:
        length = 0
        column = _check_lists(path, element)
        if column is not None and element.count:
            at = position + element.properties.index(column)
            length = _checked_length(path, _as_numbers(path, tokens[at : at + 1]).sum(), header.file_size)
        width = len(element.properties) + (length if column is not None else 0)
        needed = element.count * width
        if position + needed > len(tokens):
            raise FileFormatError(
                f"{path}: the header claims {needed:,} numbers of '{element.name}', the file has "
                f"{len(tokens) - position:,} left (truncated or malformed)"
            )
        if element.name == name:
            values = _as_numbers(path, tokens[position : position + needed]).reshape(element.count, width)
            table = _ascii_table(element, values, length)
            _check_uniform(path, element, table, length)
            return table
        position += needed
    raise FileFormatError(f"{path}: the PLY file has no element '{name}'")


def _as_numbers(path: str | Path, tokens: list[bytes]) -> NDArray[np.float64]:
    try:
        return np.array([float(token) for token in tokens], dtype=np.float64)
    except ValueError as error:
        raise FileFormatError(f"{path}: not a number in the PLY table: {error}") from error


def _ascii_table(element: PlyElement, values: NDArray[np.float64], length: int) -> NDArray[np.void]:
    wide = PlyElement(
        element.name,
        element.count,
        tuple(PlyProperty(p.name, "f8", "f8" if p.count_type else None) for p in element.properties),
    )
    dtype = _row_dtype(wide, "=", length)
    return np.ascontiguousarray(values).view(dtype).reshape(element.count)
