"""A real web server on loopback, in a thread of the test."""

import hashlib
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class WebServer(ThreadingHTTPServer):
    """Serves `files` by name; a name that is a number is refused with that status. Queries are not looked at.

    with WebServer({"a.mp4": data}) as server: ...

    Attributes:
        takes_ranges: whether it serves byte ranges; else it serves whole files, as many servers do.
        requests: what was asked for: the method, and the range if there was one.
    """

    def __init__(self, files: dict[str, bytes] | None = None, takes_ranges: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files or {}
        self.takes_ranges = takes_ranges
        self.requests: list[str] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def url(self, name: str) -> str:
        """Where it serves the file, with credentials that no message may show."""
        return f"http://127.0.0.1:{self.server_port}/{name}?token=hunter2"


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_HEAD(self) -> None:
        self._reply()

    def do_GET(self) -> None:
        data = self._reply()
        with suppress(ConnectionError):  # a client that asked for a part may hang up
            self.wfile.write(data)

    def _reply(self) -> bytes:
        name, wanted = self.path.partition("?")[0].strip("/"), self.headers.get("Range", "")
        self.server.requests.append(f"{self.command} {wanted}".strip())
        data = self.server.files.get(name, b"")
        status = 200 if data else int(name)
        etag = hashlib.md5(data).hexdigest()
        if data and wanted and self.server.takes_ranges:
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            data, status = data[first : last + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        return data

    def log_message(self, *_: object) -> None:
        pass
