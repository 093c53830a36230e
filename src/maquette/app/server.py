"""Serving an ASGI application with uvicorn: for this machine only, unless another address is asked for."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from maquette.errors import InvalidInputError, MissingDependencyError, UnsupportedError

LOCAL_HOST = "127.0.0.1"
MAX_CONNECTIONS = 256
"""More connections at once get a 503 before anything is read from them."""

_KEEP_ALIVE_S = 60
"""Idle connections are closed then; much sooner, a busy machine would cut off requests that have just arrived."""


def bound_socket(host: str = LOCAL_HOST, port: int = 0) -> socket.socket:
    """A listening address.

    Args:
        host: an IP address of this machine, or "localhost"; "0.0.0.0" or "::" for all networks.
        port: 0 takes a free one.

    Raises:
        InvalidInputError: not an address, or not a port.
        UnsupportedError: the address is taken, or not one of this machine.
    """
    name = LOCAL_HOST if host == "localhost" else host
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(name).version == 6 else socket.AF_INET
    except ValueError as error:
        raise InvalidInputError(f"the host must be an IP address such as {LOCAL_HOST}, got {host!r}") from error
    if not 0 <= port <= 65535:
        raise InvalidInputError(f"the port must lie in 0..65535, got {port}")
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((name, port))
        listener.listen(MAX_CONNECTIONS)  # clients may come from now on; they wait until the application serves
    except OSError as error:
        listener.close()
        raise UnsupportedError(f"cannot listen at {host}:{port}: {error.strerror}; choose another --port") from error
    return listener


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server at this address."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def serve(app: Any, listener: socket.socket) -> None:
    """Serves an ASGI application until the process is told to stop (Ctrl-C, SIGTERM).

    Raises:
        MissingDependencyError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingDependencyError("the app needs uvicorn: pip install 'maquette[app]'") from error
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listener])
