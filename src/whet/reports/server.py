"""The page at an address of this machine alone, for a browser that cannot open the file (a tunnel, a notebook)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from whet.core.errors import ConfigError, Problem

LOOPBACK = "127.0.0.1"
NAMES_OF_THIS_MACHINE = (LOOPBACK, "localhost", "[::1]")
"""A page of another site that has its name point here (DNS rebinding) asks with that name, and gets nothing."""


@contextmanager
def serving(page: bytes, port: int = 0) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """A server of one page on the loopback interface, and its address; call its ``serve_forever``.

    Args:
        page: HTML in UTF-8.
        port: 0 takes one that is free.

    Raises:
        ConfigError: the port is taken, or may not be used.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if re.sub(r":\d+$", "", self.headers["Host"] or "") not in NAMES_OF_THIS_MACHINE:
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            if self.path.split("?")[0] != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not worth a line."""

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except OSError as error:
        found = f"port {port} of {LOOPBACK} cannot be used ({error.strerror})"
        raise ConfigError(Problem("--port", found, "name another, or leave --port out for one that is free")) from error
    with server:
        yield server, f"http://{LOOPBACK}:{server.server_address[1]}/"
