"""Load of the HTTP API: many clients against a real server process, with stand-ins for the two networks.

Everything else is real: uploads, preparation of pictures, views and Gaussians written to disk and read back. The
colour of the Gaussians says which request they were made for, so that a result that went to the wrong client shows.

    python benchmarks/load_api.py --seconds 300 -o benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from app_server import memory_kb, running_server  # noqa: E402
from app_stand_ins import color_in_ply, color_of, disc_picture  # noqa: E402

POLL_S = 0.5
PATIENCE_S = 300.0
MAX_GROWTH = 0.1


@dataclass
class Tally:
    """What all clients saw together."""

    counts: Counter[str] = field(default_factory=Counter)
    waits_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, problem: str = "") -> None:
        with self.lock:
            self.counts[what] += 1
            if problem:
                self.problems.append(problem)


class Client:
    """Submits one job after the other; some are cancelled, of some it hears only much later."""

    def __init__(self, number: int, port: int, stop_at: float, tally: Tally) -> None:
        self.number, self.port, self.stop_at, self.tally = number, port, stop_at, tally
        self.connection = HTTPConnection("127.0.0.1", port, timeout=60)
        self.random = random.Random(number)

    def run(self) -> None:
        turn = 0
        try:
            while time.monotonic() < self.stop_at:
                self.turn(turn)
                turn += 1
        except Exception as error:
            self.tally.count("unexpected", f"client {self.number}, turn {turn}: {error!r}")
        finally:
            self.connection.close()

    def turn(self, turn: int) -> None:
        kind = self.random.choices(("usual", "cancelled", "abandoned"), (8, 1, 1))[0]
        job, color = self.submit(turn)
        if job is None:
            return
        start = time.monotonic()
        if kind == "cancelled":
            state = self.json("DELETE", f"/api/jobs/{job}")
            self.tally.count("cancelled" if state["status"] == "cancelled" else "done")
            return
        if kind == "abandoned":  # goes away in the middle, and asks another time
            self.tally.count("abandoned")
            self.connection.close()
            time.sleep(3.0)
        self.fetch(job, color)
        if kind == "usual":
            with self.tally.lock:
                self.tally.waits_s.append(time.monotonic() - start)

    def submit(self, turn: int) -> tuple[str | None, tuple[int, int, int]]:
        """A picture or a prompt, until there is room in the queue or the time is up."""
        color = color_of("client", self.number, turn)
        prompt, picture = "", disc_picture(color, 320)
        if turn % 3 == 2:
            prompt, picture = f"object {self.number} of {turn} <b>&amp;", b""
            color = color_of(prompt, turn)
        body, kind = form(picture, prompt=prompt, seed=str(turn), formats="ply")
        while time.monotonic() < self.stop_at:
            status, headers, data = self.call("POST", "/api/jobs", body, kind)
            if status == 202:
                self.tally.count("accepted")
                return json.loads(data)["id"], color
            if status != 503:
                self.tally.count("unexpected", f"submit: {status} {data[:200]!r}")
                return None, color
            self.tally.count("refused_503")
            time.sleep(float(headers["retry-after"]) * self.random.uniform(0.5, 1.5))
        return None, color

    def fetch(self, job: str, color: tuple[int, int, int]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (state := self.json("GET", f"/api/jobs/{job}"))["finished"] is None:
            if time.monotonic() > deadline:
                self.tally.count("not_done", f"job {job} is still {state['status']}")
                return
            time.sleep(POLL_S)
        if state["status"] != "done":
            self.tally.count("not_done", f"job {job}: {state.get('message')}")
            return
        status, _, data = self.call("GET", f"/api/jobs/{job}/files/asset.ply")
        found = color_in_ply(data) if status == 200 else (status,)
        if found != color:
            self.tally.count("wrong", f"job {job}: {found} instead of {color}")
        self.tally.count("done")

    def json(self, method: str, path: str) -> dict[str, Any]:
        status, _, data = self.call(method, path)
        if status == 404:
            return {"status": "lost", "finished": 0, "message": "404"}
        assert status == 200, f"{method} {path}: {status} {data[:200]!r}"
        return json.loads(data)

    def call(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> tuple[int, Any, bytes]:
        for attempt in (1, 2):
            try:
                self.connection.request(method, path, body, {"Content-Type": kind} if kind else {})
                answer = self.connection.getresponse()
                return answer.status, answer.headers, answer.read()
            except (HTTPException, ConnectionError):  # an idle connection that the server has closed
                self.connection.close()
                if attempt == 2 or method == "POST":
                    raise
        raise AssertionError


def form(picture: bytes, **fields: str) -> tuple[bytes, str]:
    boundary = uuid.uuid4().hex
    lines = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
        for name, text in fields.items()
    ]
    if picture:
        start = f'--{boundary}\r\nContent-Disposition: form-data; name="picture"; filename="p.png"\r\n\r\n'
        lines += [start.encode(), picture, b"\r\n"]
    return b"".join([*lines, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def watch(port: int, process_id: int, seconds: float) -> dict[str, list[float]]:
    """Memory of the server, length of its queue and the machine's load, about once a second."""
    seen: dict[str, list[float]] = {"second": [], "rss_mb": [], "waiting": [], "load": []}
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/api/health")
        seen["waiting"].append(json.load(connection.getresponse())["waiting"])
        connection.close()
        seen["second"].append(now)
        seen["rss_mb"].append(memory_kb(process_id) / 1024)
        seen["load"].append(os.getloadavg()[0])
        time.sleep(max(0.0, 1 - (time.monotonic() - start - now)))
    return seen


