"""Opening files that somebody else wrote: regular, not empty, not larger than the reader can take."""

from __future__ import annotations

import stat
from pathlib import Path

from maquette.errors import FileFormatError


def checked_file_size(path: str | Path, what: str) -> int:
    """Size in bytes of a regular, non-empty file; `what` names the expected content in messages.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: a folder, a device or pipe, or an empty file.
    """
    target = Path(path)
    try:
        status = target.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{target}: no such file (expected {what})") from error
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{target}: cannot be opened: {error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise FileFormatError(f"{target} is a folder, expected {what}")
    if not stat.S_ISREG(status.st_mode):
        raise FileFormatError(f"{target} is not a regular file, expected {what}")
    if status.st_size == 0:
        raise FileFormatError(f"{target} is empty, expected {what}")
    return int(status.st_size)


def read_limited(path: str | Path, what: str, max_bytes: int) -> bytes:
    """The bytes of a file after `checked_file_size`, refused when larger than `max_bytes`."""
    size = checked_file_size(path, what)
    if size > max_bytes:
        raise FileFormatError(f"{path} has {size:,} bytes; {what} may have at most {max_bytes:,}")
    try:
        with Path(path).open("rb") as stream:
            return stream.read(size)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error}") from error
