"""Downloads, against a hub on this machine that speaks just enough of the protocol."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lgm_goldens import GOLDEN_MINI
from maquette import registry
from maquette.cli import main
from maquette.convert_checkpoint import import_checkpoint, pull
from maquette.errors import DownloadError, InvalidInputError
from maquette.hub import HubFile, download, download_folder
from maquette.models.lgm.network import LGM
from maquette.weights import read_metadata, read_weights, stored_file, write_weights

NAME = "test-lgm"
REVISION = "0123456789abcdef0123456789abcdef01234567"


class MockHub(http.server.ThreadingHTTPServer):
    """Serves one file; can break off after some bytes and counts what it sends."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.break_after: int | None = None
        self.ranges: list[str | None] = []
        self.status = 200

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: MockHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub = self.server
        if f"/resolve/{REVISION}/" not in self.path or hub.status != 200:
            self.send_response(404 if hub.status == 200 else hub.status)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        requested = self.headers.get("Range")
        start = int(requested.removeprefix("bytes=").split("-")[0]) if requested else 0
        part = hub.content[start:]
        self.send_response(206 if requested else 200)
        self.send_header("Content-Length", str(len(part)))
        if requested:
            self.send_header("Content-Range", f"bytes {start}-{len(hub.content) - 1}/{len(hub.content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(hub.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if body:
            self.wfile.write(part[: hub.break_after])
            if hub.break_after is not None:
                hub.break_after = 0
                self.close_connection = True


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("hub") / "model.safetensors"
    state = {name: value.half() for name, value in LGM(GOLDEN_MINI).state_dict().items()}
    write_weights(file, state, {})
    return file.read_bytes()


@pytest.fixture
def hub(content: bytes) -> Iterator[MockHub]:
    server = MockHub(content)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> HubFile:
    monkeypatch.setenv("MAQUETTE_CACHE", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    file = HubFile(
        "someone/LGM", "weights.safetensors", REVISION, hashlib.sha256(content).hexdigest(), len(content)
    )  # fmt: skip
    entry = registry.ModelEntry(NAME, "lgm", GOLDEN_MINI, 3_612_032, "MIT", "For tests.", hub_file=file)
    monkeypatch.setitem(registry.MODELS, NAME, entry)
    return file


def test_pull_checks_and_installs(
    hub: MockHub, model: HubFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    assert main(["models", "pull", NAME]) == 0
    installed = stored_file(NAME)
    assert str(installed) in capsys.readouterr().out
    metadata = read_metadata(installed)
    assert metadata["sha256"] == model.sha256 and REVISION in metadata["origin"] and metadata["model"] == NAME
    assert registry.load_network(NAME).params == GOLDEN_MINI
    assert not download_folder(model).exists()
    sent = len(hub.ranges)
    assert main(["models", "pull", NAME]) == 0
    assert "already here" in capsys.readouterr().out and len(hub.ranges) == sent


def test_an_interrupted_download_continues(hub: MockHub, model: HubFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maquette.hub._CHUNK_BYTES", 100_000)
    steps: list[tuple[int, int]] = []
    hub.break_after = 1_000_000
    # The line breaks once and then for good: what has come stays.
    with pytest.raises(DownloadError, match="same again to continue"):
        download(model, by_hand="", endpoint=hub.address)
    assert hub.ranges[:2] == [None, "bytes=1000000-"]
    hub.break_after, hub.ranges = None, []
    path = download(model, by_hand="", endpoint=hub.address, progress=lambda done, total: steps.append((done, total)))
    assert path.read_bytes() == hub.content
    assert hub.ranges == ["bytes=1000000-"]
    assert steps[-1] == (len(hub.content), len(hub.content))


def test_a_complete_part_is_not_fetched_again(hub: MockHub, model: HubFile) -> None:
    part = download_folder(model) / f"{model.filename}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(hub.content)
    assert download(model, by_hand="", endpoint=hub.address).read_bytes() == hub.content
    assert hub.ranges == []


def test_another_file_under_the_name_is_refused(hub: MockHub, model: HubFile) -> None:
    changed = dataclasses.replace(model, sha256="0" * 64)
    with pytest.raises(DownloadError, match="not the pinned file: its SHA-256"):
        download(changed, by_hand="", endpoint=hub.address)
    with pytest.raises(DownloadError, match=r"bytes instead of 5"):
        download(dataclasses.replace(model, size_bytes=5), by_hand="", endpoint=hub.address)
    assert not stored_file(NAME).exists() and not download_folder(model).exists()


def test_without_a_network_the_error_says_how_to_do_it_by_hand() -> None:
    with pytest.raises(DownloadError, match=r"refused.*maquette models import weights\.safetensors --model"):
        pull(NAME, endpoint="http://127.0.0.1:9")


def test_missing_files_and_unpublished_models(hub: MockHub, model: HubFile) -> None:
    missing = dataclasses.replace(model, revision="f" * 40)
    with pytest.raises(DownloadError, match="404"):
        download(missing, by_hand="", endpoint=hub.address)
    with pytest.raises(
        InvalidInputError, match=r"nothing to pull for lgm-tiny: none are published.*Published: lgm-big"
    ):
        pull("lgm-tiny")


def test_a_full_disk_is_noticed_before_the_download(hub: MockHub, model: HubFile) -> None:
    with pytest.raises(DownloadError, match="MAQUETTE_CACHE"):
        download(dataclasses.replace(model, size_bytes=10**18), by_hand="", endpoint=hub.address)
    assert hub.ranges == []


def test_files_fetched_by_hand_are_compared_with_the_published_one(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    model_name = "model_fp16.safetensors"  # the name alone would mean weights with the old rotation
    official = tmp_path / model_name
    official.write_bytes(content)
    metadata = read_metadata(import_checkpoint(official, NAME))
    assert metadata["sha256"] == hashlib.sha256(content).hexdigest() and metadata["rotation_axis"] == "last"
    other = tmp_path / "tuned.safetensors"
    other.write_bytes(content)
    write_weights(other, {name: value + 1 for name, value in read_weights(other)[0].items()}, {})
    assert main(["models", "import", str(other), "--model", NAME]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith(
        "warning: tuned.safetensors fits test-lgm, but is not the published weights.safetensors"
    )
    assert "sha256" not in read_metadata(stored_file(NAME)) and "written" in shown.out