def warm_up(port: int) -> None:
    """Each kind of job once: what is imported and compiled at first use does not count as growth."""
    tally = Tally()
    client = Client(10_000, port, time.monotonic() + 120, tally)
    for turn in range(3):
        job, color = client.submit(turn)
        assert job is not None
        client.fetch(job, color)
    assert tally.counts["done"] == 3, tally.problems


def measure(args: argparse.Namespace) -> dict[str, Any]:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder), capacity=args.capacity, keep_s=args.keep_s, network_s=args.network_s) as (
            port,
            process_id,
        ),
    ):
        warm_up(port)
        tally, start = Tally(), time.monotonic()
        clients = [Client(number, port, start + args.seconds, tally) for number in range(args.clients)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        seen = watch(port, process_id, args.seconds)
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - start
    return report_of(args, tally, seen, seconds, commit)


def report_of(
    args: argparse.Namespace, tally: Tally, seen: dict[str, list[float]], seconds: float, commit: str
) -> dict[str, Any]:
    window = min(60.0, args.seconds / 4)
    times, memory = seen["second"], seen["rss_mb"]
    first = [mb for at, mb in zip(times, memory, strict=True) if at < window]
    last = [mb for at, mb in zip(times, memory, strict=True) if at >= args.seconds - window]
    kinds = ("accepted", "done", "cancelled", "abandoned", "refused_503", "wrong", "unexpected")
    counts = tally.counts
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "commit": commit},
        "date": time.strftime("%Y-%m-%d"),
        "settings": {
            "seconds": args.seconds, "clients": args.clients, "capacity": args.capacity,
            "keep_s": args.keep_s, "network_s": args.network_s,
        },
        "seconds_until_the_last_answer": round(seconds, 1),
        "jobs": {
            **{kind: counts[kind] for kind in kinds},
            "lost": counts["accepted"] - counts["done"] - counts["cancelled"],
        },
        "wait_s": {
            "median": round(statistics.median(tally.waits_s or [0.0]), 2),
            "most": round(max(tally.waits_s, default=0.0), 2),
        },
        "queue": {"capacity": args.capacity, "most_waiting": int(max(seen["waiting"]))},
        "memory_mb": {
            "window_s": window, "first": round(statistics.mean(first), 1), "last": round(statistics.mean(last), 1),
            "growth": round(statistics.mean(last) / statistics.mean(first) - 1, 4), "most": round(max(memory), 1),
        },
        "load_average": {"mean": round(statistics.mean(seen["load"]), 2), "most": round(max(seen["load"]), 2)},
        "problems": tally.problems[:20],
    }  # fmt: skip


def as_markdown(report: dict[str, Any]) -> str:
    jobs, memory, settings = report["jobs"], report["memory_mb"], report["settings"]
    rows = [
        ("jobs accepted", jobs["accepted"]),
        ("done, and with the right content", jobs["done"] - jobs["wrong"]),
        ("cancelled by their client", jobs["cancelled"]),
        ("of clients that went away and came back", jobs["abandoned"]),
        ("lost / wrong / unexpected answers", f"{jobs['lost']} / {jobs['wrong']} / {jobs['unexpected']}"),
        ("503 (queue full), tried again", jobs["refused_503"]),
        ("most jobs waiting (bound)", f"{report['queue']['most_waiting']} ({report['queue']['capacity']})"),
        ("submit to file, median / most", f"{report['wait_s']['median']} s / {report['wait_s']['most']} s"),
        (f"server's memory, first {memory['window_s']:g} s", f"{memory['first']} MiB"),
        (f"server's memory, last {memory['window_s']:g} s", f"{memory['last']} MiB ({memory['growth']:+.1%})"),
        ("load average of the machine, mean / most", "{mean} / {most}".format(**report["load_average"])),
    ]
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"# Load of the HTTP API\n\n{settings['clients']} clients for {settings['seconds']:g} s against one server "
        f"process on 127.0.0.1, {report['machine']['cpus']} CPUs shared with the clients (and with whatever else the "
        f"load average shows), Python {report['machine']['python']}, commit {report['machine']['commit']}, "
        f"{report['date']}. The networks are stand-ins (the generator sleeps {settings['network_s']:g} s); uploads, "
        "preparation of the pictures and files are real, and the colour of the Gaussians says whose request they "
        f"answer. Results are kept {settings['keep_s']:g} s.\n\n| what | value |\n|---|---|\n{lines}\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--capacity", type=int, default=16)
    parser.add_argument("--keep-s", type=float, default=45.0)
    parser.add_argument("--network-s", type=float, default=0.1)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    report = measure(args)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "api_load.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.output / "api_load.md").write_text(as_markdown(report))
    print(as_markdown(report), *report["problems"], sep="\n")
    jobs = report["jobs"]
    kept = report["queue"]["most_waiting"] <= args.capacity and report["memory_mb"]["growth"] <= MAX_GROWTH
    return 0 if kept and not (jobs["lost"] or jobs["wrong"] or jobs["unexpected"]) else 1


if __name__ == "__main__":
    sys.exit(main())
