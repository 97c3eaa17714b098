"""A real S3 server on loopback, in its own process."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress

import pytest


class S3Server:
    """A running server; the environment points the S3 client at it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def new_root(self) -> str:
        """URL of an empty store root."""
        return f"s3://bucket/{uuid.uuid4().hex[:8]}"

    def add(self, url: str) -> None:
        """Add an object as another client would."""
        address = url.replace("s3:/", self.endpoint, 1)
        urllib.request.urlopen(urllib.request.Request(address, data=b"x", method="PUT"), timeout=10)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
            yield S3Server(endpoint)
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
