"""A real S3 server on loopback, in its own process."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


class S3Server:
    """A running server; the environment points the S3 client at it.

    Args:
        endpoint: address of the server.
        log: file to which the server writes a line for each request.
    """

    def __init__(self, endpoint: str, log: Path) -> None:
        self.endpoint, self._log = endpoint, log

    def new_root(self) -> str:
        """URL of an empty store root."""
        return f"s3://bucket/{uuid.uuid4().hex[:8]}"

    def requests(self, root: str) -> list[str]:
        """The requests about objects below a URL so far, such as `GET a/b`, or `PUT a/b?part` for a part of a file."""
        path, colour = re.escape(root.removeprefix("s3:/")), r"(?:\x1b\[\d+m)*"
        found = re.findall(rf'"{colour}([A-Z]+) {path}/([^ ?]+)(\?\S*)? HTTP', self._log.read_text())
        return [f"{method} {key}" + ("?part" if "uploadId" in query else "") for method, key, query in found]

    def add(self, url: str) -> None:
        """Add an object as another client would."""
        address = url.replace("s3:/", self.endpoint, 1)
        urllib.request.urlopen(urllib.request.Request(address, data=b"x", method="PUT"), timeout=10)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("s3") / "requests.log"
    with log.open("wb") as lines:
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=lines)
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        try:
            _create_bucket(endpoint, process)
            yield S3Server(endpoint, log)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


def _create_bucket(endpoint: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"), timeout=10)
            return
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server at {endpoint} did not start (exit code {process.returncode})")
