"""A client of `maquette app` in plain Python: submits a job, follows it and fetches its files.

python examples/api_client.py examples/taxi/rgb/000.png -o outputs
python examples/api_client.py --prompt "a red chair" --formats ply,glb -o outputs
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any


class Refused(Exception):
    """The server said no; its words are the message."""


def call(method: str, url: str, body: bytes | None = None, content_type: str | None = None) -> bytes:
    """One request; waits and tries again when the queue is full."""
    headers = {"Content-Type": content_type} if content_type else {}
    while True:
        request = urllib.request.Request(url, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 503 and "Retry-After" in error.headers:
                time.sleep(float(error.headers["Retry-After"]))
                continue
            try:
                words = json.load(error)["detail"]
            except ValueError:
                words = error.reason
            raise Refused(f"{error.code}: {words}") from error


def submit(server: str, picture: Path | None = None, **fields: object) -> dict[str, Any]:
    """Sends a picture, a prompt or both; returns the state of the new job."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if picture is not None:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="picture"; filename="{picture.name}"\r\n\r\n'
        parts += [head.encode(), picture.read_bytes(), b"\r\n"]
    body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    return json.loads(call("POST", f"{server}/api/jobs", body, f"multipart/form-data; boundary={boundary}"))


def wait(server: str, job: dict[str, Any]) -> dict[str, Any]:
    """Follows a job until it is over, with a line on stderr whenever something changes."""
    shown = ""
    while job["finished"] is None:
        where = f"number {job['position']} in the queue" if job["position"] else job["stage"]
        line = f"{job['fraction']:4.0%}  {where}"
        if line != shown:
            print(line, file=sys.stderr)
            shown = line
        time.sleep(0.5)
        job = json.loads(call("GET", f"{server}/api/jobs/{job['id']}"))
    return job


def main() -> int:
    """Makes an object and saves its files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, nargs="?")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--formats", default="ply,glb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", default="http://127.0.0.1:7860")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs"))
    args = parser.parse_args()
    try:
        job = submit(args.server, args.picture, prompt=args.prompt, formats=args.formats, seed=args.seed)
        job = wait(args.server, job)
        if job["status"] != "done":
            print(f"{job['status']}: {job['message']}", file=sys.stderr)
            return 1
        for warning in job["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)
        args.output.mkdir(parents=True, exist_ok=True)
        for name in job["files"]:
            path = args.output / Path(name).name
            path.write_bytes(call("GET", f"{args.server}/api/jobs/{job['id']}/files/{name}"))
            print(path)
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
