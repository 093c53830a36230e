"""Downloads of published weights from the Hugging Face Hub: pinned, checked, resumable, only when asked for."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from maquette.errors import DownloadError
from maquette.weights import store_folder

_CHUNK_BYTES = 1 << 22
_CONNECT_TIMEOUT_S = 10.0


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
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{self.filename}"


def download(file: HubFile, *, by_hand: str, endpoint: str | None = None) -> Path:
    """Downloads a file into the store's download folder and checks its size and SHA-256.

    An interrupted download continues where it stopped when called again. A proxy or mirror is chosen by the usual
    variables (`HTTPS_PROXY`, `HF_ENDPOINT`).

    Args:
        file: what to download.
        by_hand: sentence for errors that says how to install the file without a network.
        endpoint: address of the hub; None takes `HF_ENDPOINT` or the public one.

    Returns:
        Path of the checked file; the caller removes it with `discard_download`.

    Raises:
        DownloadError: no network, no such file, not enough disk space, or the bytes are not the pinned ones.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    folder = download_folder(file)
    _check_disk(folder, file)
    address = endpoint or os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(file.repository, file.filename, revision=file.revision, endpoint=address)
    try:
        # Asked first because it fails at once without a network, where the download would retry for long.
        get_hf_file_metadata(url, timeout=_CONNECT_TIMEOUT_S, token=False, endpoint=address)
        path = Path(
            hf_hub_download(
                file.repository, file.filename, revision=file.revision, local_dir=folder, endpoint=address, token=False
            )
        )
    except Exception as error:  # hub clients of different versions raise errors of different HTTP libraries
        raise DownloadError(_failure(file, address, error, by_hand)) from error
    problem = mismatch(path, file)
    if problem:
        discard_download(file)
        raise DownloadError(f"{file.filename} from {file.repository} is not the pinned file: {problem}. {by_hand}")
    return path


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
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != file.sha256:
        return f"its SHA-256 is {digest.hexdigest()} instead of {file.sha256}"
    return None


def _check_disk(folder: Path, file: HubFile) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 2 * file.size_bytes:  # the download and its converted copy
        raise DownloadError(
            f"{file.filename} needs {2 * file.size_bytes / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free: "
            "make room, or set MAQUETTE_CACHE to a folder on another disk"
        )


def _failure(file: HubFile, address: str | None, error: Exception, by_hand: str) -> str:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    where = address or "https://huggingface.co"
    return (
        f"could not download {file.filename} of {file.repository} (revision {file.revision[:8]}) from {where}: "
        f"{type(error).__name__}: {reason}. Try again to continue the download. {by_hand}"
    )
