"""A real HTTP server on loopback that serves files, ranges, and trouble on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server has and how it behaves; `requests` is the list of (path, Range header) so far."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etag: str = '"v1"'
    last_modified: str = ""
    send_length: bool = True
    drop_after: list[int] = field(default_factory=list)  # bytes of the body after which each next connection is cut
    errors: list[int] = field(default_factory=list)  # HTTP status of each next answer
    wrong_range: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            site.requests.append((self.path, asked))
            if site.errors:
                self.send_error(site.errors.pop(0))
                return
            body = site.files.get(self.path.lstrip("/"))
            if body is None:
                self.send_error(404)
                return
            start = 0
            if asked and site.ranges and self.headers.get("If-Range") in (site.etag, site.last_modified):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                first = 0 if site.wrong_range else start
                self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if site.etag:
                self.send_header("ETag", site.etag)
            if site.last_modified:
                self.send_header("Last-Modified", site.last_modified)
            if site.send_length:
                self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            part = body[start:]
            if site.drop_after:
                part = part[: site.drop_after.pop(0)]
                self.close_connection = True
            with suppress(ConnectionError):  # the client may have left on purpose
                self.wfile.write(part)
                self.wfile.flush()

    return Handler


@contextmanager
def serve() -> Iterator[Site]:
    """Run a server until the block ends."""
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
