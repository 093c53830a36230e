"""Files that the page makes by itself, such as edited meshes: kept under unguessable names, the oldest removed."""

from __future__ import annotations

import collections
import secrets
import shutil
import threading
from pathlib import Path

from maquette.errors import InvalidInputError


class Shelf:
    """A bounded set of folders with one file each; every method may be called from any thread.

    Args:
        folder: where they are; created when missing.
        capacity: most files kept.
    """

    def __init__(self, folder: str | Path, capacity: int = 64) -> None:
        self._folder, self._capacity = Path(folder), capacity
        self._order: collections.deque[str] = collections.deque()
        self._lock = threading.Lock()

    def new(self, name: str) -> tuple[str, Path]:
        """A fresh key, and where to write the file that it stands for; what is oldest goes.

        Args:
            name: of the file, plain.
        """
        key = secrets.token_urlsafe(18)
        path = self._folder / key / name
        path.parent.mkdir(parents=True)
        with self._lock:
            self._order.append(key)
            old = [self._order.popleft() for _ in range(len(self._order) - self._capacity)]
        for gone in old:
            shutil.rmtree(self._folder / gone, ignore_errors=True)
        return key, path

    def file(self, key: str, name: str) -> Path:
        """The file of a key.

        Raises:
            InvalidInputError: there is none, or no more.
        """
        with self._lock:
            known = key in self._order
        found = next((path for path in (self._folder / key).iterdir() if path.name == name), None) if known else None
        if found is None:
            raise InvalidInputError("this file is not here any more: the page keeps the latest ones only")
        return found
