"""A proxy before a store that misbehaves: it answers late, with errors, with too few bytes, or not at all."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = Callable[["_Handler", int, "http.client.HTTPMessage", bytes], None]  # handler, status, headers, body


class FaultyStore:
    """Passes requests on to a store, but for some.

    Args:
        upstream: `http://host:port` of the store.

    Attributes:
        url: of the proxy. faulty: requests that met the fault.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname is not None
        self.upstream = (parts.hostname, parts.port)
        self.faulty: list[str] = []
        self._fault: Fault | None = None
        self._method = self._path = ""
        self._left = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def misbehave(self, fault: Fault, method: str = "", path: str = "", times: int = 1 << 30) -> None:
        """Requests of this method (any: empty) whose path has these words meet the fault, so many times."""
        self.faulty.clear()
        self._fault, self._method, self._path, self._left = fault, method, path, times

    def fault_of(self, method: str, path: str) -> Fault | None:
        """The fault that a request meets."""
        with self._lock:
            if self._left <= 0 or self._method not in ("", method) or self._path not in path:
                return None
            self._left -= 1
            self.faulty.append(f"{method} {path}")
            return self._fault

    @contextmanager
    def serving(self) -> Iterator[FaultyStore]:
        """Serve within the block."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    store: FaultyStore
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.store.fault_of(self.command, self.path)
        connection = http.client.HTTPConnection(*self.store.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        (fault or _Handler.send)(self, answer.status, answer.headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def send(self, status: int, headers: http.client.HTTPMessage, content: bytes, keep: int | None = None) -> None:
        """The answer; `keep`: only so many bytes of its content, and the connection is closed."""
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:keep])
        if keep is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


def late(seconds: float) -> Fault:
    """The answer comes so much later."""

    def fault(handler: _Handler, status: int, headers: http.client.HTTPMessage, content: bytes) -> None:
        time.sleep(seconds)
        try:
            handler.send(status, headers, content)
        except OSError:
            handler.close_connection = True  # nobody waits any longer

    return fault


def error(status: int, code: str) -> Fault:
    """An error of the store's."""

    def fault(handler: _Handler, _: int, headers: http.client.HTTPMessage, content: bytes) -> None:
        told = f"<Error><Code>{code}</Code><Message>try again</Message></Error>".encode()
        handler.send(status, http.client.HTTPMessage(), told)

    return fault


def short(handler: _Handler, status: int, headers: http.client.HTTPMessage, content: bytes) -> None:
    """Half of the content, where its whole length has been announced."""
    handler.send(status, headers, content, keep=len(content) // 2)


def reset(handler: _Handler, status: int, headers: http.client.HTTPMessage, content: bytes) -> None:
    """The connection is reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RD)
    handler.connection.close()
