"""A real server process with stand-ins for the networks: `python tests/app_server.py --folder DIR` prints its port."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def main() -> None:
    import torch

    from app_stand_ins import DiscGenerator, DiscModel
    from maquette.app.api import build_api
    from maquette.app.jobs import JobQueue
    from maquette.app.limits import Limits
    from maquette.app.server import bound_socket, serve
    from maquette.app.service import GenerateService

    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--capacity", type=int, default=16)
    parser.add_argument("--keep-s", type=float, default=60.0)
    parser.add_argument("--network-s", type=float, default=0.0, help="how long the stand-in for the network sleeps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    limits = Limits(queue_capacity=args.capacity, keep_s=args.keep_s)
    service: Any = GenerateService(
        limits,
        device="cpu",
        load_model=lambda name, device: DiscModel(),
        load_generator=lambda name, device: DiscGenerator(lambda: time.sleep(args.network_s)),  # type: ignore[arg-type, return-value]
    )
    queue = JobQueue(
        service, args.folder, capacity=limits.queue_capacity, timeout_s=limits.timeout_s, keep_s=limits.keep_s
    )
    listener = bound_socket()
    print(listener.getsockname()[1], flush=True)
    try:
        serve(build_api(queue, limits), listener)
    finally:
        queue.close()


@contextmanager
def running_server(folder: Path, **options: float) -> Iterator[tuple[int, int]]:
    """Starts the server above; gives its port and process id, and stops it in the end."""
    words = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    paths = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--folder", str(folder), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the server did not start"
        yield int(port), process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()


def memory_kb(process_id: int, key: str = "VmRSS") -> int:
    """Resident memory of a process in KiB: now, or with "VmHWM" the most it ever had."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)


if __name__ == "__main__":
    main()
