"""Where assets come from: one GLB, a folder of GLBs, or tar archives of GLBs, with an optional `index.csv`.

Archives are never unpacked: members are read by their position, so that names in an archive cannot write anywhere.
"""

from __future__ import annotations

import contextlib
import csv
import io
import lzma
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maquette.data.layout import ObjectInfo
from maquette.errors import FileFormatError, InvalidInputError
from maquette.mesh import Mesh

ARCHIVE_SUFFIXES = (".tar", ".tar.xz", ".txz")
INDEX_NAME = "index.csv"
_MAX_UNPACKED_BYTES = 64 << 30
_MAX_INDEX_BYTES = 256 << 20
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Asset:
    """One GLB.

    Attributes:
        info: id and metadata.
        path: the file or the archive that holds it.
        offset: first byte in `path`.
        size: bytes, or None for the whole file.
    """

    info: ObjectInfo
    path: Path
    offset: int = 0
    size: int | None = None

    def read_mesh(self) -> Mesh:
        """Reads the GLB.

        Raises:
            FileFormatError: it is not a valid GLB.
        """
        from maquette.io import read_mesh, read_mesh_bytes

        if self.size is None:
            return read_mesh(self.path)
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return read_mesh_bytes(stream.read(self.size), f"{self.info.id}.glb")


@dataclass(frozen=True)
class AssetList:
    """Assets sorted by id, and ids that an index lists without a file being there."""

    assets: tuple[Asset, ...]
    missing: tuple[str, ...]


@contextlib.contextmanager
def open_assets(source: str | Path, *, split: str | None = None, ids: tuple[str, ...] = ()) -> Iterator[AssetList]:
    """Lists assets; what compressed archives need on disk lives as long as the context.

    Args:
        source: a `.glb`, a `.tar` or `.tar.xz`, or a folder with any of these (GLBs at any depth). An `index.csv` in
            the folder, in an archive or beside it gives metadata (column `id`, others optional).
        split: only assets that the index puts into this split.
        ids: only these; () takes all.

    Raises:
        FileNotFoundError: `source` does not exist.
        FileFormatError: an archive or index is damaged.
        InvalidInputError: nothing to render, two assets with one id, an unknown id or split.
    """
    root = Path(source)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder (expected a .glb, a .tar(.xz) or a folder of them)")
    with contextlib.ExitStack() as stack:
        found, index = _collect(root, stack)
        yield _select(root, found, index, split, ids)


Found = list[tuple[str, Path, int, int | None]]
Index = dict[str, ObjectInfo]


def _collect(root: Path, stack: contextlib.ExitStack) -> tuple[Found, Index]:
    found: Found = []
    index: Index = {}
    if root.is_dir():
        archives = sorted(path for path in root.iterdir() if _is_archive(path))
        loose = sorted(path for path in root.rglob("*.glb") if path.is_file())
        for path in loose:
            name = "-".join(path.relative_to(root).with_suffix("").parts)
            found.append((re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-") or "asset", path, 0, None))
        index_path = root / INDEX_NAME
    elif _is_archive(root):
        archives, index_path = [root], root.parent / INDEX_NAME
    elif root.suffix.lower() == ".glb":
        name = re.sub(r"[^A-Za-z0-9._-]", "_", root.stem).lstrip(".-") or "asset"
        return [(name, root, 0, None)], {}
    else:
        raise InvalidInputError(f"{root} is not a .glb, {', '.join(ARCHIVE_SUFFIXES)} or folder")
    for archive in archives:
        members, inner = _list_archive(archive, stack)
        found.extend(members)
        index.update(inner)
    if not index and index_path.is_file():
        index = _parse_index(index_path.read_bytes(), index_path)
    return found, index


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)


def _list_archive(archive: Path, stack: contextlib.ExitStack) -> tuple[Found, Index]:
    plain = archive if archive.suffix.lower() == ".tar" else _decompress(archive, stack)
    total = plain.stat().st_size
    found: Found = []
    index: Index = {}
    try:
        with tarfile.open(plain, "r:") as tar:
            for member in tar:
                name = Path(member.name)
                if not member.isfile():
                    continue
                if member.offset_data + member.size > total:
                    raise FileFormatError(f"{archive} is truncated: {member.name} ends beyond its end")
                if name.suffix.lower() == ".glb":
                    found.append((name.stem, plain, member.offset_data, member.size))
                elif name.name == INDEX_NAME and member.size <= _MAX_INDEX_BYTES:
                    stream = tar.extractfile(member)
                    index = _parse_index(stream.read() if stream else b"", archive / INDEX_NAME)
    except tarfile.TarError as error:
        raise FileFormatError(f"{archive} is not a readable tar archive: {error}") from error
    return found, index


def _decompress(archive: Path, stack: contextlib.ExitStack) -> Path:
    """Decompresses `.tar.xz` into a temporary file."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="maquette-assets-"))
    target = Path(folder) / "assets.tar"
    try:
        with lzma.open(archive) as packed, target.open("wb") as out:
            while chunk := packed.read(1 << 22):
                out.write(chunk)
                if out.tell() > min(_MAX_UNPACKED_BYTES, shutil.disk_usage(folder).free + out.tell() - (1 << 28)):
                    raise FileFormatError(f"{archive} unpacks to more than {out.tell()} bytes: unpack it yourself")
    except (lzma.LZMAError, EOFError) as error:
        raise FileFormatError(f"{archive} is damaged or truncated: {error}") from error
    return target


def _parse_index(data: bytes, name: Path) -> Index:
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"{name} is not a UTF-8 CSV file: {error}") from error
    if not rows or not rows[0].get("id"):
        raise FileFormatError(f"{name} needs a header line with the column 'id' and at least one row")
    return {row["id"]: ObjectInfo.from_index(row) for row in rows if row.get("id")}


def _select(root: Path, found: Found, index: Index, split: str | None, ids: tuple[str, ...]) -> AssetList:
    names = [name for name, *_ in found]
    if not names:
        raise InvalidInputError(f"{root} holds no .glb file and no archive with one")
    seen: set[str] = set()
    for name in names:
        if not _ID.fullmatch(name):
            raise InvalidInputError(f"asset name {name!r} in {root} cannot be a folder: use letters, digits, '._-'")
        if name in seen:
            raise InvalidInputError(f"two assets in {root} have the id {name!r}: rename one")
        seen.add(name)
    unknown = sorted(set(ids) - seen - set(index))
    if unknown:
        raise InvalidInputError(f"{root} has no assets {unknown[:5]}; there are {len(names)}, such as {names[:3]}")

    def wanted(info: ObjectInfo) -> bool:
        return split in (None, info.split) and (not ids or info.id in ids)

    infos = {name: index.get(name) or ObjectInfo.from_index({"id": name}) for name in names}
    assets = [Asset(infos[name], path, offset, size) for name, path, offset, size in found if wanted(infos[name])]
    if not assets:
        splits = sorted({info.split for info in infos.values()} - {""})
        hint = f"its splits are {', '.join(splits)}" if splits else f"it has no {INDEX_NAME} with a column 'split'"
        raise InvalidInputError(f"no asset of {root} is in split {split!r}: {hint}")
    missing = [name for name, info in index.items() if name not in seen and wanted(info)]
    return AssetList(tuple(sorted(assets, key=lambda asset: asset.info.id)), tuple(sorted(missing)))
