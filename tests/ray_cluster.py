"""A real Ray cluster of its own, to which nodes can be added: token, ports and folders are nobody else's."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


class RayCluster:
    """A running cluster.

    Attributes:
        client: submits jobs to it.
        address: of its dashboard.
        token: without which nothing answers.
    """

    def __init__(self, ports: dict[str, int], token: str, folder: Path) -> None:
        self.address, self.token = f"http://127.0.0.1:{ports['dashboard-port']}", token
        self._gcs, self._folder = f"127.0.0.1:{ports['port']}", folder
        self._metrics = f"http://127.0.0.1:{ports['metrics-export-port']}/metrics"
        self.client = JobSubmissionClient(self.address, headers={"Authorization": f"Bearer {token}"})

    def metrics(self) -> str:
        """What Prometheus would read now."""
        with urllib.request.urlopen(self._metrics, timeout=10) as response:
            return response.read().decode()

    def wait(self, job: str, seconds: float = 200) -> JobStatus:
        """Until the job has ended."""
        deadline = time.monotonic() + seconds
        while (status := self.client.get_job_status(job)) not in ENDED:
            assert time.monotonic() < deadline, self.client.get_job_logs(job)
            time.sleep(0.5)
        return status

    @contextlib.contextmanager
    def node(self, **settings: int) -> Iterator["subprocess.Popen[bytes]"]:
        """One more node with these options of `ray start`; SIGTERM ends it as a machine that is taken away."""
        # Of nodes that share a folder, one would delete the working directory of the jobs of the other.
        own = {"address": self._gcs, "temp-dir": tempfile.mkdtemp(prefix="n", dir=self._folder)}
        with _ray_start(self._folder, self.token, {**own, **_free_ports(*_NODE_PORTS), **settings}) as process:
            yield process


_NODE_PORTS = (
    "metrics-export-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
)


def _free_ports(*names: str) -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        probes = {name: stack.enter_context(socket.socket()) for name in names}
        for probe in probes.values():
            probe.bind(("127.0.0.1", 0))
        return {name: probe.getsockname()[1] for name, probe in probes.items()}


@contextlib.contextmanager
def _ray_start(
    folder: Path, token: str, settings: dict[str, object], *flags: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """One node; ended by its own process ids, since `ray stop` would end every Ray of the machine."""
    options = [f"--{name}={value}" for name, value in {"node-ip-address": "127.0.0.1", **settings}.items()]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", "RAY_metrics_report_interval_ms": "1000"}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    with (folder / "start.log").open("ab") as log:
        command = [Path(sys.executable).parent / "ray", "start", "--block", *flags, *options]
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    family = [psutil.Process(process.pid)]
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.Error):
            family += family[0].children(recursive=True)
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        process.wait()


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayCluster]:
    """From `ray start --head`."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: the paths of Unix sockets are limited
    ports, token = _free_ports("port", "dashboard-port", *_NODE_PORTS), secrets.token_hex(32)
    settings = {"num-cpus": 3, "object-store-memory": 200_000_000, "temp-dir": folder}
    try:
        with _ray_start(folder, token, {**ports, **settings}, "--head") as process:
            yield _connect(process, ports, token, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _connect(process: "subprocess.Popen[bytes]", ports: dict[str, int], token: str, folder: Path) -> RayCluster:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError, RuntimeError, OSError):
            return RayCluster(ports, token, folder)
        time.sleep(1)
    raise RuntimeError((folder / "start.log").read_text())
