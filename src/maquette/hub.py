"""Downloads of published weights from the Hugging Face Hub: pinned, checked, resumable, only when asked for."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

import maquette
from maquette.errors import DownloadError
from maquette.weights import store_folder

_CHUNK_BYTES = 1 << 22
_TIMEOUT_S = 20.0
_MAX_ATTEMPTS = 3
_PUBLIC_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class HubFile:
    """One file of a hub repository, pinned.

    Attributes:
        repository: "owner/name".
        filename: path inside the repository.
        revision: commit, 40 hexadecimal digits.
        sha256: of the file's bytes.
        size_bytes: of the file.
    """

    repository: str
    filename: str
    revision: str
    sha256: str
    size_bytes: int

    @property
    def url(self) -> str:
        """Where a browser finds exactly this file."""
        return f"{_PUBLIC_ENDPOINT}/{self.repository}/resolve/{self.revision}/{self.filename}"


def download(
    file: HubFile,
    *,
    by_hand: str,
    endpoint: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Downloads a file into the store's download folder and checks its size and SHA-256.

    A download that breaks off continues where it stopped, at once and when called again later. (The hub's own client
    starts again in every call.) A proxy or mirror is chosen by the usual variables (`HTTPS_PROXY`, `HF_ENDPOINT`).

    Args:
        file: what to download.
        by_hand: sentence for errors that says how to install the file without a network.
        endpoint: address of the hub; None takes `HF_ENDPOINT` or the public one.
        progress: called with the bytes that are here and their total.

    Returns:
        Path of the checked file; the caller removes it with `discard_download`.

    Raises:
        DownloadError: no network, no such file, not enough disk space, or the bytes are not the pinned ones.
    """
    folder = download_folder(file)
    _check_disk(folder, file)
    address = (endpoint or os.environ.get("HF_ENDPOINT") or _PUBLIC_ENDPOINT).rstrip("/")
    url = file.url.replace(_PUBLIC_ENDPOINT, address, 1)
    part, finished = folder / f"{file.filename}.part", folder / file.filename
    attempts = 0
    while not finished.is_file():
        before = part.stat().st_size if part.is_file() else 0
        try:
            if before < file.size_bytes:  # otherwise it was complete, but the process ended before it said so
                _append(url, part, file.size_bytes, progress)
        except (OSError, HTTPException, ValueError) as error:
            # A server's clear answer will not change; a broken line may heal, and starts anew after any progress.
            advanced = part.is_file() and part.stat().st_size > before
            attempts = 0 if advanced else attempts + 1
            if isinstance(error, HTTPError) or (before == 0 and not advanced) or attempts >= _MAX_ATTEMPTS:
                raise DownloadError(_failure(file, address, error, by_hand)) from error
            continue
        part.replace(finished)
    problem = mismatch(finished, file)
    if problem:
        discard_download(file)
        raise DownloadError(f"{file.filename} from {file.repository} is not the pinned file: {problem}. {by_hand}")
    return finished


def _append(url: str, part: Path, size_bytes: int, progress: Callable[[int, int], None] | None) -> None:
    """Fetches what is missing of `part`; raises when the connection ends early."""
    done = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": f"maquette/{maquette.__version__}"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        resumed = done > 0 and response.status == HTTPStatus.PARTIAL_CONTENT
        done = done if resumed else 0
        with part.open("ab" if resumed else "wb") as stream:
            while done <= size_bytes and (chunk := response.read(_CHUNK_BYTES)):
                stream.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, size_bytes)
    if done < size_bytes and done < _announced(response, done):
        raise ConnectionError(f"the connection ended after {done:,} of {size_bytes:,} bytes")


def _announced(response: HTTPResponse, done: int) -> int:
    """Size of the whole file according to the answer's headers; `done` when they do not say."""
    whole = (response.headers.get("Content-Range") or "").rpartition("/")[2]
    text = whole or response.headers.get("Content-Length") or ""
    return int(text) if text.isdigit() else done


def download_folder(file: HubFile) -> Path:
    """Where parts and the finished download of a file lie until it is installed."""
    return store_folder() / "downloads" / file.revision


def discard_download(file: HubFile) -> None:
    """Removes what `download` left."""
    shutil.rmtree(download_folder(file), ignore_errors=True)


def mismatch(path: Path, file: HubFile) -> str | None:
    """What distinguishes a local file from the pinned one, or None if they are equal."""
    size = path.stat().st_size
    if size != file.size_bytes:
        return f"it has {size:,} bytes instead of {file.size_bytes:,}"
    found = file_sha256(path)
    return None if found == file.sha256 else f"its SHA-256 is {found} instead of {file.sha256}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_disk(folder: Path, file: HubFile) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 2 * file.size_bytes:  # the download and its converted copy
        raise DownloadError(
            f"{file.filename} needs {2 * file.size_bytes / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free: "
            "make room, or set MAQUETTE_CACHE to a folder on another disk"
        )


def _failure(file: HubFile, address: str, error: Exception, by_hand: str) -> str:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return (
        f"could not download {file.filename} of {file.repository} (revision {file.revision[:8]}) from {address}: "
        f"{reason}. Run the same again to continue the download. {by_hand}"
    )
