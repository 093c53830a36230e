"""Posed views in a .zip that a stranger sent: what it claims is not believed."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from maquette.errors import FileFormatError
from maquette.io import IMAGE_SUFFIXES
from maquette.io.images import read_image_info
from maquette.io.transforms import FILE_NAME

MAX_FILES = 64
"""Most files of a .zip of views."""

_MAX_ENTRIES = 1000
_ENTRY_MARK = b"PK\x01\x02"  # starts an entry of the table of contents
_KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_WHAT_IT_NEEDS = f"it must hold {FILE_NAME} and the pictures that it names"


def check_views_zip(data: bytes, *, max_bytes: int) -> None:
    """Checks the table of contents, without unpacking anything.

    Args:
        data: the .zip.
        max_bytes: of all its files together, unpacked.

    Raises:
        FileFormatError: not a .zip, too much in it, names that lead elsewhere, or no `transforms.json`.
    """
    with _opened(data) as archive:
        _members(archive, max_bytes)


def unpack_views(data: bytes, folder: Path, *, max_bytes: int, max_pixels: int) -> Path:
    """Unpacks a .zip of views into a folder and returns the folder of its `transforms.json`.

    Args:
        data: the .zip.
        folder: created; nothing is written outside it.
        max_bytes: of all files together, counted while they are unpacked.
        max_pixels: of each picture, read from its header.

    Raises:
        FileFormatError: as `check_views_zip`, or the content is broken, longer than stated, or has too many pixels.
    """
    with _opened(data) as archive:
        members = _members(archive, max_bytes)
        for info in members:
            target = folder / info.filename
            try:
                with archive.open(info) as stream:
                    content = stream.read(info.file_size + 1)
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
                raise FileFormatError(f"the .zip is broken at {info.filename[:80]!r}: {error}") from error
            if len(content) != info.file_size:
                raise FileFormatError(f"the .zip is broken: {info.filename[:80]!r} has another length than it says")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            except OSError as error:  # one name is a file and a folder, or too long
                raise FileFormatError(f"the .zip has a name that cannot be used: {info.filename[:80]!r}") from error
            if target.suffix.lower() in IMAGE_SUFFIXES:
                read_image_info(target, max_pixels=max_pixels)
        return folder / PurePosixPath(_camera_file(members)).parent


def _opened(data: bytes) -> zipfile.ZipFile:
    if data.count(_ENTRY_MARK) > _MAX_ENTRIES:  # before memory is taken for each of them
        raise FileFormatError(f"the .zip has more than {_MAX_ENTRIES} entries; {_WHAT_IT_NEEDS}, four views")
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError) as error:
        raise FileFormatError(f"the views are not a readable .zip ({error}); {_WHAT_IT_NEEDS}") from error


def _members(archive: zipfile.ZipFile, max_bytes: int) -> list[zipfile.ZipInfo]:
    """The camera file and the pictures; other kinds of files are left where they are."""
    infos = [info for info in archive.infolist() if not info.is_dir()]
    wanted = [info for info in infos if _is_wanted(PurePosixPath(info.filename))]
    if len(wanted) > MAX_FILES:
        raise FileFormatError(f"the .zip has {len(wanted):,} files, at most {MAX_FILES} are taken; pick four views")
    for info in wanted:
        _check_member(info)
    total = sum(info.file_size for info in wanted)
    if total > max_bytes:
        raise FileFormatError(f"the .zip unpacks to {total:,} bytes, at most {max_bytes:,} are taken")
    _camera_file(wanted)
    return wanted


def _is_wanted(path: PurePosixPath) -> bool:
    hidden = any(part.startswith("__MACOSX") or (part[0] == "." and part != "..") for part in path.parts)
    return not hidden and (path.name == FILE_NAME or path.suffix.lower() in IMAGE_SUFFIXES)


def _check_member(info: zipfile.ZipInfo) -> None:
    path = PurePosixPath(info.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in info.filename or "\0" in info.filename:
        raise FileFormatError(f"the .zip has a name that leads out of it: {info.filename[:80]!r}")
    if info.compress_type not in _KINDS or info.flag_bits & _ENCRYPTED:
        raise FileFormatError(f"{info.filename[:80]!r} in the .zip is encrypted or packed in a way that is not read")


def _camera_file(members: list[zipfile.ZipInfo]) -> str:
    found = [info.filename for info in members if PurePosixPath(info.filename).name == FILE_NAME]
    if len(found) != 1:
        raise FileFormatError(f"the .zip has {len(found)} files {FILE_NAME}, needs one: {_WHAT_IT_NEEDS}")
    return found[0]
