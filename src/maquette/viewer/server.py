"""A server for one page, for this machine only."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from maquette.errors import InvalidInputError, UnsupportedError

HOST = "127.0.0.1"


class ViewerServer:
    """Serves one page at `url` from the moment it is made, in a thread, until `close`; a context manager.

    Only requests for `/` that name this machine as their host are answered, so that no other web page can read it.

    Args:
        page: the HTML text.
        port: 0 takes a free one.

    Raises:
        InvalidInputError: the port is not 0 to 65535.
        UnsupportedError: the port is taken or not allowed.
    """

    def __init__(self, page: str, port: int = 0) -> None:
        if not 0 <= port <= 65535:
            raise InvalidInputError(f"port must be 0 (any free one) to 65535, got {port}")
        try:
            self._server = ThreadingHTTPServer((HOST, port), _handler(page.encode("utf-8")))
        except OSError as error:
            raise UnsupportedError(
                f"port {port} of {HOST} cannot be used ({error.strerror}): choose another one, or 0 for a free one"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self._server.server_port}/"

    def wait(self) -> None:
        """Returns when the server is closed from elsewhere; Ctrl-C raises KeyboardInterrupt."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stops serving and frees the port."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> ViewerServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _handler(page: bytes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "maquette"
        sys_version = ""

        def do_GET(self) -> None:
            """The page, or 404."""
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            """The same without its content."""
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            if host not in (HOST, "localhost"):
                self.send_error(403, "this page is for this machine only")
                return
            if self.path.split("?", 1)[0] != "/":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if with_body:
                try:
                    self.wfile.write(page)
                except (BrokenPipeError, ConnectionResetError):  # the browser has left
                    self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Silent: the command line says what matters."""

    return Handler
