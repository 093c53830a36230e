"""A live server process: the documented clients, floods of bytes, and a short version of the load test."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from app_server import memory_kb, running_server
from app_stand_ins import color_in_ply, color_of
from maquette.app.server import bound_socket, is_local
from maquette.errors import InvalidInputError, UnsupportedError

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
if not Path("/proc/self/status").exists():
    pytest.skip("memory of processes is read from /proc", allow_module_level=True)

ROOT = Path(__file__).parent.parent
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    with running_server(tmp_path_factory.mktemp("jobs")) as found:
        yield found


def documented_commands() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), flags=re.DOTALL)


def run_shell(commands: str, port: int, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "examples").symlink_to(ROOT / "examples")
    commands = commands.replace("python examples", f"{sys.executable} examples")
    commands = commands.replace("http://127.0.0.1:7860", f"http://127.0.0.1:{port}")
    commands = re.sub(r"(api_client\.py .*)", rf"\1 --server http://127.0.0.1:{port}", commands)
    command = ["bash", "-e", "-o", "pipefail", "-c", commands]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_example_runs(server: tuple[int, int], tmp_path: Path) -> None:
    done = run_shell(documented_commands()[0], server[0], tmp_path)
    assert done.returncode == 0, done.stderr
    color_in_ply((tmp_path / "taxi.ply").read_bytes())


def test_the_python_example_runs(server: tuple[int, int], tmp_path: Path) -> None:
    done = run_shell(documented_commands()[1], server[0], tmp_path)
    assert done.returncode == 0, done.stderr
    assert color_in_ply((tmp_path / "outputs" / "asset.ply").read_bytes()) == color_of("a red chair", 0)
    assert {"asset-views.png", "asset.png"} <= {path.name for path in (tmp_path / "outputs").iterdir()}


def test_the_python_example_tells_why_not(server: tuple[int, int], tmp_path: Path) -> None:
    done = run_shell("python examples/api_client.py --prompt x --formats exe", server[0], tmp_path)
    assert done.returncode == 1 and "422: formats must be some of" in done.stderr


def head(port: int, *lines: str) -> bytes:
    start = ["POST /api/jobs HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: multipart/form-data; boundary=x"]
    part = '--x\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    return "\r\n".join([*start, *lines, "", ""]).encode() + (b"" if "chunked" in lines[0] else part.encode())


def flood(port: int, start: bytes, block: bytes, count: int) -> tuple[bytes, int]:
    """Sends blocks until the server hangs up; its answer, if it came through, and the blocks that were sent."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            connection.sendall(start)
            for _ in range(count):
                connection.sendall(block)
                sent += 1
        except OSError:
            pass
        try:
            return connection.recv(65536), sent
        except OSError:
            return b"", sent


def test_200_megabytes_are_not_read(server: tuple[int, int]) -> None:
    port, process_id = server
    data = b"\0" * MEGABYTE
    flood(port, head(port, f"Content-Length: {10 * MEGABYTE}"), data, 10)  # warm
    Path(f"/proc/{process_id}/clear_refs").write_text("5")  # the peak is counted from now on
    before = memory_kb(process_id, "VmHWM")
    honest, sent = flood(port, head(port, f"Content-Length: {200 * MEGABYTE}"), data, 200)
    assert sent < 60 and (honest == b"" or b" 413 " in honest)
    chunk = f"{MEGABYTE:x}\r\n".encode() + data + b"\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    first = f"{len(part):x}\r\n".encode() + part + b"\r\n"
    endless, sent = flood(port, head(port, "Transfer-Encoding: chunked") + first, chunk, 200)
    assert sent < 60 and (endless == b"" or b" 413 " in endless)
    lying, _ = flood(port, head(port, "Content-Length: 1000"), data, 200)
    assert lying == b"" or b" 4" in lying.split(b"\r\n")[0]
    assert memory_kb(process_id, "VmHWM") - before < 30_000
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/api/health")
    assert json.load(connection.getresponse())["waiting"] == 0


def test_clients_may_go_away(server: tuple[int, int]) -> None:
    port, _ = server
    form, kind = b"prompt=a+blue+cup&formats=ply", {"Content-Type": "application/x-www-form-urlencoded"}
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:  # in the middle of an upload
        connection.sendall(head(port, f"Content-Length: {MEGABYTE}") + b"\0" * 1000)
    first = HTTPConnection("127.0.0.1", port, timeout=30)
    first.request("POST", "/api/jobs", form, kind)
    job = json.load(first.getresponse())["id"]
    first.close()
    later = HTTPConnection("127.0.0.1", port, timeout=30)
    state = {"finished": None}
    while state["finished"] is None:
        time.sleep(0.1)
        later.request("GET", f"/api/jobs/{job}")
        state = json.load(later.getresponse())
    later.request("GET", f"/api/jobs/{job}/files/asset.ply")
    assert color_in_ply(later.getresponse().read()) == color_of("a blue cup", 0)


def test_413_arrives_before_the_body_is_sent(server: tuple[int, int]) -> None:
    connection = HTTPConnection("127.0.0.1", server[0], timeout=10)
    connection.putrequest("POST", "/api/jobs")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(200 * MEGABYTE))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and "20,064,000 bytes" in json.load(answer)["detail"]


def test_load_for_some_seconds(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "load_api.py"), "--seconds", "8", "--clients", "12"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*command, "--capacity", "4", "--network-s", "0", "-o", str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "api_load.json").read_text())
    assert report["jobs"]["done"] >= 4 and report["jobs"]["refused_503"] > 0
    assert report["jobs"]["lost"] == report["jobs"]["wrong"] == report["jobs"]["unexpected"] == 0
    assert report["queue"]["most_waiting"] <= 4


def test_addresses() -> None:
    with bound_socket() as local:
        host, port = local.getsockname()
        assert host == "127.0.0.1" and port > 0
        with pytest.raises(UnsupportedError, match=f"cannot listen at 127.0.0.1:{port}"):
            bound_socket(port=port)
    for host in ("example.org", "", "127.0.0.1:80"):
        with pytest.raises(InvalidInputError, match="IP address"):
            bound_socket(host)
    with pytest.raises(InvalidInputError, match="port"):
        bound_socket(port=70_000)
    assert is_local("127.0.0.1") and is_local("localhost") and is_local("::1") and not is_local("0.0.0.0")
