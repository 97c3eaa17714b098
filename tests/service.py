"""Starts the service as a real process on this machine, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent


class Service:
    """A running service."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, key: str) -> None:
        self.process, self.url, self.key = process, url, key

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def get(self, path: str, **options: object) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers, timeout=60, **options)  # type: ignore[arg-type]

    def post(self, body: object, **options: object) -> httpx.Response:
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=self.headers, timeout=60, **options)  # type: ignore[arg-type]

    def metric(self, line: str) -> float:
        """The value of the metric with this name and labels, 0 if there is none."""
        found = [x.rpartition(" ")[2] for x in self.get("/metrics").text.splitlines() if x.rpartition(" ")[0] == line]
        return float(found[0]) if found else 0.0

    def stop(self) -> tuple[int, str]:
        """End the service with SIGTERM. Returns its exit code and all its output."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out


@contextmanager
def serving(store: str, *options: str, key: str = "") -> Iterator[Service]:
    """Start the service and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "STTM_API_KEYS": key, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "jobs.serve", "--store", store, "--port", str(port), *options]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    )
    service = Service(process, f"http://127.0.0.1:{port}", key)
    try:
        _wait(service)
        yield service
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _wait(service: Service) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and service.process.poll() is None:
        try:
            if httpx.get(f"{service.url}/healthz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    service.process.kill()
    raise RuntimeError("the service did not start: " + service.process.communicate()[0])
