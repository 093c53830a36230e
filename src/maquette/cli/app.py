"""`maquette app`: the web page and the HTTP API."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

if TYPE_CHECKING:
    from maquette.app.jobs import Report
    from maquette.app.request import GenerateRequest
    from maquette.app.service import GenerateService


@dataclass(frozen=True)
class Args:
    """Serves a web page that makes, shows and edits 3D objects, and the HTTP API, until Ctrl-C."""

    host: str = "127.0.0.1"
    """Address to listen at. By default only this machine can reach the page; 0.0.0.0 opens it to the whole network,
    without a password."""
    port: int = 7860
    """0 takes a free one."""
    device: Annotated[str | None, arg(metavar="DEVICE")] = None
    """cpu, cuda or cuda:N: where models run; by default the GPU if there is one."""
    open: bool = False
    """Open the page in the browser."""


def run(args: Args) -> int:
    """Serves until it is interrupted."""
    from maquette.app.page_server import build_site
    from maquette.app.server import bound_socket, is_local, serve

    listener = bound_socket(args.host, args.port)
    shown = "127.0.0.1" if args.host in ("0.0.0.0", "localhost") else "[::1]" if args.host == "::" else args.host
    url = f"http://{shown}:{listener.getsockname()[1]}/"
    with tempfile.TemporaryDirectory(prefix="maquette-app-") as folder:
        site, queue = build_site(_Lazy(args.device), Path(folder))
        print(f"{url}  (HTTP API: {url}api/docs)  Ctrl-C ends it.", flush=True)
        if not is_local(args.host):
            print("warning: everyone in the network can reach this page and use this machine", file=sys.stderr)
        if args.open:
            import webbrowser

            webbrowser.open(url)
        signal.signal(signal.SIGTERM, _interrupt)  # so that the folder goes then too
        try:
            serve(site, listener)
        except KeyboardInterrupt:  # the way to end it
            print(file=sys.stderr)
        finally:
            queue.close()
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


class _Lazy:
    """The work of the queue; torch and the models are loaded at the first job."""

    def __init__(self, device: str | None) -> None:
        self._device = device
        self._service: GenerateService | None = None

    def __call__(self, request: GenerateRequest, folder: Path, report: Report) -> Sequence[str] | None:
        if self._service is None:
            report("starting up", 0.0)
            from maquette.app.service import GenerateService

            self._service = GenerateService(device=self._device)
        return self._service(request, folder, report)
