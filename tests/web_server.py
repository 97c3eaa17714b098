"""A real web server on loopback, in a thread of the test."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class WebServer(ThreadingHTTPServer):
    """Serves `files` by name; a name that is a number is refused with that status. Queries are not looked at.

    with WebServer({"a.mp4": data}) as server: ...
    """

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files or {}

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
        self.wfile.write(self._reply())

    def _reply(self) -> bytes:
        name = self.path.partition("?")[0].strip("/")
        data = self.server.files.get(name, b"")
        self.send_response(200 if data else int(name))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return data

    def log_message(self, *_: object) -> None:
        pass
